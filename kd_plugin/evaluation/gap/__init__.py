"""Where a student lags its teacher: `kd-plugin gap`."""

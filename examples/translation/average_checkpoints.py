"""Averages the last checkpoints of a training run, by epochs or by updates, into one without optimizer state."""

import os
import sys

sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))  # works uninstalled too

from kd_plugin.checkpoints.average import main  # noqa: E402

if __name__ == "__main__":
    main()

"""`kd-plugin report`: evaluations and training logs as one self-contained HTML page."""

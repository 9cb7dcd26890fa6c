"""The GPU kernels, in Triton: kernels.py launches them, dense.py and sparse.py define them, rows.py is shared."""

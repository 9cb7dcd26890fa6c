"""The GPU kernels, in Triton: kernels.py starts them, dense.py and sparse.py are they, rows.py is what they share."""

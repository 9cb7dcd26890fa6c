"""The fast ways to the loss: which of them runs (dispatch), kernels for CPUs and GPUs, the fused head, memory.

Outside losses/ only distill/ imports from here.
"""

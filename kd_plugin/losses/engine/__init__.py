"""Fast implementations of the loss: the choice between them (dispatch), CPU and GPU kernels, the fused head, memory.

Outside losses/ only distill/ imports from here.
"""

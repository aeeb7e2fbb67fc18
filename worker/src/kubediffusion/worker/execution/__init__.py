"""Computes: slots as tensors, CUDA graphs, streams, the decoder, compiling.

Import the modules late: torch takes seconds.
"""

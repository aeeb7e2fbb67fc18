"""The engine for every diffusers text-to-image pipeline: the only package of the project that imports torch.

Static batches through the pipeline's own call. Import its modules late: torch takes seconds.
"""

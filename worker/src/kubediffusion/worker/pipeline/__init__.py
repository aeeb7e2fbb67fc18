"""The engines, and all that imports torch: no other package of the project does.

Two engines: slots of a running batch for the pipelines that :mod:`.families` knows, and static batches through the
pipeline's own call for every other text-to-image pipeline of diffusers. Import the modules late: torch takes seconds.
"""

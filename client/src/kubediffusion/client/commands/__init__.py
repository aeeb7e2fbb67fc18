"""The command line: ``kubediffusion``, also as ``kubectl diffuse``."""

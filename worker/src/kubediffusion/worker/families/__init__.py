"""What is known of classes of pipelines: one module a family, found by :mod:`.registry`.

A family holds conversions and no loop; the engine's loop names no family. Import the modules late: torch takes seconds.
"""

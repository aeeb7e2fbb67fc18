"""Benchmarks of the control path: the real parts, with an engine that only waits."""

"""Faults on purpose, against a real control plane, and an independent checker of what is left.

``python -m chaos`` (with ``tests`` on PYTHONPATH), or ``make chaos``. docs/reliability.md tells what it does.
"""

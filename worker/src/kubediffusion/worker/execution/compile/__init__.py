"""Compiles functions in the background, and keeps what was compiled for the next worker."""

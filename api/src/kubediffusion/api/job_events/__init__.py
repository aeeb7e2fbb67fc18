"""Streams of what changes in jobs, from the watch cache alone."""

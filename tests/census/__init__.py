"""The census: a tiny random model of every text-to-image pipeline of the pinned diffusers, run as the worker does."""

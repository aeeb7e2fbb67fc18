"""Trains the embedded diffusion model; see README.md."""

"""Replicate's predictions and models."""

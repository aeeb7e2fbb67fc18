"""What makes the tiny models, a module for each kin."""

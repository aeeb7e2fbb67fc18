"""Brings a model to this machine, checks it and loads its weights. Knows no engine, no executor and no family."""

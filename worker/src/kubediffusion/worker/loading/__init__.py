"""Fetches a model from the Hugging Face Hub, checks its classes and loads its weights: what needs heavy libraries.

S3, folders and the check of files need none, and lie beside this package (`early_fetch`, `s3models`, `sources`). It
knows no engine, no executor and no family.
"""

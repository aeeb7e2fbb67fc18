"""Delivers webhooks: a process of its own, so that neither operator nor API opens connections that users choose."""

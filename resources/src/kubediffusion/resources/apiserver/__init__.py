"""Typed access to the Kubernetes API: errors, connection, typed objects, and reflected collections."""

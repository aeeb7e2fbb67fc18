"""The operator: kopf's handlers tell the state, a pure scheduler decides, the cluster module acts."""

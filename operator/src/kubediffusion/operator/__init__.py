"""The operator: watches feed a store, pure functions decide, the executor writes."""

"""What every process of the project needs: structured logs, and an endpoint for probes and metrics."""

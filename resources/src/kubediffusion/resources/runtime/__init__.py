"""What every process of the project uses: settings, JSON logs, probes and metrics, and tuned garbage collection."""

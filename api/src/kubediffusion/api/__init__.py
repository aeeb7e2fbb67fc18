"""The HTTP API: the task API and ``/v1`` over GenerationJobs. It holds no state that the cluster does not."""

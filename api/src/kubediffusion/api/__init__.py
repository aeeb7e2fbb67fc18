"""The HTTP API: the seed's routes and ``/v1`` over GenerationJobs. It holds no state that the cluster does not."""

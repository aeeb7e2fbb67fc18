"""KubeDiffusion on one machine: a real Kubernetes control plane, a real S3 server and a node that runs processes.

`LocalCluster` (in `cluster`) is the way in, for ``make up``, ``make demo`` and the tests alike.
"""

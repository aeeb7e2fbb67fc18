"""The process node: a Kubernetes node that runs a pod's commands as processes of this machine.

It stands in for kubelet and the container runtime, and for nothing else: the API server, the controllers and the
scheduler see a node that registers itself, renews its lease, runs the pods bound to it and reports what became of them,
with the rights of a node (``system:nodes``, NodeRestriction) and no others.

What a container's image and namespaces would bring is replaced so that a program need not know:

- There is no mount namespace. A volume is a folder, and wherever a mount path is a path's beginning in an argument or
  an environment value, that folder takes its place (see `mounts`).
- There is no network namespace. Each pod has a loopback address of its own (127.x.y.z), which the downward API tells.
- There is no image. The command is found on a PATH that begins with the virtual environment of this package.
- The service account token cannot lie under ``/var/run/secrets``; KUBECONFIG names a file that leads to it.

Reading order: `objects` (what a pod is), `runner` (a pod's life), `container` (a container's life), and the pure parts
they ask: `support`, `environment`, `mounts`, `probes`, `restarts`, `status`.
"""

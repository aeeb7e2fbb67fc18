"""An operator that lets every job pay for its worker's end, whoever caused it."""

from collections.abc import Iterator
from dataclasses import replace

from kubediffusion.operator import scheduling
from kubediffusion.operator.scheduling import BindCandidate
from kubediffusion.operator.snapshots import ModelSnapshot

jobs_to_unbind = scheduling.jobs_to_unbind


def release_for_a_retry(snapshot: ModelSnapshot) -> Iterator[BindCandidate]:
    """Release jobs as ever, each for a retry of its own."""
    for item in jobs_to_unbind(snapshot):
        yield replace(item, costs_retry=True)


scheduling.jobs_to_unbind = release_for_a_retry

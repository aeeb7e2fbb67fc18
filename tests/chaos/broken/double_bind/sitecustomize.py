"""An operator that takes jobs from workers which are alive, and binds them a second time."""

from collections.abc import Iterator

from kubediffusion.operator import scheduling
from kubediffusion.operator.scheduling import BindCandidate
from kubediffusion.operator.snapshots import ModelSnapshot

jobs_to_unbind = scheduling.jobs_to_unbind


def release_twice(snapshot: ModelSnapshot) -> Iterator[BindCandidate]:
    """Release every job after its first binding too."""
    lost = {item.job.uid: item for item in jobs_to_unbind(snapshot)}
    yield from lost.values()
    for job in (job for jobs in snapshot.bound.values() for job in jobs):
        if job.uid not in lost and job.status.attempt == 1:
            yield BindCandidate(job, costs_retry=False, message="bound twice")


scheduling.jobs_to_unbind = release_twice

"""An operator that takes jobs from workers which are alive, and binds them a second time."""

from collections.abc import Iterator

from kubediffusion.operator import scheduling
from kubediffusion.operator.scheduling import Released
from kubediffusion.operator.views import ModelView

release = scheduling.release


def release_twice(view: ModelView) -> Iterator[Released]:
    """Release every job after its first binding too."""
    lost = {item.job.uid: item for item in release(view)}
    yield from lost.values()
    for job in (job for jobs in view.bound.values() for job in jobs):
        if job.uid not in lost and job.status.attempt == 1:
            yield Released(job, counted=False, message="bound twice")


scheduling.release = release_twice

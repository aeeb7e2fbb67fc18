"""An operator that leaves jobs with workers that are gone."""

from collections.abc import Iterator

from kubediffusion.operator import scheduling
from kubediffusion.operator.scheduling import BindCandidate
from kubediffusion.operator.snapshots import ModelSnapshot


def release_nothing(snapshot: ModelSnapshot) -> Iterator[BindCandidate]:
    """Release no job, whatever became of its worker."""
    del snapshot
    return iter(())


scheduling.jobs_to_unbind = release_nothing

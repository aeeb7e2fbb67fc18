"""What the operator keeps of GenerationJobs: there may be tens of thousands, each with long prompts and annotations."""

from __future__ import annotations

from kubediffusion.resources import meta
from kubediffusion.resources.apiserver.resource import Resource
from kubediffusion.resources.apiserver.rest import RestClient
from kubediffusion.resources.generation_job import GenerationJob

PAGE_SIZE = 25
"""Jobs asked for at once: each may have some 260 KiB of annotations, and all of a page is in memory. With 10,000 jobs
of 200 KiB the operator took 224 MiB (242 at most, while it listed) at 25, 245 (313) at 100."""

NO_PROMPT = "-"
"""Stands for the prompt, which the operator never reads; the negative prompt is part of the recipe."""

KEPT_ANNOTATIONS = frozenset({meta.IMAGES_HELD_ANNOTATION})


def slim_job(job: GenerationJob) -> GenerationJob:
    """Return a job without its prompt, labels, owners and the annotations of others."""
    metadata = job.metadata.model_copy(
        update={
            "labels": {},
            "annotations": {k: v for k, v in job.metadata.annotations.items() if k in KEPT_ANNOTATIONS},
            "owner_references": (),
        }
    )
    spec = job.spec.model_copy(update={"prompt": NO_PROMPT})
    return job.model_copy(update={"metadata": metadata, "spec": spec})


def slim_jobs(client: RestClient) -> Resource[GenerationJob]:
    """Return the access to GenerationJobs through which the operator reads them all: none is ever kept whole.

    Args:
        client: The connection.
    """
    path = f"/apis/{meta.API_VERSION}"
    return Resource(client, GenerationJob, path, meta.GENERATION_JOBS, page_size=PAGE_SIZE, transform=slim_job)

"""What the operator keeps of GenerationJobs: there may be tens of thousands, each with long prompts and annotations."""

from __future__ import annotations

from kubediffusion.resources import meta
from kubediffusion.resources.apiserver.resource import Resource
from kubediffusion.resources.apiserver.rest import RestClient
from kubediffusion.resources.generation_job import GenerationJob, Parameters

PAGE_SIZE = 25
"""Jobs asked for at once: each may have some 260 KiB of annotations, and all of a page is in memory. With 10,000 jobs
of 200 KiB the operator took 224 MiB (242 at most, while it listed) at 25, 245 (313) at 100."""

NO_PROMPT = "-"
"""Stands for the prompt, which the operator never reads; the negative prompt is part of the recipe."""

LONGEST_NEGATIVE_PROMPT = 200
"""Characters of a negative prompt that is kept; a longer one is read again when the recipe is written. 10,000 of 4,000
characters each take 40 MB, and 160 where one of them is an emoji."""

CUT_PROMPT = "\ud800"
"""Stands for a longer negative prompt. No text of the API server is half of a surrogate pair."""

KEPT_ANNOTATIONS = frozenset({meta.IMAGES_HELD_ANNOTATION, meta.PREVIEW_REQUESTED_AT_ANNOTATION})


def slim_job(job: GenerationJob) -> GenerationJob:
    """Return a job without its prompt, long negative prompt, labels, owners and the annotations of others."""
    metadata = job.metadata.model_copy(
        update={
            "labels": {},
            "annotations": {k: v for k, v in job.metadata.annotations.items() if k in KEPT_ANNOTATIONS},
            "owner_references": (),
        }
    )
    negative = _slim_prompt(job.spec.negative_prompt)
    spec = job.spec.model_copy(update={"prompt": NO_PROMPT, "negative_prompt": negative})
    status, parameters = job.status, job.status.parameters
    if parameters is not None:
        negative = _slim_prompt(parameters.negative_prompt)
        slim = parameters.model_copy(update={"negative_prompt": negative})
        status = status.model_copy(update={"parameters": slim})
    return job.model_copy(update={"metadata": metadata, "spec": spec, "status": status})


def lacks_prompt(job: GenerationJob, parameters: Parameters | None) -> bool:
    """Return whether a recipe that is to be written for a job needs the negative prompt that was not kept."""
    if parameters is None or parameters.negative_prompt != CUT_PROMPT:
        return False
    # One that the job has already is not written again.
    known = job.status.parameters
    return known is None or known.negative_prompt != CUT_PROMPT


def _slim_prompt(text: str | None) -> str | None:
    return CUT_PROMPT if text is not None and len(text) > LONGEST_NEGATIVE_PROMPT else text


def slim_jobs(client: RestClient) -> Resource[GenerationJob]:
    """Return the access to GenerationJobs through which the operator reads them all: none is ever kept whole.

    Args:
        client: The connection.
    """
    path = f"/apis/{meta.API_VERSION}"
    return Resource(client, GenerationJob, path, meta.GENERATION_JOBS, page_size=PAGE_SIZE, transform=slim_job)

"""The connection of every part to the API server, with the project's own kinds."""

from __future__ import annotations

from kubernetes.aio import client as kubernetes_client

from kubediffusion.resources import meta
from kubediffusion.resources.apiserver.resource import Resource
from kubediffusion.resources.apiserver.rest import RestClient
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.resources.lora_adapter import LoRAAdapter


class KubernetesClient(RestClient):
    """A connection pool to the API server that knows the project's own kinds.

    Attributes:
        generation_jobs: The GenerationJobs of the cluster.
        diffusion_models: The DiffusionModels of the cluster.
        lora_adapters: The LoRAAdapters of the cluster.
    """

    def __init__(self, configuration: kubernetes_client.Configuration) -> None:
        super().__init__(configuration)
        self.generation_jobs = Resource(self, GenerationJob, f"/apis/{meta.API_VERSION}", meta.GENERATION_JOBS)
        self.diffusion_models = Resource(self, DiffusionModel, f"/apis/{meta.API_VERSION}", meta.DIFFUSION_MODELS)
        self.lora_adapters = Resource(self, LoRAAdapter, f"/apis/{meta.API_VERSION}", meta.LORA_ADAPTERS)

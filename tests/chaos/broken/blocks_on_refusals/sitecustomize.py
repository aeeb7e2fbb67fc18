"""An operator that stops everything for a second whenever the API server refuses what it asks for one namespace."""

import time
from typing import Any

from kubediffusion.resources.apiserver.errors import KubernetesError
from kubediffusion.resources.apiserver.rest import RestClient

request = RestClient.request


async def request_and_block(self: RestClient, *arguments: Any, **options: Any) -> Any:
    """Make a request; block the event loop after a refusal."""
    try:
        return await request(self, *arguments, **options)
    except KubernetesError as error:
        if error.status in {403, 422}:
            time.sleep(1)  # noqa: ASYNC251 - the defect
        raise


RestClient.request = request_and_block  # type: ignore[method-assign]

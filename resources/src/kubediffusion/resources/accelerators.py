"""Whether a container asks for something that computes in the CPU's place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_ACCELERATOR = re.compile(
    r"(?i)^(nvidia|amd)\.com/|^habana\.ai/|^gpu\.|/(.*[^a-z])?(v?(gpu|cuda|npu|mlu)|[xt]pu|dcu|neuron|gaudi|ascend)"
)
"""The name of a resource that computes in the CPU's place: what device plugins call whole GPUs, parts of one (MIG), and
accelerators that are no GPU. A worker that asked for one must not take the CPU without a word."""


def requested_accelerator(resources: Mapping[str, Any]) -> str | None:
    """Return the GPU, or another accelerator, that resources of a container ask for; None for none.

    Args:
        resources: ``requests``, ``limits`` and ``claims``, as in the Pod API.

    Returns:
        For people, as ``nvidia.com/gpu: 1``. A claim of dynamic resource allocation counts, whatever it is of, as only
        its class says: ``resourceClaims: gpu``.
    """
    asked = {**resources.get("requests", {}), **resources.get("limits", {})}
    for name, count in asked.items():
        if _ACCELERATOR.search(name) and str(count) != "0":
            return f"{name}: {count}"
    claims = resources.get("claims", ())
    names = (
        [claim.get("name") if isinstance(claim, dict) else claim for claim in claims]
        if isinstance(claims, list)
        else []
    )
    return f"resourceClaims: {', '.join(map(str, names))}" if names else None

"""How hypothesis searches: by count alone, since a busy machine is no defect of the code."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("kubediffusion", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kubediffusion")

"""Where things lie: in the checkout that this package is used from, and in the user's cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

# The package serves the checkout that it was installed from in place; it is of no use without it.
REPOSITORY = Path(__file__).resolve().parents[5]
BINARIES = REPOSITORY / "deploy" / "local" / "binaries"
CHART = REPOSITORY / "charts" / "kubediffusion"
REQUIREMENTS = REPOSITORY / "requirements"
MODELS = REPOSITORY / "models"
DEMO = REPOSITORY / "demo"


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Return the folder, outside any checkout, for what takes minutes to make."""
    if own := environment.get("KUBEDIFFUSION_CACHE"):
        return Path(own).absolute()
    if shared := environment.get("XDG_CACHE_HOME"):
        return Path(shared).absolute() / "kubediffusion"
    return Path(environment.get("HOME", str(Path.home()))) / ".cache" / "kubediffusion"

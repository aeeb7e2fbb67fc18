"""Mount paths in arguments and environment values, replaced by the folders that stand behind them.

A process node gives its processes no mount namespace, which would take rights that an ordinary user may not have. A
manifest, though, names paths as the container would see them: ``--model=/models/emoji`` with a volume mounted at
``/models``. So each mount path that a value names, alone or as the beginning of a longer path, becomes the folder.
Paths that a program has built into itself are not reached by this.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

# What may stand before a path in a value (nothing, or one of these) and after it (a slash, nothing, or one of these).
BORDER = r"\s=:,;'\"<>()\[\]"


class Mounts:
    """The folders behind a container's mount paths."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = {_clean(path): folder for path, folder in folders.items()}
        # The longest first: a mount below another one hides that part of it.
        paths = sorted(self._folders, key=len, reverse=True)
        alternatives = "|".join(re.escape(path) for path in paths)
        self._pattern = re.compile(rf"(?:(?<=[{BORDER}])|^)(?:{alternatives})(?=/|$|[{BORDER}])") if paths else None

    def translate(self, text: str) -> str:
        """Return a value with every mount path in it replaced."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda found: str(self._folders[found[0]]), text)


def _clean(path: str) -> str:
    return "/" + path.strip("/")

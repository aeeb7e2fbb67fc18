"""Lists of objects of one kind, and a cache of the newest known state of each. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from kubediffusion.resources import meta
from kubediffusion.resources.objects import KubernetesObject

KEPT_ANNOTATIONS = frozenset({meta.DEFAULT_MODEL_ANNOTATION, meta.RESTARTED_AT_ANNOTATION})
"""Those of a model that the operator reads. Each object may have 256 KiB of others, and a namespace thousands of it."""

T = TypeVar("T", bound=KubernetesObject)


@dataclass(frozen=True)
class ObjectList(Generic[T]):
    """All objects of one kind, as one moment had them.

    Attributes:
        items: The objects.
        version: Resource version of the list: what a watch has told since is newer.
    """

    items: tuple[T, ...]
    version: int

    @property
    def namespaces(self) -> set[str]:
        """The namespaces that have any of the objects."""
        return {item.metadata.namespace for item in self.items}

    def within(self, namespace: str) -> ObjectList[T]:
        """Return the part of the list that is in one namespace."""
        return ObjectList(tuple(item for item in self.items if item.metadata.namespace == namespace), self.version)


class ObjectCache(Generic[T]):
    """Objects of one kind by name, each in its newest known state.

    Lists, watches and the answers to writes overlap in time: what comes later may be older, so versions decide.

    Attributes:
        items: The objects by name.
    """

    def __init__(self) -> None:
        self.items: dict[str, T] = {}
        self._deleted: dict[str, int] = {}

    def update(self, item: T) -> bool:
        """Keep an object unless a newer state is known, and return whether it was kept."""
        name, version = item.metadata.name, item.metadata.version
        known = self.items.get(name)
        if version <= self._deleted.get(name, -1) or (known is not None and version < known.metadata.version):
            return False
        self.items[name] = _without_annotations_of_others(item)
        return True

    def delete(self, item: T) -> bool:
        """Remove an object that was deleted, and return whether it was known.

        Args:
            item: The object with the version of its deletion.
        """
        name, version = item.metadata.name, item.metadata.version
        known = self.items.get(name)
        if known is not None and version < known.metadata.version:
            return False
        self._deleted[name] = version
        return self.items.pop(name, None) is not None

    def replace(self, listed: ObjectList[T]) -> None:
        """Keep what a full list has: what it lacks was deleted, unless a watch has told of it since."""
        names = {item.metadata.name for item in listed.items}
        self.items = {
            name: item for name, item in self.items.items() if name in names or item.metadata.version > listed.version
        }
        for item in listed.items:
            self.update(item)
        # The next list is asked for after these deletions.
        self._deleted.clear()


def _without_annotations_of_others(item: T) -> T:
    kept = {name: value for name, value in item.metadata.annotations.items() if name in KEPT_ANNOTATIONS}
    if len(kept) == len(item.metadata.annotations):
        return item
    return item.model_copy(update={"metadata": item.metadata.model_copy(update={"annotations": kept})})

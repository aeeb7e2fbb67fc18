"""Which template a model's workers are made from: a changed one only once the API server would take it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

from kubediffusion.resources.diffusion_model import DiffusionModel


@dataclass(frozen=True)
class TemplateHash:
    """What is known of a model's template.

    Attributes:
        in_effect: Hash of the template that its workers are made from.
        untried: Hash of the one that its spec gives, while no API server was asked whether it takes it; else empty.
    """

    in_effect: str
    untried: str = ""


class TemplateHashes:
    """The templates of a namespace's models.

    Args:
        hash_of: Returns the hash of the template that a model's spec gives.
    """

    def __init__(self, hash_of: Callable[[DiffusionModel], str]) -> None:
        self._hash_of = hash_of
        self._known: dict[str, TemplateHash] = {}
        self._accepted: dict[str, str] = {}

    def look_at(self, model: DiffusionModel, before: DiffusionModel | None) -> TemplateHash:
        """Return what is to be known of a model's template, for :meth:`keep`.

        Workers stay as they are while the template that they are to have instead is tried, so that one that is refused
        takes none away. That is so where nothing but ``workers.template`` has changed, or the operator's settings while
        it was away: jobs must not run on workers that hold something else than the spec says.

        Args:
            model: The model as it is now.
            before: The model as it was known; None where it was not.
        """
        wanted = self._hash_of(model)
        before = before if before is not None and before.uid == model.uid else None
        known = self._known.get(model.name) if before is not None else None
        if known is not None:
            same = wanted in {known.in_effect, known.untried} or self._differs_in_template_only(model, before)
            in_effect = known.in_effect if same else wanted
        else:
            status = model.status
            observed = status.observed_generation == model.metadata.generation
            in_effect = status.template_hash if observed and status.template_hash else wanted
        tried = model.spec.workers.template is None or self._accepted.get(model.name) == wanted
        return TemplateHash(in_effect, "" if tried and in_effect == wanted else wanted)

    def keep(self, name: str, found: TemplateHash) -> TemplateHash | None:
        """Keep what is known of a model's template now, and return what was known of it before."""
        before = self._known.get(name)
        self._known[name] = found
        return before

    def accept(self, name: str, tried: str) -> bool:
        """Put a template into effect that the API server takes, and return whether it is the one that is untried."""
        known = self._known.get(name)
        if known is None or known.untried != tried:
            return False
        self._accepted[name] = tried
        self._known[name] = TemplateHash(tried)
        return True

    def of(self, name: str) -> TemplateHash:
        """Return what is known of a model's template."""
        return self._known[name]

    def forget_others(self, names: Container[str]) -> None:
        """Forget the models that are not among these."""
        self._known = {name: known for name, known in self._known.items() if name in names}
        self._accepted = {name: accepted for name, accepted in self._accepted.items() if name in names}

    def _differs_in_template_only(self, model: DiffusionModel, before: DiffusionModel | None) -> bool:
        if before is None or before.spec.workers.template == model.spec.workers.template:
            return False
        workers = model.spec.workers.model_copy(update={"template": before.spec.workers.template})
        spec = model.spec.model_copy(update={"workers": workers})
        return self._hash_of(model.model_copy(update={"spec": spec})) == self._hash_of(before)

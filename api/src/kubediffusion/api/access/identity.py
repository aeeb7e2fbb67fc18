"""Who asks, as everything behind the middleware knows it: one object, and every question of what its owner may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from kubediffusion.api.caller_settings import EffectiveLimits, Scope
from kubediffusion.api.errors import InvalidRequestError, TaskNotFoundError, problem
from kubediffusion.api.job_cache.records import CachedJob


class Mode(StrEnum):
    """How a caller has shown who it is."""

    NONE = "none"
    """Not at all: nobody is asked, or the path is open to everybody."""
    API_KEY = "apiKey"


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller, and what it may do.

    Attributes:
        mode: How it has shown who it is.
        subject: Who it is: the name of its API key; empty where nobody is asked.
        client: Whom rates and logs count: the subject, else the address.
        scope: Which jobs of the namespace it sees.
        limits: How much it may ask for, and of which models.
    """

    mode: Mode
    subject: str
    client: str
    scope: Scope
    limits: EffectiveLimits

    @property
    def owner(self) -> str | None:
        """Whose jobs it sees; None where it sees all."""
        return self.subject if self.scope is Scope.OWN else None

    def sees(self, job: CachedJob) -> bool:
        """Return whether a job exists for this caller."""
        return self.scope is Scope.NAMESPACE or job.client == self.subject

    def check_sees(self, job: CachedJob) -> None:
        """Check that a job exists for this caller.

        Raises:
            TaskNotFoundError: It does not: the answer is that to a job which nobody has.
        """
        if not self.sees(job):
            raise TaskNotFoundError

    def sees_previews_of(self, job: CachedJob) -> bool:
        """Return whether it may see previews of a job: of its own, and of those that no caller over HTTP created."""
        return not self.subject or job.client in {None, self.subject}

    def check_model(self, model: str | None) -> None:
        """Check that it may use a model.

        Raises:
            InvalidRequestError: It may not, or must name one.
        """
        models = self.limits.models
        # A job that names none gets the model that is the default when it is bound, which may be another by then.
        if models is not None and model not in models:
            message = f"Name a model that this API key may use: {', '.join(models)}"
            raise InvalidRequestError([problem("model", message)])

    def check_priority(self, priority: int | None) -> None:
        """Check that it may ask for a priority.

        Raises:
            InvalidRequestError: It may not.
        """
        highest = self.limits.max_priority
        if priority is not None and priority > highest:
            message = f"{priority} exceeds the highest priority that this client may ask for, {highest}"
            raise InvalidRequestError([problem("priority", message)])

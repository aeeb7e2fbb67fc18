"""The state machine of a GenerationJob: one table that the operator, the worker and the API server all follow.

The API server enforces it twice: the CRD's CEL refuses a change of phase that the table does not have
(:func:`transition_rule`), and an admission policy refuses it to the wrong writer
(:mod:`kubediffusion.resources.crds.policies`). The operator asks :func:`allowed` before it writes; the worker is held
to the table by the API server alone.
"""

from __future__ import annotations

from enum import StrEnum

from kubediffusion.resources.generation_job import GenerationJobStatus, Phase


class Writer(StrEnum):
    """A component that writes the status of jobs."""

    OPERATOR = "operator"
    WORKER = "worker"


TERMINAL = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED})
"""Phases that are never left."""

BOUND = frozenset({Phase.SCHEDULED, Phase.RUNNING})
"""Phases in which ``status.worker`` names the Pod that the job is bound to."""

TRANSITIONS: dict[Writer, dict[Phase, frozenset[Phase]]] = {
    Writer.OPERATOR: {
        # Bound to a worker; or failed or cancelled before any worker saw it.
        Phase.PENDING: frozenset({Phase.SCHEDULED, Phase.FAILED, Phase.CANCELLED}),
        # Back to the queue, or straight to another worker, when the worker goes.
        Phase.SCHEDULED: frozenset({Phase.PENDING, Phase.SCHEDULED, Phase.FAILED, Phase.CANCELLED}),
        Phase.RUNNING: frozenset({Phase.PENDING, Phase.SCHEDULED, Phase.FAILED, Phase.CANCELLED}),
    },
    Writer.WORKER: {
        # A batch that ends within a second is never written as Running first: two writes that fall together are one.
        Phase.SCHEDULED: frozenset({Phase.RUNNING, Phase.SUCCEEDED, Phase.FAILED}),
        Phase.RUNNING: frozenset({Phase.RUNNING, Phase.SUCCEEDED, Phase.FAILED}),
    },
}
"""For each writer, from each phase, the phases it may write."""


def allowed(writer: Writer, old: Phase, new: Phase) -> bool:
    """Return whether this writer may change a job's phase from ``old`` to ``new``."""
    return new in TRANSITIONS[writer].get(old, frozenset())


def targets(old: Phase) -> frozenset[Phase]:
    """Return the phases that some writer may write over ``old``, itself included unless it is terminal."""
    if old in TERMINAL:
        return frozenset()
    reachable = frozenset().union(*(table.get(old, frozenset()) for table in TRANSITIONS.values()))
    return reachable | {old}


def _cel_map(table: dict[Phase, frozenset[Phase]]) -> str:
    entries = (f"'{old}': [{', '.join(repr(str(new)) for new in sorted(table[old]))}]" for old in Phase if old in table)
    return "{" + ", ".join(entries) + "}"


def transition_rule() -> str:
    """Generate the CEL expression on ``status.phase`` that holds only for changes that the table has."""
    table = {old: targets(old) for old in Phase if old not in TERMINAL}
    return f"!(oldSelf in {_cel_map(table)}) || self in {_cel_map(table)}[oldSelf]"


def terminal_rule() -> str:
    """Generate the CEL expression on ``status`` that holds unless the status of a finished job changes.

    Its webhook alone may: that it ended is told afterwards.
    """
    terminal = ", ".join(repr(str(phase)) for phase in sorted(TERMINAL))
    return f"!(oldSelf.phase in [{terminal}]) || self == oldSelf || ({same_but_webhook('self', 'oldSelf')})"


def same_but_webhook(one: str, other: str) -> str:
    """Generate the CEL expression that holds when two statuses differ in ``webhook`` alone, or not at all.

    Args:
        one: CEL expression of a status.
        other: CEL expression of another.
    """
    fields = [field.alias for name, field in GenerationJobStatus.model_fields.items() if name != "webhook"]
    # Not by optional fields (one.?name): what a comparison of those may cost has no bound that the API server takes.
    same = (
        f"(has({one}.{name}) ? has({other}.{name}) && {one}.{name} == {other}.{name} : !has({other}.{name}))"
        for name in fields
    )
    return " && ".join(same)


def writer_rule(writer: Writer, old: str, new: str) -> str:
    """Generate the CEL expression that holds when this writer may change the phase from ``old`` to ``new``.

    Args:
        writer: Whose row of the table.
        old: CEL expression of the phase before.
        new: CEL expression of the phase after.
    """
    table = _cel_map(TRANSITIONS[writer])
    return f"{old} in {table} && {new} in {table}[{old}]"

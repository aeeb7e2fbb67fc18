"""Orders and faults are pure functions of their seed."""

from __future__ import annotations

from chaos.faults import LAST, SECONDS, Kind, schedule
from chaos.load import Route, orders

KINDS = list(Kind)


def test_the_same_seed_gives_the_same_faults_and_jobs() -> None:
    assert schedule(7, 1000, 50, KINDS) == schedule(7, 1000, 50, KINDS)
    assert schedule(7, 1000, 50, KINDS) != schedule(8, 1000, 50, KINDS)
    assert orders(7, 100) == orders(7, 100)
    assert orders(7, 100) != orders(8, 100)


def test_each_kind_comes_before_any_comes_twice() -> None:
    faults = schedule(1, 1000, len(KINDS) + 3, KINDS)
    assert {fault.kind for fault in faults[: len(KINDS)]} == set(KINDS)
    assert len(faults) == len(KINDS) + 3


def test_faults_come_in_order_and_leave_time_to_recover() -> None:
    faults = schedule(1, 1000, 60, KINDS)
    moments = [fault.finished for fault in faults]
    assert moments == sorted(moments)
    assert moments[-1] <= 1000 * LAST
    for fault in faults:
        least, most = SECONDS.get(fault.kind, (0.0, 0.0))
        assert least <= fault.seconds <= most


def test_jobs_come_by_every_door_and_to_both_models() -> None:
    placed = orders(1, 500)
    assert {order.route for order in placed} == set(Route)
    assert {order.spec.get("model") for order in placed} == {None, "slow"}
    assert len({order.spec["prompt"] for order in placed}) == 500


def test_a_request_is_the_manifest_in_snake_case() -> None:
    placed = next(order for order in orders(1, 500) if "guidanceScale" in order.spec)
    assert placed.request["guidance_scale"] == placed.manifest["spec"]["guidanceScale"]
    assert "guidanceScale" not in placed.request

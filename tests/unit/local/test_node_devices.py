"""GPUs and addresses belong to one pod at a time."""

from __future__ import annotations

from pathlib import Path

from kubediffusion.local.node.devices import Addresses, Devices, count_gpus


def test_gpus_are_given_to_one_pod_at_a_time() -> None:
    devices = Devices(2, simulated=True)
    assert devices.assign("a", 1) == (0,)
    assert devices.assign("b", 1) == (1,)
    assert devices.assign("c", 1) is None
    devices.release("a")
    assert devices.assign("c", 1) == (0,)


def test_a_pod_without_gpus_always_fits() -> None:
    assert Devices(0, simulated=False).assign("a", 0) == ()


def test_cuda_sees_the_pod_s_own_devices_and_no_others() -> None:
    real = Devices(4, simulated=False)
    assert real.variables((2, 3)) == {"CUDA_VISIBLE_DEVICES": "2,3"}
    assert real.variables(()) == {"CUDA_VISIBLE_DEVICES": ""}


def test_cuda_is_not_told_of_simulated_devices() -> None:
    simulated = Devices(4, simulated=True)
    assert simulated.variables((1,)) == {"KUBEDIFFUSION_GPU_INDEX": "1", "KUBEDIFFUSION_DEVICE": "cpu"}
    assert simulated.variables(()) == {}


def test_gpus_are_counted_by_their_device_files(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert count_gpus(tmp_path) == 2


def test_every_pod_has_an_address_of_its_own() -> None:
    addresses = Addresses("127.9")
    given = [addresses.assign(f"pod-{number}") for number in range(600)]
    assert len(set(given)) == 600
    assert given[:2] == ["127.9.0.2", "127.9.0.3"]
    assert given[-1] == "127.9.2.89"


def test_an_address_that_was_given_back_is_used_again_as_late_as_possible() -> None:
    addresses = Addresses("127.9")
    first = addresses.assign("a")
    addresses.release("a")
    assert addresses.assign("b") != first

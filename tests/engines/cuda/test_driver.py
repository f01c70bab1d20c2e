"""What NVIDIA's driver says of its devices, asked of a stand-in."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest

from unibrain_rt.engines.cuda.driver import Gpu, Gpus, cuda_driver, device_name, gpus


class Driver:
    """Answers as libcuda does, with codes and through pointers. ``failing`` maps a call to its code."""

    def __init__(self, failing: dict[str, int] | None = None, integrated: bool = False) -> None:
        self.failing = failing or {}
        self.integrated = integrated
        self.released = 0

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Callable[..., None]] = {
            "cuDeviceGetCount": lambda count: point(count, 1),
            "cuDeviceGetName": lambda text, size, device: setattr(text, "value", b"NVIDIA RTX 4090"),
            "cuDeviceGetAttribute": lambda value, attribute, device: point(
                value, {75: 8, 76: 9, 18: int(self.integrated)}[attribute]
            ),
            "cuDeviceTotalMem_v2": lambda total, device: point(total, 24 * 10**9),
            "cuMemGetInfo_v2": lambda free, total: point(free, 20 * 10**9),
            "cuGetErrorString": lambda code, text: point(text, b"system not yet initialized"),
        }

        def call(*arguments: Any) -> int:
            if name in self.failing:
                return self.failing[name]
            self.released += name == "cuDevicePrimaryCtxRelease_v2"
            if name in answers:
                answers[name](*arguments)
            return 0

        return call


def point(reference: Any, value: object) -> None:
    """Write through a pointer that ``ctypes.byref`` made."""
    reference._obj.value = value


def test_a_device_is_asked_of_the_driver() -> None:
    driver = Driver()
    assert gpus(driver) == Gpus((Gpu("NVIDIA RTX 4090", "sm89", 24 * 10**9, 20 * 10**9),))
    assert driver.released == 1
    shared = gpus(Driver(integrated=True)).devices[0]
    assert shared.shared


@pytest.mark.parametrize("call", ["cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2", "cuMemGetInfo_v2"])
def test_a_device_that_is_taken_does_not_tell_its_free_memory(call: str) -> None:
    driver = Driver({call: 2})
    assert gpus(driver).devices[0].free_bytes is None
    assert driver.released == (call != "cuDevicePrimaryCtxRetain")


def test_a_driver_that_fails_says_why() -> None:
    assert gpus(Driver({"cuInit": 802})).problem == "system not yet initialized (CUDA error 802)"
    unknown = Driver({"cuInit": 802, "cuGetErrorString": 1})
    assert gpus(unknown).problem == "CUDA error 802"


def test_no_driver_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert gpus(cuda_driver()) == Gpus()
    assert device_name(cuda_driver()) is None


def test_the_devices_of_this_machine() -> None:
    devices = gpus(cuda_driver()).devices
    assert all(gpu.capability.startswith("sm") for gpu in devices)
    assert device_name(cuda_driver()) == (devices[0].name if devices else None)


def test_the_name_of_a_device_is_asked_without_using_it() -> None:
    driver = Driver({"cuDevicePrimaryCtxRetain": 2, "cuDeviceTotalMem_v2": 2})
    assert device_name(driver) == "NVIDIA RTX 4090"
    assert device_name(Driver({"cuInit": 802})) is None

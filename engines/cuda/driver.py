"""NVIDIA's driver and what it says of its devices, asked of its own library, with nothing to install."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

_LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR, _INTEGRATED = 75, 76, 18  # attributes of a device, as cuda.h numbers them
_NAME_BYTES = 256


@dataclass(frozen=True)
class Gpu:
    """A CUDA device. ``capability`` is such as ``sm89``; ``shared``: its memory is the host's."""

    name: str
    capability: str
    total_bytes: int
    free_bytes: int | None
    shared: bool = False


@dataclass(frozen=True)
class Gpus:
    """What the CUDA driver offers; ``problem`` says why it offers nothing although it is there."""

    devices: tuple[Gpu, ...] = ()
    problem: str | None = None


def cuda_driver() -> Any:
    """The CUDA driver's library; None where there is none."""
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError:
        return None


def gpus(driver: Any) -> Gpus:
    """The devices of the driver that ``cuda_driver`` gave. It begins to use each, to ask for its free memory."""
    if driver is None:
        return Gpus()
    try:
        return Gpus(tuple(_gpu(driver, device) for device in _devices(driver)))
    except OSError as error:
        return Gpus(problem=str(error))


def device_name(driver: Any) -> str | None:
    """Name of the first device of the driver that ``cuda_driver`` gave; None without one. It does not use it."""
    try:
        devices = [] if driver is None else _devices(driver)
        return _name(driver, devices[0]) if devices else None
    except OSError:
        return None


def _devices(driver: Any) -> list[ctypes.c_int]:
    _check(driver, driver.cuInit(0))
    count = ctypes.c_int()
    _check(driver, driver.cuDeviceGetCount(ctypes.byref(count)))
    devices = [ctypes.c_int() for _ in range(count.value)]
    for number, device in enumerate(devices):
        _check(driver, driver.cuDeviceGet(ctypes.byref(device), number))
    return devices


def _name(driver: Any, device: ctypes.c_int) -> str:
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _check(driver, driver.cuDeviceGetName(name, _NAME_BYTES, device))
    return name.value.decode("utf-8", "replace")


def _gpu(driver: Any, device: ctypes.c_int) -> Gpu:
    facts = []
    for attribute in (_MAJOR, _MINOR, _INTEGRATED):
        value = ctypes.c_int()
        _check(driver, driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device))
        facts.append(value.value)
    total = ctypes.c_size_t()
    _check(driver, driver.cuDeviceTotalMem_v2(ctypes.byref(total), device))
    return Gpu(
        _name(driver, device),
        f"sm{facts[0]}{facts[1]}",
        total.value,
        _free_bytes(driver, device),
        bool(facts[2]),
    )


def _free_bytes(driver: Any, device: Any) -> int | None:
    """Free memory of a device; None where the driver does not let us ask, as on a device that is taken."""
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) != 0:
        return None
    try:
        if driver.cuCtxPushCurrent_v2(context) != 0:
            return None
        asked = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        return free.value if asked == 0 else None
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(device)


def _check(driver: Any, code: int) -> None:
    """Raises OSError in the driver's words where a call failed."""
    if code == 0:
        return
    text = ctypes.c_char_p()
    known = driver.cuGetErrorString(code, ctypes.byref(text)) == 0 and text.value
    raise OSError(
        f"{text.value.decode()} (CUDA error {code})" if known and text.value else f"CUDA error {code}"
    )

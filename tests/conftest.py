"""Fixtures and the `gpu` marker for the whole suite."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

_measurements = pytest.StashKey[list[str]]()


@functools.cache
def cuda_device_count() -> int:
    """Number of CUDA devices, asked of the driver itself: no library is imported. 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and cuda_device_count() == 0:
        pytest.skip("needs a CUDA device, and the driver offers none")


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of the recorded reference: checkpoint, config, tokenizers and golden.safetensors."""
    named = os.environ.get("UNIBRAIN_GOLDEN")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "golden"
    if not (folder / "golden.safetensors").is_file():
        if named:
            pytest.fail(f"UNIBRAIN_GOLDEN is {named}, which holds no golden.safetensors")
        pytest.skip("no golden files: put them in ../shared/golden or name their folder in UNIBRAIN_GOLDEN")
    return folder


@pytest.fixture(scope="session")
def phantom_bundle() -> Path:
    """The bundle that ships in the wheel."""
    folder = REPOSITORY / "runtime" / "phantom"
    if not (folder / "bundle.json").is_file():
        pytest.fail("runtime/phantom/bundle.json is missing: the shipped bundle is part of the repository")
    return folder


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Shows a measured value at the end of the run, whether or not the test passes."""
    return request.config.stash.setdefault(_measurements, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    measurements = config.stash.get(_measurements, [])
    if measurements:
        terminalreporter.section("measured")
        for line in measurements:
            terminalreporter.write_line(line)

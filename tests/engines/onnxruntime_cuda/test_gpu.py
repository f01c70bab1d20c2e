"""On a real GPU: the phantom decodes there as it does on the CPU, captured and not, in silence.

Needs neither onnx nor torch, so that it also runs where onnxruntime-gpu alone is installed.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unibrain_rt import Decoder, read_scans
from unibrain_rt.bundle import Bundle
from unibrain_rt.captions import CaptionOptions
from unibrain_rt.engines import Engine, Settings, create_engine, probe
from unibrain_rt.engines.onnxruntime_cuda import GRAPHS_VARIABLE, CudaEngine
from unibrain_rt.sessions import decode_graphs

pytestmark = pytest.mark.gpu


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], tuple[CudaEngine, list[str]]]:
    """Makes an engine with graphs or without, and the list of what it tells."""
    found = probe("cuda")
    if not found.usable:
        pytest.skip(str(found))
    monkeypatch.delenv(GRAPHS_VARIABLE, raising=False)

    def make(graphs: bool) -> tuple[CudaEngine, list[str]]:
        told: list[str] = importlib.import_module("log_lines").LogLines()
        return CudaEngine(Settings(capture=graphs)), told

    return make


def decoder(folder: Path, engine: Engine) -> Decoder:
    bundle = Bundle.open(folder)
    return Decoder(bundle, bundle.subject("sub-01"), engine, "fast", CaptionOptions())


def test_the_phantom_decodes_as_on_the_cpu(cuda: Any, phantom_bundle: Path, repository: Path) -> None:
    reference = decoder(phantom_bundle, create_engine("onnxruntime"))
    (scan,) = read_scans(repository / "examples" / "scan.npy", reference.subject.voxel_space)
    want = reference.decode(scan.betas)
    for graphs in (True, False):
        engine, told = cuda(graphs)
        device = decoder(phantom_bundle, engine)
        for _ in range(2):  # captured at the first, replayed at the second
            have = device.decode(scan.betas)
            off = int(np.abs(have.image.astype(int) - want.image).max())
            assert off <= 2
            assert have.caption == want.caption
        assert told == [], "captured where that was asked for"
        for graph, free in decode_graphs(Bundle.open(phantom_bundle), ["fast"]):
            engine.check(graph, free)  # no kernel is missing


def test_two_decodes_in_turn_do_not_mix(cuda: Any, phantom_bundle: Path) -> None:
    engine, _ = cuda(True)
    device = decoder(phantom_bundle, engine)
    count = device.subject.voxel_space.count
    scans = [np.random.default_rng(n).standard_normal(count).astype(np.float32) for n in range(2)]
    first = [device.decode(scan) for scan in scans]
    again = [device.decode(scan) for scan in scans]
    for before, after in zip(first, again, strict=True):
        assert np.array_equal(before.image, after.image)
        assert before.tokens == after.tokens


def test_nothing_is_printed(cuda: Any, phantom_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    engine, _ = cuda(os.environ.get(GRAPHS_VARIABLE) != "0")
    device = decoder(phantom_bundle, engine)
    device.decode(np.zeros(device.subject.voxel_space.count, np.float32))
    assert capfd.readouterr() == ("", "")

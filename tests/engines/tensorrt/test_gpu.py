"""On a real GPU, with whichever of the two libraries works there: the phantom's decodes, with CUDA graphs and without."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from unibrain_rt.bundle import Bundle
from unibrain_rt.captions import CaptionOptions
from unibrain_rt.decoder import Decoder
from unibrain_rt.engines import Engine, create_engine, probe
from unibrain_rt.engines.ahead import AheadEngine
from unibrain_rt.ridge_graph import ridge_graphs
from unibrain_rt.sessions import decode_graphs

pytestmark = pytest.mark.gpu
PRESET = "paper"
SCANS = 4
LEAST_PSNR_DB = 35.0


@pytest.fixture(scope="module", params=["shipped", "fp16"])
def bundle(
    request: pytest.FixtureRequest, phantom_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    if request.param == "shipped":
        return Bundle.open(phantom_bundle)
    for library in ("onnx", "safetensors"):
        pytest.importorskip(library)
    from unibrain_rt.export.bundles.conversion import convert_bundle

    folder = tmp_path_factory.mktemp("half") / "phantom"
    convert_bundle(phantom_bundle, folder, precision="fp16")
    return Bundle.open(folder)


@pytest.mark.parametrize("capture", [True, False], ids=["graphs", "no graphs"])
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_decodes_are_those_of_the_cpu(
    name: str, capture: bool, bundle: Bundle, phantom_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = probe(name)
    if not found.usable:
        pytest.skip(str(found))
    told = importlib.import_module("log_lines").LogLines()
    cache = tmp_path_factory.getbasetemp() / f"plans-{name}"
    engine = create_engine(name, cache=cache, capture=capture)
    assert isinstance(engine, AheadEngine)
    for graph, free in decode_graphs(bundle, [PRESET]) + ridge_graphs(bundle, [bundle.subject(None)]):
        engine.build(graph, free)
    ours = decoder(bundle, engine)
    reference = decoder(Bundle.open(phantom_bundle), create_engine("onnxruntime"))
    same_captions = 0
    for seed in range(SCANS):
        scan = np.random.default_rng(seed).standard_normal(bundle.subject(None).voxels).astype(np.float32)
        one, other = ours.decode(scan, seed=seed), reference.decode(scan, seed=seed)
        assert psnr_db(one.image, other.image) >= LEAST_PSNR_DB
        same_captions += one.caption == other.caption
        assert all(spent > 0 for spent in one.timings_ms.values())
    assert same_captions >= SCANS - 1
    assert not [line for line in told if "no CUDA graph" in line]


def decoder(bundle: Bundle, engine: Engine) -> Decoder:
    return Decoder(bundle, bundle.subject(None), engine, PRESET, CaptionOptions())


def psnr_db(image: np.ndarray, reference: np.ndarray) -> float:
    """Of uint8 pictures; infinite where they are equal."""
    error = np.mean((image.astype(np.float64) - reference) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))

"""What evaluation decodes is what every other way decodes, also where a graph in half precision falls back to fp32."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from unibrain_rt import Decoder, Reconstruction
from unibrain_rt.benchmarks.quality import decoding
from unibrain_rt.benchmarks.quality.ablations import VARIANTS
from unibrain_rt.benchmarks.quality.evaluator import Evaluator
from unibrain_rt.bundle import MANIFEST, Bundle, sha256_of
from unibrain_rt.engines import create_engine
from unibrain_rt.export.bundles.conversion import convert_bundle
from unibrain_rt.export.judges.features import clip_extractor
from unibrain_rt.export.subjects.datasets.dataset import Dataset
from unibrain_rt.export.subjects.datasets.folders import read_folder

SUBJECT, PRESET, SEED = "sub-01", "realtime", 5
GRAPH = "unet_image_step"
NOISE = 0.05
"""How far means of measures from 0 to 1 may be from each other: half precision moves a few pixels, and no objects."""


@pytest.fixture(scope="module")
def scans(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The six example scans as one file of betas."""
    examples = repository / "examples"
    first = np.load(examples / "scan.npy")[None]
    others = np.load(examples / "scans.npy").astype(np.float32) / 300
    path = tmp_path_factory.mktemp("scans") / "scans.npy"
    np.save(path, np.concatenate([first, others]).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def dataset(scans: Path, repository: Path) -> Dataset:
    stimuli = repository / "examples" / "stimuli"
    return read_folder(SUBJECT, scans, stimuli, stimuli / "captions.json")


def overflow(bundle: Path, graph: str) -> None:
    """Let a product in the middle of the graph leave the range of fp16, in its half-precision form alone."""
    path = bundle / "graphs" / f"{graph}.onnx"
    model = onnx.load(path, load_external_data=False)
    nodes = model.graph.node
    place, last = next((p, n) for p, n in reversed(list(enumerate(nodes))) if n.op_type == "Conv")
    result, last.output[0] = last.output[0], "before_overflow"
    large = onnx.numpy_helper.from_array(np.array(60000, np.float16), "large")
    model.graph.initializer.append(large)
    steps = ["before_overflow", *(f"overflow_{step}" for step in range(3)), result]
    added = [
        onnx.helper.make_node(kind, [before, "large"], [after])
        for kind, before, after in zip(("Mul", "Mul", "Div", "Div"), steps, steps[1:], strict=False)
    ]
    for node in reversed(added):
        nodes.insert(place + 1, node)
    path.write_bytes(model.SerializeToString())
    manifest = json.loads((bundle / MANIFEST).read_text("utf-8"))
    manifest["files"][f"graphs/{graph}.onnx"] = {"size_bytes": path.stat().st_size, "sha256": sha256_of(path)}
    (bundle / MANIFEST).write_text(json.dumps(manifest), "utf-8")


def evaluator(
    bundle: Bundle, dataset: Dataset, say: Callable[[str], None] = print, workers: int = 1
) -> Evaluator:
    engine = create_engine("onnxruntime")
    return Evaluator(
        bundle, bundle.subject(SUBJECT), dataset, engine, [clip_extractor(bundle, engine)],
        preset=PRESET, seed=SEED, workers=workers, say=say,
    )  # fmt: skip


def means(judge: Evaluator, decoded: dict[str, list[Reconstruction]]) -> dict[tuple[str, str], float]:
    conditions = judge.measure(decoded)
    return {
        (name, measure): float(np.mean(values))
        for name, condition in conditions.items()
        for scores in (condition.images, condition.captions)
        if scores is not None
        for measure, values in scores.values.items()
    }


@pytest.mark.slow
def test_ablations_of_a_bundle_whose_image_graph_overflows_score_as_in_fp32(
    phantom_bundle: Path, dataset: Dataset, tmp_path: Path, report: Callable[[str], None]
) -> None:
    convert_bundle(phantom_bundle, tmp_path / "half", precision="fp16")
    overflow(tmp_path / "half", GRAPH)
    said: list[str] = []
    exact = evaluator(Bundle.open(phantom_bundle), dataset)
    half = evaluator(Bundle.open(tmp_path / "half"), dataset, said.append)
    decoded = {
        one: judge.decode({**judge.full(), **judge.ablations()})
        for one, judge in (("fp32", exact), ("fp16", half))
    }
    assert len(decoded["fp16"]) == len(VARIANTS)
    for name, results in decoded["fp16"].items():
        # What the steps read may be to blame, too. A latent alone goes straight to its decoder: no step runs.
        fallbacks = () if name == "only Z" else ("unet_context", GRAPH)
        assert {one.fallbacks for one in results} == {fallbacks}, name
    assert all(one.fallbacks == () for results in decoded["fp32"].values() for one in results)
    assert sum(GRAPH in line and "fp32" in line for line in said) == 1, said
    want, got = means(exact, decoded["fp32"]), means(half, decoded["fp16"])
    assert want.keys() == got.keys()
    worst = max(want, key=lambda key: abs(want[key] - got[key]))
    report(f"evaluate, fp16 that overflows: {worst} is {got[worst]:.4f}, in fp32 {want[worst]:.4f}")
    for key in want:
        assert got[key] == pytest.approx(want[key], abs=NOISE), key


@pytest.mark.parametrize("workers", [1, 2])
def test_decodes_are_the_decoders_byte_for_byte(
    phantom_bundle: Path, dataset: Dataset, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so are the command's: tests/runtime/test_file_decoding.py."""
    # Evaluation lets predictions go, for the memory of thousands of decodes.
    monkeypatch.setattr(decoding, "replace", lambda result, **_: result)
    judge = evaluator(Bundle.open(phantom_bundle), dataset, workers=workers)
    decoder = Decoder.open(phantom_bundle, subject=SUBJECT, preset=PRESET, engine="onnxruntime", threads=1)
    variants: dict[str, Any] = {"decoded": {}, "without Z": {"inputs": ("image_context", "text_context")}}
    decoded = judge.decode({name: {**judge.full(), **judge.ablations()}[name] for name in variants})
    for name, options in variants.items():
        for scan, result in zip(dataset.betas, decoded[name], strict=True):
            alone = decoder.decode(np.asarray(scan, np.float32), seed=SEED, **options)
            assert result.image.tobytes() == alone.image.tobytes()
            assert (result.caption, result.tokens) == (alone.caption, alone.tokens)
            assert alone.predictions.keys() == result.predictions.keys()
            for head, values in alone.predictions.items():
                assert values.tobytes() == result.predictions[head].tobytes()

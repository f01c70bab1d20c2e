"""A subject's graph: what it computes is what the subject predicts, from the very bytes of the heads' file."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from unibrain_rt.engines import Engine, EngineError, GraphSpec, Session, create_engine
from unibrain_rt.errors import BundleError
from unibrain_rt.export.subjects.ridge import RidgeFit, fit_heads
from unibrain_rt.export.subjects.ridge.graph import OPSET, write_ridge_graph
from unibrain_rt.export.subjects.subject_writer import write_subject
from unibrain_rt.flows import INPUTS
from unibrain_rt.ridge_graph import ridge_tensors
from unibrain_rt.subject import Subject
from unibrain_rt.subject_files import GRAPH_FILE, TENSOR_FILE
from unibrain_rt.tensor_file import tensor_offsets

SCANS, VOXELS = 120, 300
SHAPES = {"image_latent": (4, 5, 5), "text_latent": (9,), "image_context": (6, 8), "text_context": (3, 8)}
FORMS: dict[str, dict[str, Any]] = {
    "int8": {},
    "float16": {"storage": "float16"},
    "float32": {"storage": "float32"},
    "exact": {"exact": True},
}
# How far apart fp32 sums of a scan's voxels are in other orders.
TOLERANCE = 3e-6


@pytest.fixture(scope="module")
def fits() -> dict[str, RidgeFit]:
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(SCANS, 20))
    voxels = latents @ rng.normal(size=(20, VOXELS)) + 2 * rng.normal(size=(SCANS, VOXELS)) + 5
    voxels[:, 7] = 3.0  # says nothing: its deviation is 0
    targets = {
        name: (latents @ rng.normal(size=(20, int(np.prod(shape)))) + 100).reshape(SCANS, *shape)
        for name, shape in SHAPES.items()
    }
    return fit_heads(voxels, targets, (10.0, 100.0))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return create_engine("onnxruntime", 1)


@pytest.fixture(params=FORMS)
def subject(request: pytest.FixtureRequest, fits: dict[str, RidgeFit], tmp_path: Path) -> Subject:
    return written(tmp_path / "sub-01", fits, **FORMS[request.param])


def written(folder: Path, fits: dict[str, RidgeFit], **options: Any) -> Subject:
    write_subject(folder, "sub-01", fits, beta_scale=1 / 300, **options)
    return Subject.open(folder)


def spec_of(subject: Subject) -> GraphSpec:
    return GraphSpec("ridge", subject.folder / GRAPH_FILE, *ridge_tensors(subject))


def scans(count: int) -> np.ndarray[Any, Any]:
    return (5 + 3 * np.random.default_rng(1).standard_normal((count, VOXELS))).astype(np.float32)


def fill(session: Session, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Give a session all but its voxels."""
    rng = np.random.default_rng(seed)
    given = {spec.name: rng.standard_normal(spec.shape).astype(np.float32) for spec in session.graph.inputs}
    for name, value in given.items():
        session.write(name, value)
    return given


def relative(found: Any, expected: Any) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_it_gives_what_the_subject_predicts(subject: Subject, engine: Engine) -> None:
    session = engine.open(spec_of(subject))
    given = fill(session)
    for scan in scans(3):
        expected = subject.predict(scan)
        session.write("voxels", subject.z_scores(scan))
        session.run()
        for flow in ("image", "text"):
            latent, context = expected[f"{flow}_latent"], expected[f"{flow}_context"]
            spread = np.abs(latent - subject._offsets[f"{flow}_latent"].target_mean.reshape(latent.shape))
            assert spread.max() > 0.1, "not the mean alone"
            assert relative(session.read(f"{flow}_latent"), latent) < TOLERANCE
            signal, noise = given[f"{flow}_start_coefficients"]
            noised = signal * latent + noise * given[f"{flow}_noise"]
            assert relative(session.read(f"noised_{flow}_latent"), noised) < TOLERANCE
            guiding = session.read(f"guiding_{flow}_context")
            np.testing.assert_array_equal(guiding[:1], given[f"unconditional_{flow}_context"])
            assert relative(guiding[1:], context) < TOLERANCE


def test_no_weight_is_stored_twice(subject: Subject) -> None:
    """All of them are external, whole tensors of the heads' file, in its types."""
    model = onnx.load(subject.folder / GRAPH_FILE, load_external_data=False)
    onnx.checker.check_model(subject.folder / GRAPH_FILE, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    offsets = tensor_offsets(subject.folder / TENSOR_FILE)
    outside = {tensor.name: tensor for tensor in model.graph.initializer if tensor.external_data}
    named = {name for name in offsets if name.partition(".")[0] in INPUTS}
    assert outside.keys() == named
    for name, tensor in outside.items():
        place = {entry.key: entry.value for entry in tensor.external_data}
        assert place["location"] == TENSOR_FILE
        assert int(place["offset"]) == offsets[name]
    assert (subject.folder / GRAPH_FILE).stat().st_size < 20_000


def test_the_same_heads_give_the_same_bytes(subject: Subject, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(subject.folder, tmp_path / "another place"))
    before = (subject.folder / GRAPH_FILE).read_bytes()
    (folder / GRAPH_FILE).unlink()
    write_ridge_graph(folder)
    assert (folder / GRAPH_FILE).read_bytes() == before
    assert str(tmp_path).encode() not in before


def test_products_are_not_of_rounded_voxels(
    fits: dict[str, RidgeFit], tmp_path: Path, engine: Engine
) -> None:
    """A runtime may take int8 weights for leave to round what they are multiplied with, too."""
    subject = written(tmp_path / "sub-01", fits)
    session = engine.open(spec_of(subject))
    fill(session)
    z = subject.z_scores(scans(1))
    z[0, 0] = 1000.0  # beside it, int8 has no digits for the others
    session.write("voxels", z)
    session.run()
    again = z * subject.voxel_std + subject.voxel_mean
    assert relative(session.read("image_latent"), subject.predict(again)["image_latent"]) < 10 * TOLERANCE


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "other heads"])
def test_a_damaged_graph_is_one_line(
    fits: dict[str, RidgeFit], tmp_path: Path, engine: Engine, damage: str
) -> None:
    subject = written(tmp_path / "sub-01", fits)
    path = subject.folder / GRAPH_FILE
    whole = path.read_bytes()
    if damage == "other heads":
        model = onnx.load(path, load_external_data=False)
        del model.graph.output[0]
        whole = model.SerializeToString()
    kinds = {"cut": whole[: len(whole) // 2], "noise": b"\xff" * 500, "empty": b"", "other heads": whole}
    path.write_bytes(kinds[damage])
    with pytest.raises(EngineError, match=re.escape("ridge.onnx: ")) as caught:
        engine.open(spec_of(subject))
    assert "\n" not in str(caught.value)


def test_heads_that_are_cut_off_are_one_line(
    fits: dict[str, RidgeFit], tmp_path: Path, engine: Engine
) -> None:
    subject = written(tmp_path / "sub-01", fits)
    path = subject.folder / TENSOR_FILE
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(EngineError, match="ridge.onnx: onnxruntime cannot load it") as caught:
        engine.open(spec_of(subject))
    assert "\n" not in str(caught.value)
    with pytest.raises(BundleError):
        write_ridge_graph(subject.folder)

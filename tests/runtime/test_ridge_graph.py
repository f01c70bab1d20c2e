"""A subject's graph on an engine: which subjects have one, what it is known by, and what it gives a decode."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unibrain_rt.bundle import Bundle, sha256_of
from unibrain_rt.engines import ahead, create_engine
from unibrain_rt.errors import BundleError, InputError
from unibrain_rt.ridge_graph import RidgeStage, ridge_graph, ridge_graphs
from unibrain_rt.subject import Subject
from unibrain_rt.subject_files import GRAPH_FILE, TENSOR_FILE

pytest.importorskip("onnxruntime")


@pytest.fixture
def bundle(tiny_template: Path) -> Bundle:
    return Bundle.open(tiny_template)


def stage(bundle: Bundle) -> RidgeStage:
    subject = bundle.subject()
    graph = ridge_graph(bundle, subject)
    assert graph is not None
    nothing = dict(zip(("image_context", "text_context"), bundle.unconditional_contexts(), strict=True))
    return RidgeStage(create_engine("onnxruntime", 1), graph, subject, nothing)


def test_it_is_known_by_the_manifests_hashes(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody hashes a large subject's heads at every decode."""
    graph = ridge_graph(bundle, bundle.subject())
    assert graph is not None
    folder = bundle.folder / "subjects" / "sub-01"
    assert graph.name == "ridge_sub-01"
    assert graph.files == {name: sha256_of(folder / name) for name in (GRAPH_FILE, TENSOR_FILE)}

    def fail(path: Path) -> str:
        raise AssertionError(f"{path} was hashed")

    monkeypatch.setattr(ahead, "_sha256", fail)
    assert ahead._files(graph) == graph.files


def test_older_subjects_have_none(tiny: Any, tiny_bundle: Path) -> None:
    (tiny_bundle / "subjects" / "sub-01" / GRAPH_FILE).unlink()
    tiny.seal(tiny_bundle)
    bundle = Bundle.open(tiny_bundle)
    assert ridge_graph(bundle, bundle.subject()) is None
    assert ridge_graphs(bundle, [bundle.subject()]) == []


def test_a_subject_of_another_place_has_none(bundle: Bundle, tmp_path: Path) -> None:
    """The manifest says nothing of its files."""
    folder = Path(shutil.copytree(bundle.folder / "subjects" / "sub-01", tmp_path / "sub-01"))
    assert ridge_graph(bundle, Subject.open(folder)) is None


def test_one_that_nobody_listed_is_refused(tiny: Any, tiny_bundle: Path) -> None:
    path = tiny_bundle / "subjects" / "sub-01" / GRAPH_FILE
    raw = path.read_bytes()
    path.unlink()
    tiny.seal(tiny_bundle)
    path.write_bytes(raw)
    with pytest.raises(BundleError, match=r"sub-01/ridge\.onnx is not among the manifest's files"):
        Bundle.open(tiny_bundle)


def test_a_run_is_all_that_a_decode_starts_from(bundle: Bundle, tiny: Any) -> None:
    ridge, subject = stage(bundle), bundle.subject()
    levels = {"image": np.array([0.6, 0.8], np.float32), "text": np.array([1.0, 0.0], np.float32)}
    noise = {
        flow: np.random.default_rng(1).standard_normal((1, *subject.head_shape(f"{flow}_latent")), np.float32)
        for flow in levels
    }
    program = create_engine("onnxruntime", 1).program([ridge.call(levels)])
    told: list[int] = []
    for number in range(2):
        expected = {name: head[0] for name, head in subject.predict(tiny.scan(number)).items()}
        z = subject.z_scores(tiny.scan(number))
        ridge.load(z, noise)
        program.start(told.append)
        program.finish()
        found = ridge.predictions(z)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5)
        for flow, (signal, spread) in levels.items():
            noised = signal * expected[f"{flow}_latent"] + spread * noise[flow][0]
            np.testing.assert_allclose(
                ridge.session.read(f"noised_{flow}_latent")[0], noised, rtol=1e-4, atol=1e-5
            )
    assert told == [], "it is no denoising step"


def test_what_is_not_finite_is_whose_fault_it_is(bundle: Bundle) -> None:
    ridge, subject = stage(bundle), bundle.subject()
    z = np.full((1, subject.voxels), 3e38, np.float32)
    ridge.load(z, {})
    ridge.session.run()
    with pytest.raises(InputError, match="standard deviations from those of"):
        ridge.predictions(z)
    with pytest.raises(BundleError, match="gives values that are not finite"):
        ridge.predictions(np.zeros_like(z))

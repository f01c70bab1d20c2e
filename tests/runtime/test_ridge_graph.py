"""A subject's graph on an engine: which subjects have one, what it is known by, and what it gives a decode."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from unibrain_rt.bundle import Bundle, sha256_of
from unibrain_rt.engines import ahead
from unibrain_rt.errors import BundleError
from unibrain_rt.ridge_graph import ridge_graph, ridge_graphs
from unibrain_rt.subject import Subject
from unibrain_rt.subject_files import GRAPH_FILE, TENSOR_FILE

pytest.importorskip("onnxruntime")


@pytest.fixture
def bundle(tiny_template: Path) -> Bundle:
    return Bundle.open(tiny_template)


def test_it_is_known_by_the_manifests_hashes(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody hashes a large subject's heads at every decode."""
    graph = ridge_graph(bundle, bundle.subject())
    assert graph is not None
    folder = bundle.folder / "subjects" / "sub-01"
    assert graph.name == "ridge_sub-01"
    assert graph.files == {name: sha256_of(folder / name) for name in (GRAPH_FILE, TENSOR_FILE)}

    def fail(path: Path) -> str:
        raise AssertionError(f"{path} was hashed")

    monkeypatch.setattr(ahead, "file_sha256", fail)
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

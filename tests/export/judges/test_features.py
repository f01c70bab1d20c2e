from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from unibrain_rt.bundle import Bundle, sha256_of
from unibrain_rt.engines import Engine, EngineError
from unibrain_rt.errors import InputError
from unibrain_rt.export.judges.features import (
    BATCH,
    FeatureFile,
    clip_extractor,
    network_extractor,
    open_extractors,
)
from unibrain_rt.export.subjects.datasets.dataset import resized
from unibrain_rt.export.subjects.encoders import Encoder, clip_input

SIDE = 8
WEIGHTS = np.random.default_rng(0).normal(size=(3 * SIDE * SIDE, 5)).astype(np.float32)


def network(folder: Path, layout: str = "NCHW") -> Path:
    """A linear feature network of 5 features in a (5, 1) map, and its description."""
    sides = (3, SIDE, SIDE) if layout == "NCHW" else (SIDE, SIDE, 3)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["pixels"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["row"]),
            helper.make_node("Unsqueeze", ["row", "axis"], ["features"]),
        ],
        "linear",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", *sides])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 5, 1])],
        [numpy_helper.from_array(WEIGHTS, "weights"), numpy_helper.from_array(np.array([2]), "axis")],
    )
    path = folder / "linear.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    file = FeatureFile(
        "Linear",
        "distance",
        path,
        sha256_of(path),
        SIDE,
        (0.5, 0.25, 0.0),
        (0.5, 1.0, 2.0),
        (5, 1),
        layout=layout,
        provenance={"weights": "made up"},
    )
    (folder / "linear.json").write_text(json.dumps(file.record()), "utf-8")
    return folder / "linear.json"


def by_hand(images: np.ndarray, layout: str) -> np.ndarray:
    pixels = (images / 255 - [0.5, 0.25, 0.0]) / [0.5, 1.0, 2.0]
    return (pixels.transpose(0, 3, 1, 2) if layout == "NCHW" else pixels).reshape(len(images), -1) @ WEIGHTS


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_features_are_the_networks_of_normalised_pixels(layout: str, engine: Engine, tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (BATCH + 3, SIDE, SIDE, 3), dtype=np.uint8)
    extractor = network_extractor(FeatureFile.load(network(tmp_path, layout)), engine)
    assert (extractor.name, extractor.measure) == ("Linear", "distance")
    found = extractor.features(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_hand(images, layout), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(extractor.features(images[-1:]), found[-1:])


def test_pictures_of_other_sizes_are_resized(engine: Engine, tmp_path: Path) -> None:
    extractor = network_extractor(FeatureFile.load(network(tmp_path)), engine)
    small = np.random.default_rng(2).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
    # Bilinear halving of doubled pixels gives the pixels back but for the neighbours that antialiasing mixes in.
    flat = np.repeat(np.repeat(small[:, :1, :1], SIDE, axis=1), SIDE, axis=2)
    large = np.repeat(np.repeat(flat, 2, axis=1), 2, axis=2)
    np.testing.assert_allclose(extractor.features(large), extractor.features(flat), atol=1e-4)


def test_a_description_survives_the_way_to_json_and_back(tmp_path: Path) -> None:
    path = network(tmp_path)
    file = FeatureFile.load(path)
    assert file.record() == json.loads(path.read_text("utf-8"))
    assert file.graph == tmp_path / "linear.onnx"


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def apply(path: Path) -> None:
        value = json.loads(path.read_text("utf-8"))
        change(value)
        path.write_text(json.dumps(value), "utf-8")

    return apply


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.write_text("{", "utf-8"), "not valid JSON"),
        (lambda path: path.write_text("[]", "utf-8"), "an object is expected"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "not valid JSON"),
        (changed(lambda value: value.update(schema_version=9)), "schema version 9"),
        (changed(lambda value: value.pop("output")), "output is missing"),
        (changed(lambda value: value["input"].pop("side")), "side is missing"),
        (
            changed(lambda value: value.update(measure="taste")),
            "measure must be one of identification, distance, found 'taste'",
        ),
        (
            changed(lambda value: value["input"].update(side=0)),
            "side must be whole, from 1 to 1048576, found 0",
        ),
        (
            changed(lambda value: value["input"].update(side=True)),
            "side must be whole, from 1 to 1048576, found True",
        ),
        (changed(lambda value: value["input"].update(std=[1, 0, 1])), "std must not be 0"),
        (changed(lambda value: value["input"].update(mean=[1, 2])), "mean must be a list of 3 numbers"),
        (
            changed(lambda value: value["input"].update(mean=[1, 2, float("nan")])),
            "mean must be a finite number, found nan",
        ),
        (
            changed(lambda value: value["graph"].update(file="../linear.onnx")),
            "file must be the name of a file beside it",
        ),
        (changed(lambda value: value.update(graph=[])), "graph: an object is expected, found list"),
        (changed(lambda value: value.update(name="a\nb")), "name must be a text"),
        (lambda path: (path.parent / "linear.onnx").unlink(), "linear.json names it"),
        (
            lambda path: (path.parent / "linear.onnx").write_bytes(b"x"),
            "not the file that linear.json tells of",
        ),
    ],
)
def test_a_damaged_description_is_one_line(
    damage: Callable[[Path], object], problem: str, tmp_path: Path
) -> None:
    path = network(tmp_path)
    damage(path)
    with pytest.raises(InputError, match=problem) as raised:
        FeatureFile.load(path)
    assert "\n" not in str(raised.value)


def test_a_graph_that_is_not_as_described_is_refused(engine: Engine, tmp_path: Path) -> None:
    path = network(tmp_path)
    changed(lambda value: value["output"].update(shape=[4, 1]))(path)
    with pytest.raises(EngineError, match="'features' is not as"):
        network_extractor(FeatureFile.load(path), engine)


def test_the_bundles_clip_gives_its_contexts_first_tokens(
    bundle: Bundle, engine: Engine, pictures: np.ndarray
) -> None:
    found = clip_extractor(bundle, engine).features(pictures)
    encoder = Encoder(bundle.graph("clip_image"), engine)
    contexts = encoder(clip_input(resized(pictures, encoder.size)))
    np.testing.assert_array_equal(found, contexts[:, 0])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-4)


def test_networks_are_opened_once_by_name(bundle: Bundle, engine: Engine, tmp_path: Path) -> None:
    path = network(tmp_path)
    assert [extractor.name for extractor in open_extractors(bundle, [path], engine)] == ["CLIP", "Linear"]
    with pytest.raises(InputError, match="a second network called Linear"):
        open_extractors(bundle, [path, path], engine)

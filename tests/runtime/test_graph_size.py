"""How much memory a decode takes: as much as onnx itself counts in the graphs' files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unibrain_rt import Decoder
from unibrain_rt.bundle import Bundle
from unibrain_rt.diagnosis import WARNING, diagnose
from unibrain_rt.errors import BundleError
from unibrain_rt.graph_size import DecodeMemory, costs_of, decode_memory
from unibrain_rt.sessions import decode_graphs


def test_weights_are_those_that_onnx_reads(phantom_bundle: Path) -> None:
    onnx = pytest.importorskip("onnx")
    bundle, outside = Bundle.open(phantom_bundle), 0
    memory = decode_memory(bundle, decode_graphs(bundle, ["paper"]))
    for name, found in memory.graphs.items():
        path = bundle.graph(name).path
        model = onnx.load(path, load_external_data=False)
        lengths = [
            int(entry.value)
            for tensor in model.graph.initializer
            for entry in tensor.external_data
            if entry.key == "length"
        ]
        outside += sum(lengths)
        # What is no weight in the file is little.
        whole = path.stat().st_size + sum(lengths)
        assert 0.9 * whole < found <= whole, name
    assert outside > 0


def test_a_decode_is_the_sum_of_its_parts(tiny_template: Path) -> None:
    bundle = Bundle.open(tiny_template)
    memory = decode_memory(bundle, decode_graphs(bundle, ["paper"]))
    assert set(memory.graphs) == {
        "unet_context", "unet_time", "unet_image_step", "unet_text_step", "autokl_decode", "optimus_decode",
    }  # fmt: skip
    heads = tiny_template / "subjects" / "sub-01" / "heads.safetensors"
    assert memory.heads_bytes == heads.stat().st_size
    # Of autokl_decode alone: a latent (1, 4, 4, 4) and an image (1, 3, 8, 8) in fp32.
    alone = decode_memory(bundle, [(bundle.graph("autokl_decode"), 1)])
    assert alone.buffers_bytes == 4 * (4 * 4 * 4 + 3 * 8 * 8)


def test_low_memory_counts_the_largest_graph_alone() -> None:
    held = {"a": 20, "b": 200}
    memory = DecodeMemory({"a": 100, "b": 30}, held, buffers_bytes=7, heads_bytes=1000)
    assert memory.needed_bytes() == 1357
    assert memory.needed_bytes(low_memory=True) == 1237
    assert memory.needed_bytes(heads=False) == 357
    assert memory.needed_bytes(low_memory=True, heads=False) == 237


@pytest.fixture
def copied(phantom_bundle: Path, tmp_path: Path) -> Path:
    """The phantom's manifest and files, to be changed."""
    return Path(shutil.copytree(phantom_bundle, tmp_path / "phantom"))


def change_graphs(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    for graph in manifest["graphs"].values():
        change(graph)
    (bundle / "bundle.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "older", [lambda graph: graph.pop("costs"), lambda graph: graph["costs"].pop("held_numbers")]
)
def test_a_bundle_from_before_costs_decodes_and_says_what_to_do(
    copied: Path, older: Callable[[dict[str, Any]], object]
) -> None:
    change_graphs(copied, older)
    bundle = Bundle.open(copied)
    with pytest.raises(BundleError, match=r"does not tell what its graphs cost.*export the bundle again"):
        decode_memory(bundle, decode_graphs(bundle, ["paper"]))
    with pytest.raises(BundleError, match="export the bundle again"):
        costs_of(bundle, "unet_image_step")
    decoder = Decoder.open(copied, preset="realtime")
    assert decoder.decode(np.zeros(decoder.subject.voxels, np.float32)).caption
    (check,) = [check for check in diagnose(copied).checks if check.name == "memory"]
    assert (check.state, check.cure) == (WARNING, "export the bundle again")


@pytest.mark.parametrize(
    "costs",
    [
        {"flops": -1},
        {"flops": "many"},
        {"flops": None},
        {"operators": {"Conv": 0.5}},
        {"operators": []},
        {"held_numbers": -1},
        {"held_numbers": "few"},
    ],
)
def test_damaged_costs_are_one_line(copied: Path, costs: dict[str, Any]) -> None:
    change_graphs(copied, lambda graph: graph["costs"].update(costs))
    with pytest.raises(BundleError, match=r"costs.*export the bundle again"):
        Bundle.open(copied)

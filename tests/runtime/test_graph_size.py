"""How much memory a decode takes: as much as onnx itself counts in the graphs' files."""

from __future__ import annotations

from pathlib import Path

import pytest

from unibrain_rt.bundle import Bundle
from unibrain_rt.errors import BundleError
from unibrain_rt.graph_size import DecodeMemory, decode_memory, weight_bytes
from unibrain_rt.sessions import decode_graphs


def test_weights_are_those_that_onnx_reads(phantom_bundle: Path) -> None:
    onnx = pytest.importorskip("onnx")
    outside = 0
    for path in sorted((phantom_bundle / "graphs").glob("*.onnx")):
        model = onnx.load(path, load_external_data=False)
        lengths = [
            int(entry.value)
            for tensor in model.graph.initializer
            for entry in tensor.external_data
            if entry.key == "length"
        ]
        outside += sum(lengths)
        assert weight_bytes(path) == path.stat().st_size + sum(lengths), path.name
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
    memory = DecodeMemory({"a": 100, "b": 30}, buffers_bytes=7, heads_bytes=1000)
    assert memory.needed_bytes() == 1137
    assert memory.needed_bytes(low_memory=True) == 1107
    assert memory.needed_bytes(heads=False) == 137
    assert memory.needed_bytes(low_memory=True, heads=False) == 107


def test_what_is_no_onnx_is_a_broken_bundle(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(b"no ONNX at all")
    with pytest.raises(BundleError, match=r"graph\.onnx: cannot be read as ONNX .*export the bundle again"):
        weight_bytes(path)
    with pytest.raises(BundleError):
        weight_bytes(tmp_path / "none.onnx")

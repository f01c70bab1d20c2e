"""FLOPs against torch's own counter on the same sizes, and bytes of weights against the files that hold them."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

import onnx_ir as ir  # noqa: E402
from hand_graphs import F, save  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from unibrain_rt.bundle import Bundle  # noqa: E402
from unibrain_rt.engines.graph_costs import GraphCosts  # noqa: E402
from unibrain_rt.engines.onnxruntime_cuda.convolutions import convolves_in_half  # noqa: E402
from unibrain_rt.export.bundles.architecture import Architecture  # noqa: E402
from unibrain_rt.export.bundles.conversion import convert_bundle  # noqa: E402
from unibrain_rt.export.bundles.costs import count_costs  # noqa: E402

ALIGNMENT = 4096
FREE = 2
"""Size of free axes, as in the exporter's examples."""


@pytest.fixture(scope="module")
def phantom() -> Bundle:
    return Bundle.open()


def costs_of(bundle: Bundle, name: str) -> GraphCosts:
    """As the manifest tells them."""
    costs = bundle.graph(name).costs
    assert costs is not None
    return costs


def external_spans(path: Path) -> dict[str, list[tuple[int, int]]]:
    """By file, from where to where a graph's weights lie in it, as onnx reads it."""
    found: dict[str, list[tuple[int, int]]] = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        if tensor.external_data:
            entry = {pair.key: pair.value for pair in tensor.external_data}
            start = int(entry["offset"])
            found.setdefault(entry["location"], []).append((start, start + int(entry["length"])))
    return found


def joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order, with those that meet or overlap made one."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def test_the_shipped_manifest_tells_what_is_counted(phantom: Bundle) -> None:
    for name, graph in phantom.graphs.items():
        assert costs_of(phantom, name) == count_costs(ir.load(graph.path)), name


def torch_graphs(bundle: Bundle) -> dict[str, Any]:
    """By graph, the torch module and example inputs that it was exported from, with random weights."""
    import torch

    from unibrain_rt.export.bundles import graphs
    from unibrain_rt.export.bundles.models.autokl import build_autokl
    from unibrain_rt.export.bundles.models.clip import build_clip_image, build_clip_text
    from unibrain_rt.export.bundles.models.optimus import OptimusDecoder, OptimusEncode
    from unibrain_rt.export.bundles.models.unet import FourFlowUNet

    sizes = Architecture.from_mapping(bundle.architecture)
    torch.manual_seed(0)
    unet, vae = FourFlowUNet(sizes.unet), build_autokl(sizes.autokl)
    slots = bundle.graph("optimus_decode").tensor("key_cache").sized(1)[2]
    tokens = bundle.graph("optimus_encode").tensor("input_ids").sized(1)[1]
    made = [
        graphs.unet_context(unet, sizes),
        graphs.unet_time(unet),
        graphs.unet_step(unet, sizes, "image"),
        graphs.unet_step(unet, sizes, "text"),
        graphs.autokl_encode(vae, sizes),
        graphs.autokl_decode(vae, sizes),
        graphs.clip_image(build_clip_image(sizes.clip), sizes),
        graphs.clip_text(build_clip_text(sizes.clip), sizes),
        graphs.optimus_encode(OptimusEncode(sizes.optimus), tokens),
        graphs.optimus_decode(OptimusDecoder(sizes.optimus), sizes.optimus.latent_size, slots),
    ]
    return {graph.name: graph for graph in made}


def test_flops_are_torchs_of_every_graph(phantom: Bundle) -> None:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    made = torch_graphs(phantom)
    assert made.keys() == phantom.graphs.keys()
    for name, graph in made.items():
        # Torch's counter passes over the fused attention of CPUs; that of plain products it counts.
        plain = sdpa_kernel(SDPBackend.MATH)
        with torch.inference_mode(), plain, FlopCounterMode(display=False) as counter:
            graph.module.eval()(*graph.example.values())
        expected = counter.get_total_flops()
        if name == "unet_time":
            # The module embeds the timesteps once for either flow; the exporter finds that it is the same.
            embed = graph.module.unet.image.time_embed
            expected -= sum(2 * FREE * layer.weight.numel() for layer in embed if hasattr(layer, "weight"))
        counted = costs_of(phantom, name).sized(FREE if graph.batch else 1).flops
        assert counted == pytest.approx(expected, rel=0.02), name


def test_stored_bytes_are_those_that_onnx_finds_in_the_file(phantom: Bundle) -> None:
    for name, graph in phantom.graphs.items():
        model = onnx.load(graph.path, load_external_data=False)
        inline = sum(
            len(each.raw_data) or len(onnx.numpy_helper.to_array(each).tobytes())
            for each in model.graph.initializer
            if not each.external_data
        )
        spans = [joined(found) for found in external_spans(graph.path).values()]
        external = sum(end - start for found in spans for start, end in found)
        assert costs_of(phantom, name).stored_bytes == inline + external, name


def test_together_the_graphs_read_every_byte_of_the_weights_files(phantom: Bundle) -> None:
    spans: dict[Path, list[tuple[int, int]]] = {}
    for graph in phantom.graphs.values():
        for name, found in external_spans(graph.path).items():
            spans.setdefault(graph.path.parent / name, []).extend(found)
    assert spans
    for path, found in spans.items():
        content, parts = path.read_bytes(), joined(found)
        left = bytearray(content)
        for start, end in parts:
            assert start % ALIGNMENT == 0
            left[start:end] = bytes(end - start)
        # Nothing is left but what tensors are moved up by, to begin where pages do, up to the file's last byte.
        assert not any(left)
        assert parts[-1][1] == len(content)
        padding = sum(start - end for (_, end), (start, _) in pairwise(parts))
        assert sum(end - start for start, end in parts) + padding == len(content)
        assert all(start - end < ALIGNMENT for (_, end), (start, _) in pairwise(parts))


def test_weights_stored_in_half_are_read_in_the_width_that_is_computed_in(phantom: Bundle) -> None:
    work = costs_of(phantom, "unet_image_step")
    assert phantom.precision == "fp32-half-weights"
    assert work.bytes_per_number == 4
    # All but a few of them are half as wide in the file.
    assert work.weight_bytes == pytest.approx(2 * work.stored_bytes, rel=0.02)


def test_a_small_graph_counted_by_hand(tmp_path: Path) -> None:
    table, weight = np.zeros((50, 4), np.float32), np.zeros((4, 5), np.float32)
    save(
        tmp_path / "small.onnx",
        [("Gather", ["table", "ids"], ["rows"]), ("MatMul", ["rows", "weight"], ["y"])],
        {"ids": ("int64", (3,))},
        {"y": (F, (3, 5))},
        {"table": table, "weight": weight},
    )
    work = count_costs(ir.load(tmp_path / "small.onnx"))
    assert work.flops == 2 * 3 * 5 * 4
    # Of the table only the rows that are looked up.
    assert work.weight_bytes == 4 * (3 * 4 + 4 * 5)
    assert work.activation_bytes == 4 * (3 * 4 + 3 * 5)
    assert work.stored_bytes == 4 * (50 * 4 + 4 * 5)
    assert work.held_bytes == 4 * 3 * 4, "the rows alone: y is an output"


def test_what_is_held_at_once(tmp_path: Path) -> None:
    """a and b while c is made of them, then c and d; never all four."""
    save(
        tmp_path / "held.onnx",
        [
            ("Abs", ["x"], ["a"]),
            ("Neg", ["x"], ["b"]),
            ("Concat", ["a", "b"], ["c"]),
            ("Abs", ["c"], ["d"]),
            ("Add", ["c", "d"], ["y"]),
        ],
        {"x": (F, (1, 10))},
        {"y": (F, (1, 20))},
        attributes={"Concat": {"axis": 1}},
    )
    work = count_costs(ir.load(tmp_path / "held.onnx"))
    assert work.held_numbers == 10 + 10 + 20
    assert work.sized(3).held_numbers == 120


def test_the_work_grows_with_the_free_axis(phantom: Bundle) -> None:
    one = costs_of(phantom, "clip_image")
    four = one.sized(4)
    assert four.flops == pytest.approx(4 * one.flops, rel=1e-3)
    # All but the embedding of the class, which is repeated.
    assert four.weight_bytes == pytest.approx(one.weight_bytes, rel=1e-2)
    assert four.activation_bytes == pytest.approx(4 * one.activation_bytes, rel=1e-2)


def test_what_cannot_be_counted_says_so(tmp_path: Path) -> None:
    save(
        tmp_path / "odd.onnx",
        [("NonZero", ["x"], ["places"])],
        {"x": (F, (3,))},
        {"places": ("int64", (1, "n"))},
    )
    # Only what a product would need of it has to be known.
    assert count_costs(ir.load(tmp_path / "odd.onnx")).flops == 0
    save(
        tmp_path / "odder.onnx",
        [("NonZero", ["x"], ["places"]), ("MatMul", ["places", "w"], ["y"])],
        {"x": (F, (3,)), "w": ("int64", (3, 2))},
        {"y": ("int64", (1, 2))},
    )
    with pytest.raises(ValueError, match="the shape of places cannot be told beforehand"):
        count_costs(ir.load(tmp_path / "odder.onnx"))


def test_operators_are_onnxs_nodes(phantom: Bundle) -> None:
    for name, graph in phantom.graphs.items():
        nodes = onnx.load(graph.path, load_external_data=False).graph.node
        assert costs_of(phantom, name).operators == Counter(node.op_type for node in nodes), name


def test_a_bundle_in_half_tells_which_graphs_convolve_in_it(phantom: Bundle, tmp_path: Path) -> None:
    """ONNX Runtime is told by the costs alone; here the types are looked up."""
    convert_bundle(phantom.folder, tmp_path / "half", precision="fp16")
    half = Bundle.open(tmp_path / "half")
    seen = []
    for graph in half.graphs.values():
        for form in (graph, graph.flavoured("cuda"), graph.in_fp32()):
            nodes = list(ir.load(form.path).graph)
            assert form.costs is not None
            if not form.path.name.endswith(".fp32.onnx"):  # a twin widens its weights by more nodes
                assert form.costs.operators == Counter(node.op_type for node in nodes), form.path.name
            convolutions = [node for node in nodes if node.op_type.endswith("Conv")]
            weights = {node.inputs[1].dtype for node in convolutions}
            assert convolves_in_half(form.costs) == (ir.DataType.FLOAT16 in weights), form.path.name
            seen.append(convolves_in_half(form.costs))
    assert set(seen) == {True, False}

"""How fast the decode could be: arithmetic and weights of every graph, at measured rates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from unibrain_rt.benchmarks.whole_decodes import FLOWS, Scan, TorchVariant
from unibrain_rt.bundle import Bundle
from unibrain_rt.engines.onnx_file import read_onnx


def roofline(
    variant: TorchVariant, bundle: Bundle, scan: Scan, peaks: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """By graph: runs in a decode, FLOPs and weights of a run, milliseconds of all runs at the measured rates."""
    from torch.utils.flop_counter import FlopCounterMode

    works: dict[str, tuple[int, Callable[[], Any]]] = {
        f"unet_{flow}_step": (len(scan.tables[flow].timesteps), partial(variant.step, flow, scan))
        for flow in FLOWS
    }
    with FlopCounterMode(display=False) as counter:
        variant.decode(scan)
    everything, found = counter.get_total_flops(), {}
    for name, (runs, work) in works.items():
        with FlopCounterMode(display=False) as counter:
            work()
        found[name] = _bound(runs, counter.get_total_flops(), bundle, [name], peaks)
    # What is left is run once, but for the tokens, whose arithmetic is small beside their weights.
    left = everything - sum(entry["runs"] * entry["flops"] for entry in found.values())
    found["optimus_decode"] = _bound(scan.tokens, 0, bundle, ["optimus_decode"], peaks)
    found["unet_context and autokl_decode"] = _bound(
        1, left, bundle, ["unet_context", "autokl_decode"], peaks
    )
    return found


def _bound(
    runs: int, flops: int, bundle: Bundle, graphs: Sequence[str], peaks: Mapping[str, float]
) -> dict[str, float]:
    size = sum(weights_bytes(bundle.graph(name).path) for name in graphs)
    seconds = max(flops / peaks["flops"], size / peaks["bytes"])
    return {"runs": runs, "flops": flops, "weights_bytes": size, "milliseconds": 1000 * runs * seconds}


def weights_bytes(path: Path) -> int:
    """Bytes of a graph's weights, wherever they are stored."""
    return sum(tensor.size_bytes for tensor in read_onnx(path).graph.initializers)

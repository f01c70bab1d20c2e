"""How fast the decode could be: every graph's arithmetic and bytes at measured rates, nothing run at the same time."""

from __future__ import annotations

from collections.abc import Mapping

from unibrain_rt.benchmarks.bench.counting import count_work
from unibrain_rt.benchmarks.bench.roofline import StageWork
from unibrain_rt.benchmarks.whole_decodes import FLOWS, Scan
from unibrain_rt.bundle import Bundle


def roofline(bundle: Bundle, scan: Scan, peaks: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """By graph: runs in a decode, FLOPs and weights of a run, milliseconds of all runs at the measured rates."""
    runs = {f"unet_{flow}_step": len(scan.tables[flow].timesteps) for flow in FLOWS}
    runs |= {"unet_context": 1, "autokl_decode": 1, "optimus_decode": scan.tokens}
    found = {}
    for name, count in runs.items():
        stage = StageWork(name, name, count, count_work(bundle.graph(name).path))
        found[name] = {
            "runs": count,
            "flops": stage.work.flops,
            "weights_bytes": stage.work.weight_bytes,
            "milliseconds": stage.limit_ms(peaks["flops"], peaks["bytes"]),
        }
    return found

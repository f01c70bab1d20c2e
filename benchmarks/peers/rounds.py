"""One guided dual-context step, in every implementation, in interleaved rounds.

Every implementation is loaded once in a process of its own. In a round each variant runs one step, in an
order that turns at every round, so that whatever else the machine does falls on all alike; ratios are taken
within a round. Where not all fit into memory together, they are measured in groups, each beside the first
peer, which is in all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from unibrain_rt.benchmarks import machine
from unibrain_rt.benchmarks.inputs import Float, step_inputs
from unibrain_rt.benchmarks.peers.peer import Source, Work
from unibrain_rt.benchmarks.peers.registry import peer_class
from unibrain_rt.benchmarks.peers.workers import Pool, Worker
from unibrain_rt.benchmarks.processes import WorkerError
from unibrain_rt.engines.host import usable_cores
from unibrain_rt.export.bundles.architecture import Architecture

_log = logging.getLogger(__name__)

Round = dict[str, dict[str, float]]
"""By variant, say ``torch/whole``: wall and processor seconds of one step."""
REFERENCE = "torch/whole"
# Name, slower, faster: how many times faster the second is.
RATIOS = (
    ("ONNX Runtime partitioned over torch whole", "torch/whole", "onnxruntime/partitioned"),
    ("ONNX Runtime partitioned over diffusers whole", "diffusers/whole", "onnxruntime/partitioned"),
    (
        "engine alone: ONNX Runtime over torch, both partitioned",
        "torch/partitioned",
        "onnxruntime/partitioned",
    ),
    ("engine alone: ONNX Runtime over torch, both whole", "torch/whole", "onnxruntime/whole"),
    ("partition alone, in torch", "torch/whole", "torch/partitioned"),
    ("partition alone, in ONNX Runtime", "onnxruntime/whole", "onnxruntime/partitioned"),
    ("our module over diffusers, both whole", "diffusers/whole", "torch/whole"),
    ("ONNX Runtime fp32 over fp16", "onnxruntime-fp16/partitioned", "onnxruntime/partitioned"),
    ("OpenVINO over ONNX Runtime fp32", "onnxruntime/partitioned", "openvino/partitioned"),
    ("OpenVINO from fp16 over ONNX Runtime fp32", "onnxruntime/partitioned", "openvino-fp16/partitioned"),
)
_LIBRARIES_BYTES = 0.75 * 2**30
# What a peer takes for each byte of fp32 weights: ONNX Runtime packs weights anew for its kernels, and
# computes fp16 in fp32 on a CPU; OpenVINO packs them too, and keeps the file mapped beside.
_FACTORS = {
    "onnxruntime": 1.25, "onnxruntime-fp16": 1.75,
    **dict.fromkeys(("openvino", "openvino-fp32", "openvino-bf16", "openvino-fp16"), 1.2),
    # From fp32 to half of it, while both are there; a compiler packs the weights anew.
    **dict.fromkeys(("torch-bf16", "diffusers-bf16"), 1.5),
    **dict.fromkeys(("torch-compiled", "torch-bf16-compiled", "diffusers-compiled", "diffusers-bf16-compiled"), 2.0),
}  # fmt: skip
_SHARE_OF_AVAILABLE = 0.9


def measure_flow(
    flow: Work,
    checkpoint: Path,
    bundles: Mapping[str, Path],
    *,
    config: Path | None = None,
    peers: Sequence[str] = ("onnxruntime", "torch", "diffusers"),
    rounds: int = 5,
    threads: int | None = None,
    budget: int | None = None,
) -> dict[str, Any]:
    """Measure a step of one flow, or another of `peer.WORKS`. A peer that cannot run here is left out, and why is
    told.

    Args:
        bundles: by peer, the bundle exported from ``checkpoint`` that an engine runs.
        peers: what to measure; the first is loaded all the time.
        rounds: that are counted; one before them warms up and is reported as each variant's first step.
        budget: bytes that all workers together may take; by default nine tenths of the memory that is free.

    Raises:
        WorkerError: an implementation failed.
    """
    threads, budget = (
        threads or usable_cores(),
        budget or int(_SHARE_OF_AVAILABLE * machine.available_bytes()),
    )
    source = Source(flow, threads, checkpoint, config)
    load = machine.load_average()
    with Worker("torch", source) as worker:
        weights = int(worker.ask("weights")["bytes"])
    architecture = _architecture(checkpoint, config)
    needs = {peer: _need(peer, weights) for peer in peers}
    result: dict[str, Any] = {
        "flow": flow,
        "threads": threads,
        "timestep": step_inputs(architecture, flow).timestep if flow in ("image", "text") else None,
        "load_average_before": load,
        "step_weights_bytes": weights,
        "budget_bytes": budget,
        "estimated_needs_bytes": needs,
        "peers": {},
        "groups": [],
    }
    outputs: dict[str, Float] = {}
    with Pool({peer: replace(source, bundle=bundles.get(peer)) for peer in peers}) as pool:
        for group in group_peers(peers, needs, budget):
            told = ", ".join(f"{peer} about {needs[peer] / 2**30:.1f} GiB" for peer in group)
            _log.info(f"{flow} flow, {budget / 2**30:.1f} GiB to use: {told}")
            for worker in pool.keep(group):
                try:
                    result["peers"][worker.peer] = _load(worker)
                except WorkerError as error:
                    if error.exit_code == 1:
                        raise
                    result.setdefault("left_out", {})[worker.peer] = str(error)
                    pool.drop(worker.peer)
                    _log.info(f"{worker.peer}: left out: {error}")
            measured = _run_rounds(flow, pool.workers, rounds, outputs, result["peers"])
            result["groups"].append({"peers": list(pool.workers), "rounds": measured})
            for peer, worker in pool.workers.items():
                result["peers"][peer] |= _memory(worker)
    result["relative_errors"] = relative_errors(outputs)
    return {**result, **summarise([group["rounds"] for group in result["groups"]])}


def group_peers(peers: Sequence[str], needs: Mapping[str, int], budget: int) -> list[list[str]]:
    """Peers that are measured together: as many as fit beside the first; those that never do are measured
    alone."""
    first, groups, alone = peers[0], [[peers[0]]], []
    for peer in peers[1:]:
        if needs[first] + needs[peer] > budget:
            alone.append([peer])
        elif sum(needs[member] for member in groups[-1]) + needs[peer] <= budget:
            groups[-1].append(peer)
        else:
            groups.append([first, peer])
    return groups + alone


def summarise(groups: Iterable[Sequence[Round]]) -> dict[str, Any]:
    """Median, smallest and largest of every variant's seconds, and of every ratio within a round."""
    every = [one for rounds in groups for one in rounds]
    variants = dict.fromkeys(variant for one in every for variant in one)
    ratios = {
        name: [one[slow]["seconds"] / one[fast]["seconds"] for one in every if slow in one and fast in one]
        for name, slow, fast in RATIOS
    }
    return {
        "seconds": {v: _spread([one[v]["seconds"] for one in every if v in one]) for v in variants},
        "cpu_seconds": {v: _spread([one[v]["cpu_seconds"] for one in every if v in one]) for v in variants},
        "ratios": {name: _spread(values) for name, values in ratios.items() if values},
    }


def relative_errors(outputs: Mapping[str, Float]) -> dict[str, float]:
    """Relative L2 distance of every variant's next latent to ``REFERENCE``'s, or to the first one's if it is
    not there."""
    reference = outputs.get(REFERENCE, next(iter(outputs.values()))).astype(np.float64)
    norm = np.linalg.norm(reference)
    return {variant: float(np.linalg.norm(output - reference) / norm) for variant, output in outputs.items()}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values), "rounds": len(values)}


def _need(peer: str, weights: int) -> int:
    """An estimate of a worker's memory in bytes."""
    return int(_FACTORS.get(peer, 1.0) * weights + _LIBRARIES_BYTES)


def _architecture(checkpoint: Path, config: Path | None) -> Architecture:
    own = checkpoint / "config.json"
    path = config or (own if own.is_file() else None)
    return Architecture.load(path) if path else Architecture()


def _load(worker: Worker) -> dict[str, Any]:
    worker.memory.stage = "load"
    loaded = worker.ask("load")
    worker.memory.sample()
    worker.memory.stage = "steps"
    _log.info(f"{worker.peer}: loaded in {loaded['seconds']:.1f} s")
    return {"load_seconds": loaded["seconds"], "after_load": worker.ask("memory"), "first_step_seconds": {}}


def _run_rounds(
    flow: Work,
    workers: Mapping[str, Worker],
    rounds: int,
    outputs: dict[str, Float],
    reports: Mapping[str, Any],
) -> list[Round]:
    order = [(peer, variant) for peer in workers for variant in peer_class(peer, flow).variants]
    measured: list[Round] = []
    for number in range(rounds + 1):
        one: Round = {}
        for peer, variant in order if number % 2 == 0 else reversed(order):
            one[f"{peer}/{variant}"] = workers[peer].ask("step", variant=variant)
            if number == 0:
                reports[peer]["first_step_seconds"].setdefault(variant, one[f"{peer}/{variant}"]["seconds"])
                outputs[f"{peer}/{variant}"] = workers[peer].output()
        if number > 0:
            measured.append(one)
        told = ", ".join(f"{variant} {one[variant]['seconds']:.3f}" for variant in sorted(one))
        _log.info(f"{'warm-up' if number == 0 else f'round {number}'}: {told} s")
    return measured


def _memory(worker: Worker) -> dict[str, Any]:
    worker.memory.sample()
    return {
        "peak_rss_bytes": worker.ask("memory")["high_water_bytes"],
        "peaks": {stage: memory.to_mapping() for stage, memory in worker.memory.stages.items() if stage},
    }

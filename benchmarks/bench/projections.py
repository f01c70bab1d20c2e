"""What a decode would take on devices that were not at hand, at their makers' figures: projections, not measurements.

Each stage's limit (`roofline`) at a device's peak rates in fp16, which no program reaches: a good one comes within
two to four times of it, and small steps stay further away, because a device of many cores waits for their launches.

Peaks are dense fp16 products on tensor cores, summed in fp32:

- Orin: 2048 FLOP a clock and SM (Jetson AGX Orin Series Technical Brief v1.2: 170 sparse INT8 TOPS of 16 SMs at 1.3
  GHz, so 85 dense, and half of them in fp16), with SMs and clocks of the modules' data sheets, in the highest power
  mode: Nano 8GB 8 SMs at 1.02 GHz, NX 16GB 8 at 1.173 GHz (both JetPack 6.2's), AGX 64GB 16 at 1.3 GHz. Memory 102,
  102 and 205 GB/s.
- Thor (T5000): 2,070 sparse FP4 TFLOPS and 273 GB/s (Jetson Thor data sheet); dense fp16 is an eighth of it.
- RTX 4090: 165.2 TFLOPS, 1,008 GB/s (Ada architecture whitepaper, appendix A).
- H200: 989 TFLOPS without sparsity, 4.8 TB/s (H200 data sheet, SXM).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from unibrain_rt.benchmarks.bench.decodes import ONCE
from unibrain_rt.benchmarks.bench.roofline import RIDGE, StageWork
from unibrain_rt.bundle import Bundle
from unibrain_rt.graph_size import decode_memory
from unibrain_rt.sessions import decode_graphs

HALF_BYTES = 2
_ORIN_FLOPS = 2048


@dataclass(frozen=True)
class PublishedDevice:
    """Peaks in fp16 and memory in bytes. ``shared``: the host's memory is the device's."""

    name: str
    flops_per_s: float
    bytes_per_s: float
    memory_bytes: int
    shared: bool = False


DEVICES = (
    PublishedDevice("Jetson Orin Nano 8GB", _ORIN_FLOPS * 8 * 1.02e9, 102.4e9, 8 * 2**30, shared=True),
    PublishedDevice("Jetson Orin NX 16GB", _ORIN_FLOPS * 8 * 1.173e9, 102.4e9, 16 * 2**30, shared=True),
    PublishedDevice("Jetson AGX Orin 64GB", _ORIN_FLOPS * 16 * 1.3e9, 204.8e9, 64 * 2**30, shared=True),
    PublishedDevice("Jetson Thor T5000", 2070e12 / 8, 273e9, 128 * 2**30, shared=True),
    PublishedDevice("GeForce RTX 4090", 165.2e12, 1008e9, 24 * 2**30),
    PublishedDevice("H200", 989e12, 4.8e12, 141 * 10**9),
)


def project(bundle: Bundle, preset: str, works: list[StageWork]) -> list[dict[str, Any]]:
    """For each of `DEVICES`: the limit of a decode in milliseconds, and the memory that an fp16 bundle needs.

    Memory is that of weights, activations and buffers, and of ridge heads where the device shares the host's; what an
    engine takes for itself comes on top. ``fits`` leaves a fifth of the device for that and for the system.
    """
    memory = decode_memory(bundle, decode_graphs(bundle, [preset]))
    stored = 4 if bundle.precision == "fp32" else HALF_BYTES
    computed = HALF_BYTES if bundle.precision == "fp16" else 4
    half = replace(
        memory,
        graphs={name: size * HALF_BYTES // stored for name, size in memory.graphs.items()},
        held={name: size * HALF_BYTES // computed for name, size in memory.held.items()},
        buffers_bytes=memory.buffers_bytes // 2,
    )
    projections = []
    for device in DEVICES:
        rates = device.flops_per_s, device.bytes_per_s
        decode = [one for one in works if one.stage not in (ONCE, RIDGE)]
        limits = {one.stage: one.limit_ms(*rates, HALF_BYTES) for one in decode}
        whole, low = (half.needed_bytes(low_memory=few, heads=device.shared) for few in (False, True))
        room = 0.8 * device.memory_bytes
        projections.append(
            {
                "device": device.name,
                "projection": "limit at public peaks, fp16; not measured",
                "stages_ms": limits,
                "limit_ms": sum(limits.values()),
                "memory_bytes": whole,
                "low_memory_bytes": low,
                "fits": "yes" if whole < room else "low memory" if low < room else "no",
            }
        )
    return projections

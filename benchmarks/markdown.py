"""Benchmark results as Markdown, for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LABELS = {
    "onnxruntime/partitioned": "ONNX Runtime, step graph",
    "onnxruntime/whole": "ONNX Runtime, context, time and step graph",
    "torch/whole": "our torch module, whole step",
    "torch/partitioned": "our torch module, partitioned",
    "diffusers/whole": "diffusers, whole step",
    "onnxruntime-fp16/partitioned": "ONNX Runtime, fp16 step graph",
    "openvino/partitioned": "OpenVINO, step graph",
    "openvino-fp16/partitioned": "OpenVINO, fp16 step graph",
}


def report(results: Mapping[str, Any]) -> str:
    """The whole page: ``results`` is what ``published`` writes as JSON."""
    sections = [
        "# The published size, on a CPU",
        "Random weights in the published layout and sizes. Written by "
        "`python -m unibrain_rt.benchmarks.published`; every number, round by round, is in the JSON file of "
        "the same name. GB is 10⁹ bytes, GiB 2³⁰.",
        "## Machine",
        *map(machine_line, results["machines"]),
    ]
    if results.get("checkpoint"):
        sections += ["## Checkpoint", _checkpoint(results["checkpoint"])]
    if results.get("exports"):
        sections += ["## Export", _exports(results["exports"])]
    if results.get("flows") or results.get("half"):
        sections += ["## Steps", _STEPS_NOTE]
    for flow in results.get("flows", []):
        sections += [f"### One guided step of the {flow['flow']} flow", flow_section(flow)]
    for flow in results.get("half", []):
        sections += [f"### The fp16 bundle on a CPU, {flow['flow']} flow", _HALF_NOTE, flow_section(flow)]
    return "\n\n".join(sections) + "\n"


_HALF_NOTE = (
    "fp16 is for GPUs. ONNX Runtime computes it in fp32 on a CPU, with casts around; here it is run to show "
    "that the exported graphs hold together and how far fp16 is from fp32."
)
_STEPS_NOTE = (
    "A *whole* step starts from latent, timestep and contexts, in torch with two copies of the latent; a "
    "*partitioned* one is given the time modulation and the contexts' keys and values, which a decode computes "
    "once, and shares between the guidance branches what comes before the first cross-attention. Either covers "
    "both branches, both contexts, guidance and the sampler's update, in eager fp32 where it is torch. Error: "
    "relative L2 distance of the next latent to our torch module's, on the same weights. ONNX Runtime's "
    "time graph gives the modulations of both flows at once, also in a whole step. Every process stays "
    "loaded; in a round each variant runs one step, and ratios are taken within a round. Peak RSS includes "
    "the pages of files that were mapped while loading."
)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first column is text, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine_line(machine: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    extensions = ", ".join(machine["vector_extensions"]) or "no vector extensions known"
    return (
        f"{machine['cpu']} ({extensions}), {machine['cores']} cores, {machine['memory_gib']} GiB; "
        f"{machine['os']}, {machine['kernel']}, Python {machine['python']}; {packages}."
    )


def _checkpoint(checkpoint: Mapping[str, Any]) -> str:
    files = ", ".join(f"`{name}` {size / 1e9:.2f} GB" for name, size in checkpoint["files"].items())
    return f"{files}; written in {checkpoint['seconds']:.0f} s."


def _exports(exports: Sequence[Mapping[str, Any]]) -> str:
    head = ["precision", "time", "processor time", "peak RSS", "peak own", "peak mapped", "bundle"]
    rows = [
        [
            export["precision"],
            f"{export['seconds']:.0f} s",
            f"{export['cpu_seconds']:.0f} s",
            *(_gib(export[f"peak_{kind}_bytes"]) for kind in ("rss", "anonymous", "file_backed")),
            f"{sum(export['files'].values()) / 1e9:.2f} GB",
        ]
        for export in exports
    ]
    note = (
        "*Own* memory is anonymous; *mapped* memory are pages of the checkpoint and of libraries, which the "
        f"kernel drops when it needs room. The checkpoint has {_gib(exports[0]['checkpoint_bytes'])}: own "
        "memory below that means that it is never in memory twice. *start* is before the first graph; the "
        "last graph's row also holds the constants and the SHA-256 of every file."
    )
    return "\n\n".join([table(head, rows), note, _stages(exports), _files(exports)])


def _stages(exports: Sequence[Mapping[str, Any]]) -> str:
    names = dict.fromkeys(stage["name"] for export in exports for stage in export["stages"])
    columns = [{stage["name"]: stage for stage in export["stages"]} for export in exports]
    titles = [
        f"{export['precision']} {what}" for export in exports for what in ("time", "peak RSS", "peak own")
    ]
    rows = [
        [name, *(cell for column in columns for cell in _stage_cells(column.get(name)))] for name in names
    ]
    return table(["graph", *titles], rows)


def _files(exports: Sequence[Mapping[str, Any]]) -> str:
    names = dict.fromkeys(file for export in exports for file in export["files"])
    rows = [
        [f"`{name}`", *(f"{e['files'][name] / 1e6:,.1f}" if name in e["files"] else "–" for e in exports)]
        for name in names
    ]
    return table(["file, MB", *(export["precision"] for export in exports)], rows)


def _stage_cells(stage: Mapping[str, Any] | None) -> list[str]:
    if stage is None:
        return ["–"] * 3
    return [f"{stage['seconds']:.0f} s", _gib(stage["peak_rss_bytes"]), _gib(stage["peak_anonymous_bytes"])]


def flow_section(flow: Mapping[str, Any]) -> str:
    groups = "; then ".join(
        f"{', '.join(group['peers'])} ({len(group['rounds'])} rounds)" for group in flow["groups"]
    )
    setting = (
        f"{flow['threads']} threads; timestep {flow['timestep']}; "
        f"{flow['step_weights_bytes'] / 1e9:.2f} GB of weights in fp32. "
        f"Measured together, as far as they fit in memory: {groups}. "
        f"Load average before: {flow['load_average_before']}."
    )
    times = table(
        ["variant", "median", "range", "processor time", "error"],
        [
            [
                LABELS.get(variant, variant),
                f"{spread['median']:.3f} s",
                f"{spread['min']:.3f}–{spread['max']:.3f} s",
                f"{flow['cpu_seconds'][variant]['median']:.3f} s",
                f"{flow['relative_errors'][variant]:.1e}",
            ]
            for variant, spread in flow["seconds"].items()
        ],
    )
    ratios = table(
        ["times faster, within a round", "median", "range"],
        [
            [name, f"**{spread['median']:.2f}**", f"{spread['min']:.2f}–{spread['max']:.2f}"]
            for name, spread in flow["ratios"].items()
        ],
    )
    peers = table(
        ["process", "load, imports included", "first step", "peak RSS", "peak own"],
        [
            [
                name,
                f"{peer['load_seconds']:.1f} s",
                " / ".join(f"{value:.2f} s" for value in peer["first_step_seconds"].values()),
                _gib(peer["peak_rss_bytes"]),
                _gib(max(peak["anonymous_bytes"] for peak in peer["peaks"].values())),
            ]
            for name, peer in flow["peers"].items()
        ],
    )
    return "\n\n".join([setting, times, ratios, peers])


def _gib(size: int | None) -> str:
    return "–" if size is None else f"{size / 2**30:.2f} GiB"

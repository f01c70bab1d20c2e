"""The README's section on latency, out of the committed results: a table of CPUs, one of a GPU, and a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import click

from unibrain_rt.benchmarks.markdown import table

BEGIN, END = "<!-- latency: begin -->", "<!-- latency: end -->"
RESULTS = Path("benchmarks/results")
BENCH, CONTESTS = (
    "bench/bench.json",
    {"phantom": "contest-phantom.json", "published": "contest-published.json"},
)
GPU = "gpu-fast.json"
COMMAND = "python -m unibrain_rt.benchmarks.readme"
_REFERENCE = "diffusers"
_PARTS = {"image loop": "image loop", "caption": "caption", "picture": "AutoKL", "decode": "decode"}
_LABELS = {
    "diffusers": "diffusers, fp32",
    "diffusers-compiled": "diffusers, compiled",
    "torch": "our torch module, fp32",
    "torch-compiled": "our torch module, compiled",
    "onnxruntime": "**unibrain-rt, ONNX Runtime fp32**",
    "openvino-fp32": "**unibrain-rt, OpenVINO fp32**",
    "openvino-bf16": "**unibrain-rt, OpenVINO bf16**",
}
"""Who is in the table, in this order; torch's bf16 is in the contests' own pages."""
_GPU_LABELS = {
    "torch eager": "our torch modules, fp16",
    "torch, CUDA graphs": "our torch modules, fp16, as CUDA graphs",
    "cuda": "**unibrain-rt, engine `cuda`, fp16**",
}
_GPU_REFERENCE = "torch eager"
_NOTHING = "–"
_OWN = ("onnxruntime", "openvino-fp32", "openvino-bf16")

Found = Mapping[str, Any]


def section(results: Path) -> str:
    """What stands between the README's marks; as much of it as there are results for."""
    contests = {size: _read(results / name) for size, name in CONTESTS.items() if (results / name).exists()}
    parts = []
    if contests:
        parts.append(_table(contests))
    if (results / GPU).exists():
        parts.append(_gpu_table(_read(results / GPU)))
    if (results / BENCH).exists():
        parts.append(_plot(_read(results / BENCH)))
    parts.append(f"Written by `{COMMAND}` from the results in `{RESULTS}`.")
    return "\n\n".join(parts)


def replaced(text: str, new: str) -> str:
    """``text`` with ``new`` between the marks. Raises ValueError: they are not there."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{BEGIN} and {END} are not there")
    return f"{before}{BEGIN}\n\n{new}\n\n{END}{after}"


def _table(contests: Mapping[str, Found]) -> str:
    """Everybody's ``paper``, and ours in ``fast``: whole decodes on the phantom, and parts at the published size."""
    rows = []
    for preset, peers in (("paper", tuple(_LABELS)), ("fast", _OWN)):
        for peer in peers:
            cells = [
                cell for size, contest in contests.items() for cell in _cells(contest, size, preset, peer)
            ]
            if any(cell != _NOTHING for cell in cells):
                rows.append([_LABELS[peer], f"`{preset}`", *cells])
    head = [title for size in contests for title in _titles(size)]
    commands = " and ".join(f"[{size}]({(RESULTS / CONTESTS[size]).with_suffix('.md')})" for size in contests)
    machine = next(iter(contests.values()))["machine"]
    return (
        f"{table(['', 'preset', *head], rows)}\n\n{machine['cpu']}, {machine['cores']} cores, random weights; "
        f"made by `python -m unibrain_rt.benchmarks.peers.contest --size SIZE --work DIR` ({commands})."
    )


def _gpu_table(fast: Found) -> str:
    """Whole decodes of the published size at every preset, and how many times as fast as torch in the same round."""
    presets = {name: preset["rounds"] for name, preset in fast["presets"].items()}
    rows = []
    for name, label in _GPU_LABELS.items():
        row = [label]
        for rounds in presets.values():
            both = [one["decode"] for one in rounds if {name, _GPU_REFERENCE} <= one["decode"].keys()]
            row.append(f"{median(one[name] for one in both):,.0f} ms" if both else _NOTHING)
            ratios = [one[_GPU_REFERENCE] / one[name] for one in both]
            row.append(f"{median(ratios):.2f}" if both else _NOTHING)
        rows.append(row)
    head = [title for preset in presets for title in (f"`{preset}`", "times faster")]
    page = (RESULTS / GPU).with_suffix(".md").as_posix()
    return (
        f"{table(['published size, whole decode', *head], rows)}\n\n{fast['device']['name']}, random weights; made by "
        f"`python -m unibrain_rt.benchmarks.gpu.fast` ([all of it]({page}), with torch.compile)."
    )


def _titles(size: str) -> list[str]:
    if size == "published":
        return [*(f"published size: {title}" for title in _PARTS.values()), "times faster"]
    return [f"{size}: decode", "times faster"]


def _cells(contest: Found, size: str, preset: str, peer: str) -> list[str]:
    """Seconds of the parts, and how often the reference's ``paper`` takes as long as this decode."""
    times = contest["summary"]["seconds"]
    own, reference = times[preset].get(peer, {}), times["paper"].get(_REFERENCE, {}).get("decode")
    parts = _PARTS if size == "published" else ("decode",)
    faster = f"{reference / own['decode']:.2f}" if reference and "decode" in own else _NOTHING
    return [*(_seconds(own[part]) if part in own else _NOTHING for part in parts), faster]


def _seconds(value: float) -> str:
    return f"{value:,.1f} s" if value >= 10 else f"{1000 * value:,.0f} ms"


def _plot(measured: Found) -> str:
    picture = (RESULTS / BENCH).with_suffix(".svg")
    return (
        f"![Where the time of a decode of the phantom goes]({picture.as_posix()})\n\n"
        f"{measured['machine']['cpu']}, {measured['machine']['cores']} cores; made by `{measured['command']} --out "
        f"{picture.parent.as_posix()}` ([all of it]({picture.with_suffix('.md').as_posix()}))."
    )


def _read(path: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return results


@click.command()
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@click.option("--readme", type=click.Path(path_type=Path), default=Path("README.md"), show_default=True)
def main(results: Path, readme: Path) -> None:
    """Write the section anew."""
    text = readme.read_text(encoding="utf-8")
    readme.write_text(replaced(text, section(results)), encoding="utf-8")
    click.echo(f"{readme}: latency written anew")


if __name__ == "__main__":
    main()

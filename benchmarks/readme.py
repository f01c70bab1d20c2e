"""The README's section on latency, out of the committed results: one table and one plot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from unibrain_rt.benchmarks.bench.report import NAMES, ms
from unibrain_rt.benchmarks.tables import table

BEGIN, END = "<!-- latency: begin -->", "<!-- latency: end -->"
RESULTS = Path("benchmarks/results")
BENCH, CONTEST = "bench/bench.json", "contest-published.json"
COMMAND = "python -m unibrain_rt.benchmarks.readme"
_STAGES = ("ridge", "image_loop", "autokl", "caption_loop", "gpt2")
_PARTS = ("image loop", "caption", "picture", "decode")
_LABELS = {
    "diffusers": "diffusers, fp32",
    "diffusers-bf16": "diffusers, bf16",
    "diffusers-compiled": "diffusers, compiled",
    "torch": "our torch module, fp32",
    "torch-compiled": "our torch module, compiled",
    "torch-bf16": "our torch module, bf16",
    "onnxruntime": "**unibrain-rt, ONNX Runtime fp32**",
    "openvino-fp32": "**unibrain-rt, OpenVINO fp32**",
    "openvino-bf16": "**unibrain-rt, OpenVINO bf16**",
}


def section(results: Path) -> str:
    """What stands between the README's marks; as much of it as there are results for."""
    parts = []
    if (results / BENCH).exists():
        parts.append(_phantom(json.loads((results / BENCH).read_text("utf-8")), results))
    if (results / CONTEST).exists():
        parts.append(_published(json.loads((results / CONTEST).read_text("utf-8"))))
    parts.append(f"Written by `{COMMAND}` from the results in `{RESULTS}`.")
    return "\n\n".join(parts)


def replaced(text: str, new: str) -> str:
    """``text`` with ``new`` between the marks. Raises ValueError: they are not there."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{BEGIN} and {END} are not there")
    return f"{before}{BEGIN}\n\n{new}\n\n{END}{after}"


def _phantom(found: Mapping[str, Any], results: Path) -> str:
    rows = []
    for case in found["cases"]:
        engine = case["engine"]
        name = f"{engine['engine']} {engine.get('precision', 'fp32')}, `{case['preset']}`"
        whole = case["end_to_end"]
        reached = f"{case['roofline']['all']['share']:.0%}" if "roofline" in case else "–"
        rows.append(
            [
                name,
                *(ms(case["stages"][stage]["p50"]) for stage in _STAGES),
                ms(whole["p50"]),
                ms(whole["p99"]),
                reached,
            ]
        )
    head = ["phantom, p50", *(NAMES[stage] for stage in _STAGES), "end to end", "p99", "of the limit"]
    picture = (results / BENCH).with_suffix(".svg").relative_to(results)
    return "\n\n".join(
        [
            table(head, rows),
            f"![Where the time of a decode goes]({(RESULTS / picture).as_posix()})",
            f"{found['machine']['cpu']}, {found['machine']['cores']} cores; made by `{found['command']} --out "
            f"{(RESULTS / BENCH).parent.as_posix()}`.",
        ]
    )


def _published(found: Mapping[str, Any]) -> str:
    times = found["summary"]["seconds"]["paper"]
    reference = times.get("diffusers", {}).get("decode")
    rows = [
        [
            _LABELS.get(peer, peer),
            *(f"{own[part]:,.1f} s" if part in own else "–" for part in _PARTS),
            f"{reference / own['decode']:.2f}" if reference and "decode" in own else "–",
        ]
        for peer, own in times.items()
    ]
    head = ["published size, `paper`", "image loop", "caption", "AutoKL", "decode", "times faster"]
    command = "python -m unibrain_rt.benchmarks.peers.contest --size published --work DIR"
    return f"{table(head, rows)}\n\nRandom weights; made by `{command}`."


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

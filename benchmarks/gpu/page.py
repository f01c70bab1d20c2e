"""The results as a page for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unibrain_rt.benchmarks.gpu.rounds import WORKS
from unibrain_rt.benchmarks.tables import machine_line, table
from unibrain_rt.benchmarks.whole_decodes import FLOWS

TARGETS = "Targets: under 450 ms, 2.5 times faster than torch eager, and 1.2 times on the caption flow by CUDA graphs."


def page(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    floor = sum(entry["milliseconds"] for entry in results["roofline"].values())
    times = [
        [
            name,
            *(f"{results['milliseconds'][work][name]['median']:.1f} ms" for work in WORKS),
            f"{floor / spread['median']:.0%}",
            _gib(results["loading"][name]["device_bytes"]),
            f"{results['loading'][name]['seconds']:.0f} s",
        ]
        for name, spread in results["milliseconds"]["decode"].items()
    ]
    ratios = [
        [name, f"**{spread['median']:.2f}**", f"{spread['min']:.2f}–{spread['max']:.2f}"]
        for name, spread in results["ratios"].items()
    ]
    parity = [
        [
            name,
            f"{found['psnr_db']:.1f} dB",
            *(f"{found[f'{flow}_latent_error']:.1e}" for flow in FLOWS),
            "yes" if found["same_tokens"] else "no",
        ]
        for name, found in results["parity"].items()
    ]
    bounds = [
        [
            name,
            str(entry["runs"]),
            f"{entry['flops'] / 1e9:,.1f}",
            f"{entry['weights_bytes'] / 1e6:,.0f}",
            f"{entry['milliseconds']:.2f} ms",
        ]
        for name, entry in results["roofline"].items()
    ]
    steps = " and ".join(f"{count} {flow}" for flow, count in results["steps"].items())
    dry = (
        ["**A dry run on a CPU: it shows that the benchmark runs, and nothing of a GPU.**"]
        if results["dry_run"]
        else []
    )
    sections = [
        "# A whole decode on one GPU",
        *dry,
        f"{results['device']}. {machine_line(results['machine'])}",
        f"Preset {results['preset']}: {steps} steps, {results['tokens']} tokens; bundle in "
        f"{results['precision']['bundle']}, torch in {results['precision']['torch']}; {len(results['rounds'])} "
        f"rounds, interleaved. {TARGETS}",
        table(
            ["variant", "whole decode", "caption flow alone", "of the roofline", "device memory", "loading"],
            times,
        ),
        table(["times faster, within a round", "median", "range"], ratios),
        "Against torch eager on the same device:",
        table(["variant", "picture", "image latent", "text latent", "same tokens"], parity),
        f"Roofline: {floor:.1f} ms at {results['peaks']['flops'] / 1e12:.1f} TFLOP/s of a matrix product and "
        f"{results['peaks']['bytes'] / 1e9:.0f} GB/s of a copy, both measured here.",
        table(["graph", "runs", "GFLOP a run", "MB of weights", "at least"], bounds),
    ]
    return "\n\n".join(sections) + "\n"


def _gib(size: int | None) -> str:
    return "–" if size is None else f"{size / 2**30:.2f} GiB"

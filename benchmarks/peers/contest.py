"""One decode by everybody who can do it, part by part, on the same weights and inputs, in rounds that take turns.

Each kind of work (a guided step of the image and of the text flow, a caption from its latent, a picture from its
latent) is measured by `rounds.measure_flow`; whole loops and decodes are put together of their medians: the loops have
no more to them than their steps, as ``unibrain-rt bench`` shows. Each work leaves a JSON file in the work folder and
is skipped when that is there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from unibrain_rt.benchmarks import machine
from unibrain_rt.benchmarks.kept_results import KeptResults, out_option, write_results
from unibrain_rt.benchmarks.markdown import machine_line, table
from unibrain_rt.benchmarks.peers.peer import WORKS, Work
from unibrain_rt.benchmarks.peers.registry import LATENT_PEERS, PEERS, TORCH_SETTINGS, peer_class
from unibrain_rt.benchmarks.peers.rounds import measure_flow
from unibrain_rt.benchmarks.published import Published
from unibrain_rt.bundle import Bundle
from unibrain_rt.cli.messages import Command
from unibrain_rt.presets import PRESETS, Preset
from unibrain_rt.samplers import Schedule

NAME = "contest"
ENGINES = ("onnxruntime", "openvino-fp32", "openvino-bf16")
TORCH = tuple(f"{peer}{suffix}" for peer in ("torch", "diffusers") for suffix in TORCH_SETTINGS)
REFERENCE = "diffusers"
TITLES: dict[Work, str] = {
    "image": "a guided image step", "text": "a guided text step", "caption": "a caption of 30 "
    "tokens", "autokl": "AutoKL",
}  # fmt: skip
TARGETS = (
    ("image loop of paper", "onnxruntime", 1.8),
    ("image loop of paper", "openvino-fp32", 1.8),
    ("image loop of paper", "openvino-bf16", 3.0),
    ("caption of paper", "onnxruntime", 6.0),
    ("whole decode: fast against the reference's paper", "onnxruntime", 8.0),
)
"""What is compared with diffusers in fp32 (a caption with the reference's way), and how often as fast it should be."""
_CONVOLUTIONS: frozenset[Work] = frozenset({"image", "autokl"})
_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}


def impractical(size: str, work: Work, peer: str, extensions: Sequence[str]) -> str | None:
    """Why a peer is not even tried at a work, on a processor with these vector extensions.

    Without instructions for bf16, torch 2.13 convolves in it at 0.6 GFLOP/s, and in fp32 at 73 (640 channels, 32 x 32,
    3 x 3, on two cores with AVX2): an image step of the published size would take over half an hour.
    """
    in_bf16 = peer_class(peer, work).precision == "bfloat16"
    if size == "published" and work in _CONVOLUTIONS and in_bf16 and not _BF16 & set(extensions):
        return (
            "torch's convolutions in bf16 take a hundred times as long here as in fp32, so it was not tried"
        )
    return None


def peers_of(work: Work, wanted: Sequence[str]) -> list[str]:
    """Those of ``wanted`` that do this kind of work."""
    known = LATENT_PEERS.get(work, PEERS)
    return [name for name in wanted if name in known]


def seconds(works: Mapping[str, Any], work: Work, peer: str) -> dict[str, float]:
    """Median seconds of each variant of a peer at a work; empty where it was not measured."""
    spreads = works.get(work, {}).get("seconds", {})
    return {
        name.split("/")[1]: spread["median"] for name, spread in spreads.items() if name.split("/")[0] == peer
    }


def loops(measured: Mapping[str, Any], peer: str, preset: Preset, schedule: Schedule) -> dict[str, float]:
    """Seconds of a peer's image loop, caption (loop and GPT-2), picture and whole decode, as far as they are known.

    Ours have contexts and time apart from the loop: what a whole step takes more than a partitioned one is added once.
    diffusers has neither GPT-2 nor AutoKL of its own: it gets torch's, GPT-2 as the reference runs it; and our torch
    module's whole text step at sizes that its text UNet cannot have, as the phantom's.
    """
    counts = {
        "image": len(preset.table(schedule, "image").timesteps),
        "text": len(preset.table(schedule, "text").timesteps),
    }
    parts: dict[str, float] = {}
    works: tuple[tuple[Work, str], ...] = (("image", "image loop"), ("text", "text loop"))
    for work, name in works:
        each = seconds(measured, work, peer) or seconds(measured, work, peer.replace("diffusers", "torch"))
        if peer.startswith("diffusers"):
            each = {name: value for name, value in each.items() if name == "whole"}
        if "partitioned" in each:
            once = max(0.0, each.get("whole", each["partitioned"]) - each["partitioned"])
            parts[name] = counts[work] * each["partitioned"] + once
        elif "whole" in each:
            parts[name] = counts[work] * each["whole"]
    own = peer.replace("diffusers", "torch")
    token, picture = seconds(measured, "caption", own), seconds(measured, "autokl", own)
    gpt2 = token.get("recompute" if peer.startswith("diffusers") else "cached")
    if gpt2 is not None and "text loop" in parts:
        parts["caption"] = parts["text loop"] + gpt2
    if "whole" in picture:
        parts["picture"] = picture["whole"]
    if {"image loop", "caption", "picture"} <= parts.keys():
        parts["decode"] = parts["image loop"] + parts["caption"] + parts["picture"]
    return parts


def summarise(works: Mapping[str, Any], schedule: Schedule, presets: Mapping[str, Preset]) -> dict[str, Any]:
    """Loops of every peer in ``paper`` and ``fast``, and how many times faster than the reference they are."""
    peers = dict.fromkeys(name.split("/")[0] for work in works.values() for name in work.get("seconds", {}))
    times = {
        preset: {peer: loops(works, peer, presets[preset], schedule) for peer in peers}
        for preset in ("paper", "fast")
    }
    reference = times["paper"].get(REFERENCE, {})
    faster: dict[str, dict[str, float]] = {}
    for peer in peers:
        for title, preset, part in (
            ("image loop of paper", "paper", "image loop"),
            ("caption of paper", "paper", "caption"),
            ("whole decode of paper", "paper", "decode"),
            ("whole decode: fast against the reference's paper", "fast", "decode"),
        ):
            own = times[preset][peer].get(part)
            if own and part in reference:
                faster.setdefault(title, {})[peer] = reference[part] / own
    return {"seconds": times, "times_faster_than_diffusers_fp32": faster}


def page(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    works, summary = results["works"], results["summary"]
    faster = summary["times_faster_than_diffusers_fp32"]
    sections = [
        f"# A decode by everybody: {results['size']}",
        f"Written by `python -m unibrain_rt.benchmarks.peers.{NAME}`; every round is in the JSON file of "
        "the same name. Random "
        "weights in the published layout; each round runs every variant once, in an order that turns.",
        machine_line(results["machine"]),
    ]
    peers = list(summary["seconds"]["paper"])
    rows = [
        [peer, *(_times(values.get(peer)) for values in faster.values())]
        for peer in peers
        if peer != REFERENCE
    ]
    sections += [
        "## Times faster than diffusers in fp32",
        table(["", *faster], rows),
        _targets(faster, works),
    ]
    for preset, times in summary["seconds"].items():
        parts = ("image loop", "text loop", "caption", "picture", "decode")
        rows = [[peer, *(_seconds(times[peer].get(part)) for part in parts)] for peer in times]
        sections += [f"## Seconds, preset {preset}", table(["", *parts], rows)]
    sections.append(
        "A caption is the loop and GPT-2's 30 tokens. diffusers has no GPT-2: its caption is with torch's as the "
        "reference runs it, all tokens anew for each next one (and with our torch module's text step, where diffusers "
        "cannot have the size); torch's own keeps keys and values."
    )
    for work, measured in works.items():
        rows = [
            [
                variant,
                _seconds(spread["median"]),
                f"{_seconds(spread['min'])}–{_seconds(spread['max'])}",
                _seconds(measured["cpu_seconds"][variant]["median"]),
                f"{measured['relative_errors'][variant]:.1e}",
                str(spread["rounds"]),
            ]
            for variant, spread in measured["seconds"].items()
        ]
        head = ["variant", "median", "range", "processor time", "error", "rounds"]
        note = "".join(f"\n\nLeft out: {name}: {why}." for name, why in measured.get("left_out", {}).items())
        load = f"Load average before: {measured['load_average_before']}; {measured['threads']} threads."
        sections += [f"## {TITLES[work].capitalize()}", table(head, rows), load + note]
    return "\n\n".join(sections) + "\n"


def _targets(faster: Mapping[str, Mapping[str, float]], works: Mapping[str, Any]) -> str:
    lines = []
    missing = {name for work in works.values() for name in work.get("left_out", {})}
    for title, peer, target in TARGETS:
        value = faster.get(title, {}).get(peer)
        if value is not None:
            state = "reached" if value >= target else "missed"
            lines.append(f"- {title}, {peer}: {value:.2f} times, target {target:g}: **{state}**")
        elif peer in missing:
            lines.append(f"- {title}, {peer}: target {target:g}: cannot be run on this processor")
    return "\n".join(lines)


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"


@click.command(cls=Command)
@click.option(
    "--work", type=click.Path(path_type=Path), required=True, help="For checkpoint, bundle and parts."
)
@out_option
@click.option("--size", type=click.Choice(["phantom", "published"]), default="phantom", show_default=True)
@click.option("--only", "works", type=click.Choice(WORKS), multiple=True, default=WORKS, show_default=True)
@click.option(
    "--peers", default=",".join((*ENGINES, *TORCH)), show_default=True, help="The first stays loaded."
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="By default one a core.")
def main(
    work: Path, out: Path, size: str, works: tuple[Work, ...], peers: str, rounds: int, threads: int | None
) -> None:
    """Measure what is missing and write the results of all."""
    names = peers.split(",")
    if unknown := sorted(set(names) - {*ENGINES, *TORCH, *PEERS}):
        raise click.UsageError(f"--peers: unknown {', '.join(unknown)}; known are {', '.join(PEERS)}")
    work.mkdir(parents=True, exist_ok=True)
    config = _phantom_sizes(work) if size == "phantom" else None
    made = Published(work, config, rounds, threads)
    if not (work / "checkpoint").is_dir():
        # Of an earlier run in this folder, the weights were thrown away to make room: make the same again.
        (work / "checkpoint.json").unlink(missing_ok=True)
    made.run(("checkpoint",))
    if not (work / "fp32").is_dir():
        shutil.rmtree(work / "fp32", ignore_errors=True)
        (work / "export-fp32.json").unlink(missing_ok=True)
    made.export("fp32")
    extensions = machine.collect()["vector_extensions"]
    measured_works: dict[str, Any] = {}
    kept = KeptResults(work, f"{NAME}-")

    def measured(each: Work) -> dict[str, Any]:
        known = peers_of(each, names)
        reasons = {name: impractical(size, each, name, extensions) for name in known}
        untried = {name: reason for name, reason in reasons.items() if reason is not None}
        able = [name for name in known if name not in untried]
        result = measure_flow(
            each, made.checkpoint, dict.fromkeys(able, work / "fp32"), config=config, peers=able, rounds=rounds,
            threads=threads,
        )  # fmt: skip
        left_out = {**result.get("left_out", {}), **untried}
        return {"machine": machine.collect(), **result, "left_out": left_out}

    for each in WORKS:
        if each in works or kept.there(each):
            measured_works[each] = kept.once(each, partial(measured, each))
    bundle = Bundle.open(work / "fp32", verify=False)
    results = {
        "size": "the phantom's" if size == "phantom" else "published size",
        "machine": machine.collect(),
        "works": measured_works,
        "summary": summarise(measured_works, bundle.schedule, PRESETS),
    }
    write_results(out / f"{NAME}-{size}", results, page(results))


def _phantom_sizes(work: Path) -> Path:
    path = work / "phantom-sizes.json"
    path.write_text(json.dumps(dict(Bundle.open(verify=False).architecture)), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()

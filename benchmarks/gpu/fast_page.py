"""What `fast` measured, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from unibrain_rt.benchmarks.gpu.page_parts import LABELS, card
from unibrain_rt.benchmarks.gpu.variants import STAGES
from unibrain_rt.benchmarks.markdown import table

PAIRS = (
    ("decode", "over torch eager", "torch eager", "cuda"),
    ("decode", "over torch captured as CUDA graphs", "torch, CUDA graphs", "cuda"),
    ("decode", "over torch.compile", "torch.compile", "cuda"),
    ("decode", "by its own graphs", "cuda, plain", "cuda"),
    ("decode", "by capturing", "cuda, no graphs", "cuda"),
    ("caption", "by capturing, caption flow", "cuda, no graphs", "cuda"),
)
"""Of which work, name, slower, faster."""
COMPILED = "torch.compile"
BEST = "cuda"
_KERNELS = 14
_FAST = (
    "Random weights, drawn on the device, the same for all; batch 1 with guidance, 512 × 512 pixels, 20 tokens; from "
    "noised latents and contexts on the host to the picture and the tokens there. Every variant is a process of its "
    "own, all are loaded at once; in a round each decodes once, in an order that turns. *Of the limit*: the sum over "
    "the stages of FLOPs and bytes, counted from the graphs, at the rates measured on this card, one after another. "
    "Memory is what the driver says that the process takes."
)


_KERNELS_NOTE = (
    "Of preset `realtime`, not captured, as CUPTI traces them: 3 steps of the image and the decoder of images, 3 steps "
    "of the text, 20 tokens. The sum leaves out what is between kernels."
)


def fast_page(results: Mapping[str, Any]) -> str:
    """Of `fast`, as Markdown."""
    sections = [
        "# Whole decodes of the published size on a GPU",
        _device(results),
        results.get("notes", ""),
        _FAST,
    ]
    for preset, measured in results["presets"].items():
        if not any(one["decode"] for one in measured["rounds"]):
            continue
        bounds = results["bounds"].get(preset.partition(" ")[0], {})
        sections += [f"## `{preset}`", _decodes(results, measured, bounds), _ratios(measured["rounds"])]
        if measured["stages"]:
            sections += ["Milliseconds of the stages, each run alone:", _stages(measured["stages"], bounds)]
    if staged := results.get("stages"):
        sections += _apart(results, staged)
    if kernels := results.get("kernels", {}).get("stages"):
        sections += ["## Which kernels the time goes to", _KERNELS_NOTE, *_kernels(kernels)]
    if variants := results.get("parity", {}).get("variants"):
        sections += ["## What they decode to", _parity(results["parity"]["preset"], variants)]
    if failed := {name: one["error"] for name, one in results["variants"].items() if "error" in one}:
        sections += [
            "## What failed",
            "\n".join(f"- {name}: `{_last(error)}`" for name, error in failed.items()),
        ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _device(results: Mapping[str, Any]) -> str:
    peaks = results.get("peaks")
    rates = (
        f" Measured rates: {peaks['flops'] / 1e12:.0f} TFLOP/s of an 8192³ matrix product in fp16, "
        f"{peaks['bytes'] / 1e9:,.0f} GB/s of a copy."
        if peaks
        else ""
    )
    return card(results.get("device", {})) + rates


def _decodes(results: Mapping[str, Any], measured: Mapping[str, Any], bounds: Mapping[str, Any]) -> str:
    limit = sum(stage["limit_ms"] for stage in bounds.values())
    rows = []
    for name, record in results["variants"].items():
        times = {
            work: [one[work][name] for one in measured["rounds"] if name in one[work]]
            for work in ("decode", "caption")
        }
        if not times["decode"]:
            continue
        decode = median(times["decode"])
        memory = record.get("memory", {}).get("process_bytes")
        rows.append(
            [
                LABELS.get(name, name),
                f"{decode:.1f} ms",
                f"{min(times['decode']):.1f}–{max(times['decode']):.1f}",
                f"{median(times['caption']):.1f} ms",
                f"{limit / decode:.0%}" if limit else "–",
                "–" if memory is None else f"{memory / 2**30:.1f} GiB",
                f"{record['load']['seconds'] + record['prepare']['seconds']:.0f} s",
            ]
        )
    head = ["variant", "whole decode", "range", "caption flow alone", "of the limit", "memory", "until ready"]
    return table(head, rows)


def _ratios(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    rows = []
    for work, name, slow, fast in PAIRS:
        ratios = [one[work][slow] / one[work][fast] for one in rounds if {slow, fast} <= one[work].keys()]
        if ratios:
            rows.append([name, f"**{median(ratios):.2f}**", f"{min(ratios):.2f}–{max(ratios):.2f}"])
    return table(["`cuda`, times faster, within a round", "median", "range"], rows) if rows else ""


def _stages(stages: Mapping[str, Sequence[Mapping[str, float]]], bounds: Mapping[str, Any]) -> str:
    rows = [
        [LABELS.get(name, name), *(f"{median(one[stage] for one in rounds):.1f}" for stage in STAGES)]
        for name, rounds in stages.items()
    ]
    if bounds:
        limits = {stage: bounds[stage]["limit_ms"] for stage in STAGES}
        rows.append(["limit", *(f"{limits[stage]:.2f} ({bounds[stage]['bound']})" for stage in STAGES)])
        if BEST in stages:
            spent = {stage: median(one[stage] for one in stages[BEST]) for stage in STAGES}
            rows.append([f"`{BEST}` reaches", *(f"{limits[stage] / spent[stage]:.0%}" for stage in STAGES)])
    return table(["", *(stage.replace("_", " ") for stage in STAGES)], rows)


def _apart(results: Mapping[str, Any], staged: Mapping[str, Any]) -> list[str]:
    """Of variants whose stages alone were timed: other settings, and torch.compile in three processes."""
    preset, measured = "paper", results["presets"]["paper"]
    compiled = {
        stage: median(one[stage] for one in rounds)
        for name, rounds in staged.items()
        if name.startswith(COMPILED)
        for stage in rounds[0]
    }
    rows = []
    if BEST in measured["stages"]:
        own = [median(one[stage] for one in measured["stages"][BEST]) for stage in STAGES]
        rows.append([LABELS[BEST], *(f"{each:.1f}" for each in own), f"{sum(own):.0f}"])
    for name, rounds in staged.items():
        if not name.startswith(COMPILED):
            spent = [median(one[stage] for one in rounds) for stage in STAGES]
            rows.append([LABELS.get(name, name), *(f"{each:.1f}" for each in spent), f"{sum(spent):.0f}"])
    sections = [f"## torch.compile and other settings, `{preset}`"]
    if set(compiled) == set(STAGES):
        spent = [compiled[stage] for stage in STAGES]
        rows.append([LABELS[COMPILED], *(f"{each:.1f}" for each in spent), f"{sum(spent):.0f}"])
        decode = median(one["decode"][BEST] for one in measured["rounds"] if BEST in one["decode"])
        sections.append(
            f"Milliseconds of stages, each run alone. Compiling takes minutes, so that three processes shared it, and "
            f"there is no whole decode of it: one stage after another takes {sum(spent):.0f} ms, "
            f"**{sum(spent) / decode:.2f}** times the {decode:.0f} ms of `cuda`, which runs both flows at once."
        )
    if not rows:
        return []
    return [*sections, table(["", *(stage.replace("_", " ") for stage in STAGES), "sum"], rows)]


def _kernels(stages: Mapping[str, Any]) -> list[str]:
    sections = []
    for stage, profile in stages.items():
        total = profile["microseconds"]
        rows = [
            [f"`{_short(name)}`", str(count), f"{spent / count:.1f}", f"{spent / total:.1%}"]
            for name, count, spent in profile["rows"][:_KERNELS]
        ]
        title = f"{stage.replace('_', ' ')}: {profile['launches']:,} launches, {total / 1000:.1f} ms"
        sections += [title, table(["kernel", "launches", "µs each", "of the time"], rows)]
    return sections


def _short(kernel: str) -> str:
    """Without its arguments and name spaces."""
    name = (
        kernel.removeprefix("void ")
        .replace("onnxruntime::", "")
        .replace("contrib::", "")
        .replace("cuda::", "")
    )
    return name.partition("(")[0][:90].replace("|", "/").strip(" <,")


def _parity(preset: str, variants: Mapping[str, Any]) -> str:
    rows = [
        [
            LABELS.get(name, name),
            f"{one['psnr_db']:.1f} dB",
            *(f"{one[f'{flow}_latent_error']:.1e}" for flow in ("image", "text")),
            "yes" if one["same_tokens"] else "no",
            "yes" if one["finite"] else "no",
        ]
        for name, one in variants.items()
    ]
    head = [
        f"against torch eager, `{preset}`",
        "picture",
        "image latent",
        "text latent",
        "same tokens",
        "finite",
    ]
    return table(head, rows)


def _last(error: str) -> str:
    lines = error.strip().splitlines()
    return lines[-1][:300] if lines else ""

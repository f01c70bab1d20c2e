"""What came back, as pages for people.

``python -m unibrain_rt.benchmarks.gpu.pages FOLDER --out benchmarks/results``: FOLDER holds ``correct.json``,

``fast.json`` or both, as the machine with the GPU wrote them; each becomes ``gpu-<name>.json`` and
``gpu-<name>.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click

from unibrain_rt.benchmarks.gpu.parts import read, write
from unibrain_rt.benchmarks.gpu.variants import STAGES
from unibrain_rt.benchmarks.tables import machine_line, table

LABELS = {
    "torch eager": "our torch modules, eager, fp16",
    "torch, CUDA graphs": "our torch modules, eager, captured as CUDA graphs, fp16",
    "torch.compile": "our torch modules, torch.compile, fp16",
    "torch fp32": "our torch modules, eager, fp32",
    "cuda": "**`cuda`, its own graphs, captured**",
    "cuda, no graphs": "`cuda`, its own graphs, not captured",
    "cuda, plain": "`cuda`, the graphs for every engine, captured",
    "cuda, plain, no graphs": "`cuda`, the graphs for every engine, not captured",
    "cuda, fuse_conv_bias": "`cuda` with `fuse_conv_bias`",
    "cuda, flash attention": "`cuda` without cuDNN's attention",
}
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


def correct_page(results: Mapping[str, Any]) -> str:
    """Of `correct`, as Markdown."""
    doctor = results.get("doctor", {})
    sections = ["# The engine `cuda` on a GPU: is it right?", _machine(doctor), results.get("notes", "")]
    if rows := results.get("convolution", {}).get("rows"):
        sections += ["## 3 × 3 convolutions in fp16", _CONVOLUTION, _convolution(rows)]
    if found := results.get("phantom"):
        sections += ["## Decodes of the phantom, against the CPU in fp32", _PHANTOM, _phantom(found)]
    if found := results.get("steps"):
        sections += ["## One run of every graph, published size", _STEPS, _steps(found)]
    if found := results.get("tests"):
        lines = [line for line in found.get("lines", []) if not line.startswith("SKIPPED")]
        sections += ["## Tests marked `gpu`", "\n".join(f"- `{line[:160]}`" for line in lines)]
    return "\n\n".join(section for section in sections if section) + "\n"


def fast_page(results: Mapping[str, Any]) -> str:
    """Of `fast`, as Markdown."""
    sections = [
        "# Whole decodes of the published size on a GPU",
        _device(results),
        results.get("notes", ""),
        _FAST,
    ]
    for preset, found in results["presets"].items():
        if not any(one["decode"] for one in found["rounds"]):
            continue
        bounds = results["bounds"].get(preset.partition(" ")[0], {})
        sections += [f"## `{preset}`", _decodes(results, found, bounds), _ratios(found["rounds"])]
        if found["stages"]:
            sections += ["Milliseconds of the stages, each run alone:", _stages(found["stages"], bounds)]
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


_CONVOLUTION = (
    "320 channels, 64 × 64, two at once, 40 in a row in one graph; microseconds of one, and the distance (L2) "
    "of the last, relative, to torch in fp32, in a first and in a second run into the same memory."
)
_PHANTOM = (
    "The shipped bundle and its conversion to fp16, held-out scans of one subject, preset `paper`. *Own* graphs are "
    "those made for this engine. Latents: the largest relative L2 distance of six scans."
)
_STEPS = (
    "Random weights, drawn on the device, the same for all. Relative L2 distance to torch in fp32 on the same device, "
    "of the keys of the first block, of what a first step predicts, of the picture and of the logits."
)
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


def _machine(doctor: Mapping[str, Any]) -> str:
    device, machine = doctor.get("device", {}), doctor.get("machine")
    lines = [_card(device)] if device else []
    if machine:
        lines.append(machine_line(machine))
    if version := doctor.get("probe", {}).get("version"):
        lines.append(f"onnxruntime-gpu {version}.")
    return " ".join(lines)


def _device(results: Mapping[str, Any]) -> str:
    peaks = results.get("peaks")
    rates = (
        f" Measured rates: {peaks['flops'] / 1e12:.0f} TFLOP/s of an 8192³ matrix product in fp16, "
        f"{peaks['bytes'] / 1e9:,.0f} GB/s of a copy."
        if peaks
        else ""
    )
    return _card(results.get("device", {})) + rates


def _card(device: Mapping[str, Any]) -> str:
    known = {
        "driver": device.get("driver"),
        "CUDA": device.get("cuda"),
        "cuDNN": device.get("cudnn"),
        "torch": device.get("torch"),
    }
    return (
        f"{device.get('name', 'unknown device')}; "
        + ", ".join(f"{k} {v}" for k, v in known.items() if v)
        + "."
    )


def _convolution(rows: Sequence[Mapping[str, Any]]) -> str:
    return table(
        ["operator", "`use_tf32`", "`fuse_conv_bias`", "one run", "rate", "error", "second run"],
        [
            [
                f"`{row['operator']}`",
                str(row["use_tf32"]),
                str(row["fuse_conv_bias"]),
                *(
                    [_cause(row["error"]), "–", "–", "–"]
                    if "error" in row
                    else [
                        f"{row['microseconds']:.0f} µs",
                        f"{row['tflops']:.0f} TFLOP/s",
                        *(f"{error:.1e}" for error in row["errors"]),
                    ]
                ),
            ]
            for row in rows
        ],
    )


def _phantom(found: Mapping[str, Any]) -> str:
    rows = []
    for name, one in found.items():
        if "error" in one:
            rows.append([name, one["error"][:120], *["–"] * 5])
            continue
        rows.append(
            [
                name,
                str(one["scans"]),
                f"{one['psnr_db']['least']:.1f} dB",
                f"{one['psnr_db']['median']:.1f} dB",
                f"{one['same_captions']:.1%}",
                " / ".join(f"{one[f'{flow}_latent_error']:.1e}" for flow in ("image", "text")),
                f"{one['decode_ms']['median']:.1f} ms",
            ]
        )
    head = ["bundle", "scans", "PSNR, worst", "median", "same captions", "image / text latents", "a decode"]
    return table(head, rows)


def _steps(found: Mapping[str, Any]) -> str:
    graphs = list(next(one["errors"] for one in found.values() if "errors" in one))
    rows = [
        [LABELS.get(name, name), *(f"{one['errors'][graph]:.1e}" for graph in graphs)]
        if "errors" in one
        else [LABELS.get(name, name), one["error"][:120], *["–"] * (len(graphs) - 1)]
        for name, one in found.items()
        if name != "torch fp32"
    ]
    return table(["", *(f"`{graph}`" for graph in graphs)], rows)


def _decodes(results: Mapping[str, Any], found: Mapping[str, Any], bounds: Mapping[str, Any]) -> str:
    limit = sum(stage["limit_ms"] for stage in bounds.values())
    rows = []
    for name, record in results["variants"].items():
        times = {
            work: [one[work][name] for one in found["rounds"] if name in one[work]]
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
        found = [one[work][slow] / one[work][fast] for one in rounds if {slow, fast} <= one[work].keys()]
        if found:
            rows.append([name, f"**{median(found):.2f}**", f"{min(found):.2f}–{max(found):.2f}"])
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
    preset, found = "paper", results["presets"]["paper"]
    compiled = {
        stage: median(one[stage] for one in rounds)
        for name, rounds in staged.items()
        if name.startswith(COMPILED)
        for stage in rounds[0]
    }
    rows = []
    if BEST in found["stages"]:
        own = [median(one[stage] for one in found["stages"][BEST]) for stage in STAGES]
        rows.append([LABELS[BEST], *(f"{each:.1f}" for each in own), f"{sum(own):.0f}"])
    for name, rounds in staged.items():
        if not name.startswith(COMPILED):
            spent = [median(one[stage] for one in rounds) for stage in STAGES]
            rows.append([LABELS.get(name, name), *(f"{each:.1f}" for each in spent), f"{sum(spent):.0f}"])
    sections = [f"## torch.compile and other settings, `{preset}`"]
    if set(compiled) == set(STAGES):
        spent = [compiled[stage] for stage in STAGES]
        rows.append([LABELS[COMPILED], *(f"{each:.1f}" for each in spent), f"{sum(spent):.0f}"])
        decode = median(one["decode"][BEST] for one in found["rounds"] if BEST in one["decode"])
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
    for stage, found in stages.items():
        total = found["microseconds"]
        rows = [
            [f"`{_short(name)}`", str(count), f"{spent / count:.1f}", f"{spent / total:.1%}"]
            for name, count, spent in found["rows"][:_KERNELS]
        ]
        title = f"{stage.replace('_', ' ')}: {found['launches']:,} launches, {total / 1000:.1f} ms"
        sections += [title, table(["kernel", "launches", "µs each", "of the time"], rows)]
    return sections


def _cause(error: str) -> str:
    """What ONNX Runtime gives as its reason, without where it came through."""
    return (error.partition("Status Message: ")[2] or error).partition(": ")[0][:80]


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


PAGES = {"correct": correct_page, "fast": fast_page}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results"), show_default=True)
@click.option(
    "--notes", type=click.Path(path_type=Path, exists=True), help="Folder of <name>.md, put under the title."
)
def main(folder: Path, out: Path, notes: Path | None) -> None:
    """Write the pages of what is in FOLDER."""
    for name, page in PAGES.items():
        if not (results := read(folder / f"{name}.json")):
            continue
        if notes is not None and (note := notes / f"{name}.md").is_file():
            results["notes"] = note.read_text(encoding="utf-8").strip()
        write(out / f"gpu-{name}.json", results)
        (out / f"gpu-{name}.md").write_text(page(results), encoding="utf-8")
        click.echo(f"{out / f'gpu-{name}.md'}")


if __name__ == "__main__":
    main()

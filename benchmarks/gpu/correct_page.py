"""What `correct` found, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unibrain_rt.benchmarks.gpu.page_parts import LABELS, card
from unibrain_rt.benchmarks.markdown import machine_line, table

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


def correct_page(results: Mapping[str, Any]) -> str:
    """Of `correct`, as Markdown."""
    doctor = results.get("doctor", {})
    sections = ["# The engine `cuda` on a GPU: is it right?", _machine(doctor), results.get("notes", "")]
    if rows := results.get("convolution", {}).get("rows"):
        sections += ["## 3 × 3 convolutions in fp16", _CONVOLUTION, _convolution(rows)]
    if part := results.get("phantom"):
        sections += ["## Decodes of the phantom, against the CPU in fp32", _PHANTOM, _phantom(part)]
    if part := results.get("steps"):
        sections += ["## One run of every graph, published size", _STEPS, _steps(part)]
    if part := results.get("tests"):
        lines = [line for line in part.get("lines", []) if not line.startswith("SKIPPED")]
        sections += ["## Tests marked `gpu`", "\n".join(f"- `{line[:160]}`" for line in lines)]
    return "\n\n".join(section for section in sections if section) + "\n"


def _machine(doctor: Mapping[str, Any]) -> str:
    device, machine = doctor.get("device", {}), doctor.get("machine")
    lines = [card(device)] if device else []
    if machine:
        lines.append(machine_line(machine))
    if version := doctor.get("probe", {}).get("version"):
        lines.append(f"onnxruntime-gpu {version}.")
    return " ".join(lines)


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


def _phantom(decodes: Mapping[str, Any]) -> str:
    rows = []
    for name, one in decodes.items():
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


def _steps(variants: Mapping[str, Any]) -> str:
    graphs = list(next(one["errors"] for one in variants.values() if "errors" in one))
    rows = [
        [LABELS.get(name, name), *(f"{one['errors'][graph]:.1e}" for graph in graphs)]
        if "errors" in one
        else [LABELS.get(name, name), one["error"][:120], *["–"] * (len(graphs) - 1)]
        for name, one in variants.items()
        if name != "torch fp32"
    ]
    return table(["", *(f"`{graph}`" for graph in graphs)], rows)


def _cause(error: str) -> str:
    """What ONNX Runtime gives as its reason, without where it came through."""
    return (error.partition("Status Message: ")[2] or error).partition(": ")[0][:80]

"""OpenVINO against ONNX Runtime on a CPU: a step of the published size, and whole decodes of the phantom.

Each part leaves a JSON file in the work folder and is skipped when that is there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

from unibrain_rt.benchmarks import machine
from unibrain_rt.benchmarks.inputs import FLOWS, Flow
from unibrain_rt.benchmarks.markdown import flow_section, machine_line, table
from unibrain_rt.benchmarks.peers.rounds import measure_flow
from unibrain_rt.engines import create_engine
from unibrain_rt.engines.host import usable_cores

NAME = "openvino-cpu"
ENGINES = ("onnxruntime", "openvino")
PRESETS = ("paper", "fast")
SUBJECT = "sub-01"
_ROUNDS: dict[Flow, int] = {"image": 1, "text": 2}
_SIDE, _PRODUCTS = 2048, 3
_PERFECT_DB = 200.0


def ceiling(rounds: int) -> dict[str, Any]:
    """What fp32 arithmetic costs here at best: FLOPs of a step, and the rate of torch's large matrix product."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from unibrain_rt.export.bundles.architecture import Architecture
    from unibrain_rt.export.bundles.graphs import unet_step
    from unibrain_rt.export.bundles.models.unet import FourFlowUNet

    architecture, flops = Architecture(), {}
    with torch.device("meta"):
        unet = FourFlowUNet(architecture.unet)
        for flow in FLOWS:
            graph = unet_step(unet, architecture, flow)
            with FlopCounterMode(display=False) as counter:
                graph.module(*graph.example.values())
            flops[flow] = counter.get_total_flops()
    torch.set_num_threads(usable_cores())
    a, b = torch.randn(_SIDE, _SIDE), torch.randn(_SIDE, _SIDE)
    rates = []
    for _ in range(rounds):
        begun = time.process_time()
        for _ in range(_PRODUCTS):
            a @ b
        rates.append(_PRODUCTS * 2 * _SIDE**3 / (time.process_time() - begun))
    return {"step_flops": flops, "flops_per_cpu_second": max(rates)}


def phantom(scans: int) -> dict[str, Any]:
    """Decodes of scenes never shown in training, one after another on either engine."""
    from unibrain_rt.bundle import Bundle
    from unibrain_rt.captions import CaptionOptions
    from unibrain_rt.decoder import Decoder
    from unibrain_rt.export.phantom.people import held_out

    bundle = Bundle.open(None)
    engines = {name: create_engine(name) for name in ENGINES}
    found = {}
    for preset in PRESETS:
        decoders = {
            name: Decoder(bundle, bundle.subject(SUBJECT), engine, preset, CaptionOptions())
            for name, engine in engines.items()
        }
        size = bundle.graph("autokl_decode").tensor("image").sized(1)[-1]
        _, _, betas = held_out(SUBJECT, scans, size)
        rows = []
        for number, scan in enumerate(betas):
            row: dict[str, Any] = {}
            results = {}
            for name in ENGINES if number % 2 == 0 else reversed(ENGINES):
                begun, begun_cpu = time.perf_counter(), time.process_time()
                results[name] = decoders[name].decode(scan, seed=number)
                row[name] = {
                    "seconds": time.perf_counter() - begun,
                    "cpu_seconds": time.process_time() - begun_cpu,
                }
            ours, theirs = (results[name] for name in ENGINES[::-1])
            row["psnr_db"] = _psnr(ours.image, theirs.image)
            row["same_caption"] = ours.caption == theirs.caption
            rows.append(row)
        found[preset] = rows
    return {"describe": {name: engine.describe() for name, engine in engines.items()}, "presets": found}


def start_up(rounds: int, scan: Path) -> dict[str, Any]:
    """Seconds of ``unibrain-rt decode`` on the phantom that are not the decode itself, with plans there."""
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            one = {}
            for name in ENGINES if number % 2 == 0 else reversed(ENGINES):
                command = [
                    sys.executable,
                    "-m",
                    "unibrain_rt",
                    "decode",
                    str(scan),
                    "--out",
                    folder,
                    "--overwrite",
                ]
                before = os.times()
                begun = time.perf_counter()
                subprocess.run(
                    [*command, "--engine", name, "--preset", "fast"],
                    cwd=folder,
                    check=True,
                    capture_output=True,
                )
                seconds, after = time.perf_counter() - begun, os.times()
                written = json.loads((Path(folder) / f"{scan.stem}.json").read_text(encoding="utf-8"))
                one[name] = {
                    "seconds": seconds - written["timings_ms"]["total"] / 1000,
                    "process_cpu_seconds": after.children_user
                    + after.children_system
                    - before.children_user
                    - before.children_system,
                }
            if number > 0:  # the first compiles
                measured.append(one)
    return {"rounds": measured}


def page(parts: Mapping[str, Any], notes: str) -> str:
    """The results as Markdown."""
    sections = [
        "# OpenVINO on a CPU",
        "Written by `python -m unibrain_rt.benchmarks.openvino_cpu`; every number is in the JSON file of that name.",
        machine_line(parts["machine"]),
        notes,
    ]
    if "phantom" in parts:
        sections += ["## Decodes of the phantom", _phantom_section(parts["phantom"])]
    if "start-up" in parts:
        sections += ["## Start-up", _start_section(parts["start-up"]["rounds"])]
    if "ceiling" in parts:
        sections += ["## The ceiling in fp32", _ceiling_section(parts["ceiling"], parts)]
    for flow in FLOWS:
        if f"steps-{flow}" in parts:
            sections += [
                f"## One guided step of the {flow} flow, published size",
                "Random weights. Error: to the first variant's next latent.",
                flow_section(parts[f"steps-{flow}"]),
            ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _phantom_section(found: Mapping[str, Any]) -> str:
    rows = []
    for preset, decodes in found["presets"].items():
        wall, cpu = (
            median(row[ENGINES[0]][kind] / row[ENGINES[1]][kind] for row in decodes)
            for kind in ("seconds", "cpu_seconds")
        )
        rows.append(
            [
                preset,
                str(len(decodes)),
                f"{min(row['psnr_db'] for row in decodes):.1f} dB",
                f"{np.mean([row['same_caption'] for row in decodes]):.0%}",
                *(f"{median(row[name]['seconds'] for row in decodes):.2f} s" for name in ENGINES),
                f"**{wall:.2f}**",
                f"**{cpu:.2f}**",
            ]
        )
    head = ["preset", "scans", "least PSNR", "same caption", *ENGINES, "times faster", "by processor time"]
    precision = found["describe"]["openvino"]["precision"]
    return table(head, rows) + f"\n\nOpenVINO in {precision}, against ONNX Runtime in fp32; medians."


def _start_section(rounds: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            name,
            f"{median(one[name]['seconds'] for one in rounds):.2f} s",
            f"{min(one[name]['seconds'] for one in rounds):.2f} s",
            f"{median(one[name]['process_cpu_seconds'] for one in rounds):.2f} s",
        ]
        for name in ENGINES
    ]
    note = (
        "`unibrain-rt decode` of one scan with the preset fast, from the start of the process to its end, without the "
        f"decode itself; plans were there; {len(rounds)} rounds. Processor time is of the whole process."
    )
    return "\n\n".join([note, table(["engine", "median", "least", "processor time"], rows)])


def _ceiling_section(found: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    rate = found["flops_per_cpu_second"]
    rows = []
    for flow, flops in found["step_flops"].items():
        steps = parts.get(f"steps-{flow}")
        if steps is not None:
            spent = [steps["cpu_seconds"][f"{name}/partitioned"]["median"] for name in ENGINES]
            rows.append(
                [
                    flow,
                    f"{flops / 1e12:.2f}",
                    f"{flops / rate:.1f} s",
                    *(f"{seconds:.1f} s" for seconds in spent),
                ]
            )
    note = f"A large fp32 matrix product of torch runs at {rate / 1e9:.0f} GFLOP/s a core here, by processor time."
    head = ["flow", "TFLOP a step", "at that rate", *(f"{name}, processor time" for name in ENGINES)]
    return "\n\n".join([note, table(head, rows)])


def _psnr(one: Any, other: Any) -> float:
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return _PERFECT_DB if error == 0 else 10 * float(np.log10(255**2 / error))


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Holds checkpoint/ and fp32/.")
@click.option("--scan", type=click.Path(path_type=Path), default=Path("examples/scan.npy"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results"), show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Of the image flow.")
@click.option("--scans", type=click.IntRange(1), default=60, show_default=True, help="Of the phantom.")
@click.option("--notes", default="", help="A paragraph for the page.")
def main(work: Path, scan: Path, out: Path, rounds: int, scans: int, notes: str) -> None:
    """Run the parts that are missing and write the results of all."""
    steps: dict[str, Callable[[], Any]] = {
        f"steps-{flow}": partial(
            measure_flow,
            flow,
            work / "checkpoint",
            dict.fromkeys(ENGINES, work / "fp32"),
            peers=ENGINES,
            rounds=rounds * _ROUNDS[flow],
        )
        for flow in FLOWS
    }
    every: dict[str, Callable[[], Any]] = {
        "phantom": partial(phantom, scans),
        "start-up": partial(start_up, rounds + 2, scan.resolve()),
        "ceiling": partial(ceiling, rounds + 2),
        **steps,
    }
    parts: dict[str, Any] = {"machine": machine.collect()}
    for name, measure in every.items():
        path = work / f"openvino-{name}.json"
        if not path.exists():
            click.echo(f"{name}: running", err=True)
            unfinished = path.with_suffix(".partial")
            unfinished.write_text(json.dumps(measure(), indent=1), encoding="utf-8")
            unfinished.rename(path)
        parts[name] = json.loads(path.read_text(encoding="utf-8"))
    (out / f"{NAME}.json").write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")
    (out / f"{NAME}.md").write_text(page(parts, notes), encoding="utf-8")
    click.echo(f"{out / NAME}.json and .md written")


if __name__ == "__main__":
    main()

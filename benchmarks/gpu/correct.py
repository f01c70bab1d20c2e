"""Whether the engine ``cuda`` is right: ``python -m unibrain_rt.benchmarks.gpu.correct --pack PACK --out OUT``.

Parts, each in a process of its own: `doctor`; the convolution of `convolution`; the phantom in fp32 and in fp16, with
CUDA graphs and without, against what the CPU decoded; one run of every graph of the published size, against torch in
fp32; and the tests that are marked ``gpu``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import numpy as np

from unibrain_rt.benchmarks.gpu import convolution, filling
from unibrain_rt.benchmarks.gpu.parts import read, run_part, write
from unibrain_rt.benchmarks.gpu.reference import compare_all, decode_all
from unibrain_rt.benchmarks.gpu.scan import distance
from unibrain_rt.benchmarks.logged import logged_lines
from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import create_engine, probe

MODULE = "unibrain_rt.benchmarks.gpu.correct"
FEW = 12
"""Scans without CUDA graphs: there the host's launches take their time."""
PHANTOMS = {
    "fp32": ("fp32-half-weights", True, True, None),
    "fp32, no graphs": ("fp32-half-weights", False, True, FEW),
    "fp16": ("fp16", True, True, None),
    "fp16, no graphs": ("fp16", False, True, FEW),
    "fp16, plain": ("fp16", True, False, None),
    "fp16, plain, no graphs": ("fp16", False, False, FEW),
}
"""By name: the bundle's precision, whether runs are captured, whether graphs are the engine's own, how many scans."""
EXACT = "torch fp32"
STEPS = ("torch eager", "cuda, plain", "cuda")
LIMITS_S = {"doctor": 60, "convolution": 60, "phantom": 130, "steps": 150, "tests": 90}


def doctor(pack: Path, out: Path) -> None:
    """What the probe and the command say, and the versions of what is used."""
    from unibrain_rt.benchmarks import machine
    from unibrain_rt.benchmarks.gpu.card import describe

    begun = perf_counter()
    probed = probe("cuda")
    results: dict[str, Any] = {
        "probe": {
            "usable": probed.usable,
            "device": probed.device,
            "version": probed.version,
            "says": str(probed),
        },
        "probe_seconds": perf_counter() - begun,
        "machine": machine.collect(),
    }
    write(out / "doctor.json", results)
    done = subprocess.run(
        [sys.executable, "-m", "unibrain_rt", "doctor"], capture_output=True, text=True, timeout=60
    )
    # Where the bundle and the plans lie is the machine's own affair.
    lines = [line for line in done.stdout.splitlines() if not re.match(r"ok +(bundle|plans) ", line)]
    results["doctor"] = {"code": done.returncode, "out": lines, "err": done.stderr[-1500:]}
    write(out / "doctor.json", results)
    results["device"] = describe("cuda")
    write(out / "doctor.json", results)


def phantom(pack: Path, out: Path, engine: str = "cuda") -> None:
    """Decodes of held-out scans, in all of `PHANTOMS`, against the CPU's."""
    from unibrain_rt.export.bundles.conversion import convert_bundle

    results: dict[str, Any] = {}
    with (
        np.load(pack / "reference.npz", allow_pickle=False) as saved,
        tempfile.TemporaryDirectory() as folder,
    ):
        reference = {name: saved[name] for name in saved.files}
        half = Path(folder) / "phantom"
        convert_bundle(Bundle.open(None).folder, half, precision="fp16")
        bundles = {"fp32-half-weights": Bundle.open(None), "fp16": Bundle.open(half)}
        for name, (precision, capture, flavour, scans) in PHANTOMS.items():
            begun = perf_counter()
            with logged_lines() as told:
                try:
                    running = create_engine(engine, capture=capture)
                    if not flavour:
                        running.flavour = None
                    decoded = decode_all(bundles[precision], running, reference["betas"][:scans])
                    results[name] = compare_all(decoded, reference)
                except Exception as error:  # what fails is worth as much as what works
                    results[name] = {"error": f"{type(error).__name__}: {error}"[:800]}
            results[name] |= {"told": told, "seconds": perf_counter() - begun}
            write(out / "phantom.json", results)


def steps(pack: Path, out: Path, device: str = "cuda", variants: tuple[str, ...] = STEPS) -> None:
    """One run of every graph of the published size in torch and in the engine: distances to torch in fp32."""
    from unibrain_rt.benchmarks.gpu.variant_worker import Answers

    results: dict[str, Any] = {}
    outputs: dict[str, dict[str, Any]] = {}
    with filling.room() as folder:
        for place, name in enumerate((EXACT, *variants)):
            try:
                answers = Answers(name, pack / "published", folder, device, tokens=4)
                results[name] = answers({"command": "load", "fills": place == 0})
                path = folder / f"{place}.npz"
                answers({"command": "steps", "preset": "realtime", "path": str(path)})
                with np.load(path, allow_pickle=False) as saved:
                    outputs[name] = {graph: saved[graph] for graph in saved.files}
                results[name]["errors"] = {
                    graph: distance(array, outputs[EXACT][graph]) for graph, array in outputs[name].items()
                }
                results[name]["spread"] = {
                    graph: float(array.std()) for graph, array in outputs[name].items()
                }
            except Exception as error:  # what fails is worth as much as what works
                results.setdefault(name, {})["error"] = f"{type(error).__name__}: {error}"[:800]
            write(out / "steps.json", results)


def tests(pack: Path, out: Path) -> None:
    """The tests that need a GPU, as they are in the working folder."""
    words = ["-m", "gpu", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors", "-rA"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "tests/engines", "tests/runtime"],
        capture_output=True,
        text=True,
    )
    lines = [
        line for line in done.stdout.splitlines() if line.startswith(("PASSED", "FAILED", "SKIPPED", "ERROR"))
    ]
    results = {
        "code": done.returncode,
        "lines": lines,
        "end": done.stdout[-4000:],
        "err": done.stderr[-1000:],
    }
    write(out / "tests.json", results)


PARTS: dict[str, Callable[[Path, Path], None]] = {
    "doctor": doctor,
    "convolution": lambda pack, out: convolution.measure(out),
    "phantom": phantom,
    "steps": steps,
    "tests": tests,
}


def summary(out: Path) -> str:
    """What came out, a line each."""
    lines = []
    for row in read(out / "convolution.json").get("rows", []):
        settings = f"{row['operator']} tf32={row['use_tf32']} fuse={row['fuse_conv_bias']}"
        what = (
            row.get("error")
            or f"{row['tflops']:.0f} TFLOP/s, errors {row['errors'][0]:.1e} {row['errors'][1]:.1e}"
        )
        lines.append(f"{settings}: {what}")
    for name, measured in read(out / "phantom.json").items():
        if "error" in measured:
            lines.append(f"phantom {name}: {measured['error'][:300]}")
            continue
        lines.append(
            f"phantom {name}: {measured['scans']} scans, PSNR {measured['psnr_db']['least']:.1f} / "
            f"{measured['psnr_db']['median']:.1f} dB, captions {measured['same_captions']:.1%}, latents "
            f"{measured['image_latent_error']:.1e} {measured['text_latent_error']:.1e}, "
            f"{measured['decode_ms']['median']:.1f} ms, fallbacks {measured['fallbacks']}, told {measured['told'][:3]}"
        )
    for name, measured in read(out / "steps.json").items():
        errors = {graph: f"{value:.1e}" for graph, value in measured.get("errors", {}).items()}
        lines.append(
            f"published {name}: {measured.get('error', '')} {errors} loaded in {measured.get('seconds', 0):.0f} s "
            f"told {measured.get('told')}"
        )
    tested = read(out / "tests.json")
    lines += [line[:200] for line in tested.get("lines", []) if not line.startswith("SKIPPED")]
    return "\n".join(lines)


@click.command()
@click.option("--pack", type=click.Path(path_type=Path, exists=True), required=True, help="What `pack` made.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--part", type=click.Choice(list(PARTS)), help="One part, in this process.")
@click.option("--only", default=",".join(PARTS), show_default=True, help="Parts to run, in this order.")
def main(pack: Path, out: Path, part: str | None, only: str) -> None:
    """Compare the engine cuda with the CPU and with torch, part by part."""
    out.mkdir(parents=True, exist_ok=True)
    if part is not None:
        PARTS[part](pack, out)
        return
    if not (probed := probe("cuda")).usable:
        raise click.ClickException(f"engine {probed}")
    for name in only.split(","):
        ended = run_part(MODULE, name, out, {"pack": pack}, LIMITS_S[name])
        click.echo(f"== {name}: {ended['ended']} after {ended['seconds']} s")
        if "tail" in ended:
            click.echo("\n".join(ended["tail"])[-1500:])
    parts = {name: read(out / f"{name}.json") for name in PARTS}
    write(out / "correct.json", {name: part for name, part in parts.items() if part})
    click.echo(summary(out))
    click.echo(json.dumps(parts["doctor"].get("probe", {})))


if __name__ == "__main__":
    main()

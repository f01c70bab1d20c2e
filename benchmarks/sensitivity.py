"""Whether ``bench --compare`` catches a slowdown put in on purpose, and lets noise between runs of one build pass.

Three results are measured again and again, one after another: a build, the same build, and the same with every run of a
graph made longer. The first is compared with either of the others.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from unibrain_rt.benchmarks.bench.bench_tables import NAMES
from unibrain_rt.benchmarks.bench.cli import KIND
from unibrain_rt.benchmarks.bench.compare import THRESHOLD, WHOLE, compare
from unibrain_rt.benchmarks.bench.runner import Plan, describe, measure
from unibrain_rt.benchmarks.markdown import machine_line, table
from unibrain_rt.bundle import Bundle

NAME = "sensitivity"
BUILDS = ("build", "same", "slowed")


def run_trial(plan: Plan, bundle: Bundle, slowdown: float) -> dict[str, Any]:
    """One comparison of either kind: ratios of all parts and which were called slower."""
    results = {}
    for build in BUILDS:
        settings = replace(plan, slowdown=slowdown if build == "slowed" else 0.0)
        results[build] = {"kind": KIND, **describe(settings, bundle), "cases": measure(settings)}
    found = {
        build: [asdict(one) for one in compare(results["build"], results[build])] for build in BUILDS[1:]
    }
    loads = [
        one["load_average"] for each in results.values() for case in each["cases"] for one in case["rounds"]
    ]
    return {**found, "load_average": [min(loads), max(loads)]}


def called_slower(parts: list[dict[str, Any]]) -> bool:
    """What ``--compare`` exits with 1 for."""
    return any(one["verdict"] == "slower" for one in parts)


def page(results: dict[str, Any]) -> str:
    """The trials as Markdown."""
    trials = results["trials"]
    caught = sum(called_slower(one["slowed"]) for one in trials)
    passed = sum(not called_slower(one["same"]) for one in trials)
    rows = [
        [
            str(number),
            *(cell for build in BUILDS[1:] for cell in _cells(one[build])),
            "–".join(f"{load:.1f}" for load in one["load_average"]),
        ]
        for number, one in enumerate(trials, start=1)
    ]
    head = [
        "trial",
        "same build",
        "called slower",
        f"slowed by {results['slowdown']:.0%}",
        "called slower",
        "load",
    ]
    note = "Ratios of a whole decode, with their 95 % intervals; in the next column the parts that were called slower."
    return (
        "\n\n".join(
            [
                "# What a comparison of two results notices",
                f"Written by `python -m unibrain_rt.benchmarks.{NAME}`. {results['settings']['runs']} "
                "decodes a result, "
                f"{results['settings']['threads']} thread, threshold {THRESHOLD:.0%}.",
                machine_line(results["machine"]),
                f"A slowdown of {results['slowdown']:.0%} was caught **{caught} of {len(trials)}** "
                "times; the same build "
                f"passed **{passed} of {len(trials)}** times.",
                table(head, rows),
                note,
            ]
        )
        + "\n"
    )


def _cells(parts: list[dict[str, Any]]) -> list[str]:
    whole = next(one for one in parts if one["part"] == WHOLE)
    slower = [NAMES.get(one["part"], "end to end") for one in parts if one["verdict"] == "slower"]
    return [f"{whole['ratio']:.3f} [{whole['low']:.3f}, {whole['high']:.3f}]", ", ".join(slower) or "–"]


@click.command()
@click.option("--bundle", type=click.Path(path_type=Path), help="[default: the shipped phantom]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results"), show_default=True)
@click.option(
    "--work", type=click.Path(path_type=Path), required=True, help="Keeps every trial, to go on from there."
)
@click.option("--trials", type=click.IntRange(1), default=10, show_default=True)
@click.option("--runs", type=click.IntRange(1), default=40, show_default=True, help="Decodes of a result.")
@click.option("--slowdown", type=click.FloatRange(0), default=0.2, show_default=True)
@click.option("--engine", default="onnxruntime", show_default=True)
@click.option("--preset", default="fast", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
def main(
    bundle: Path | None, out: Path, work: Path, trials: int, runs: int, slowdown: float, engine: str, preset: str,
    threads: int,
) -> None:  # fmt: skip
    """Run the trials that are missing and write the results of all."""
    opened = Bundle.open(bundle)
    plan = Plan(opened.folder, (engine,), (preset,), threads=threads, runs=runs)
    work.mkdir(parents=True, exist_ok=True)
    found = []
    for number in range(trials):
        path = work / f"trial-{number}.json"
        if not path.exists():
            unfinished = path.with_suffix(".partial")
            unfinished.write_text(json.dumps(run_trial(plan, opened, slowdown)), encoding="utf-8")
            unfinished.rename(path)
        found.append(json.loads(path.read_text(encoding="utf-8")))
        told = ", ".join(f"{build} {' '.join(_cells(found[-1][build]))}" for build in BUILDS[1:])
        click.echo(f"trial {number + 1}: {told}", err=True)
    results = {**describe(plan, opened), "slowdown": slowdown, "trials": found}
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{NAME}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / f"{NAME}.md").write_text(page(results), encoding="utf-8")
    click.echo(f"{out / NAME}.json and .md written")


if __name__ == "__main__":
    main()

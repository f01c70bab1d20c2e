"""Ridge heads at the size of one NSD subject: fit and store; time, memory and fidelity.

    python -m unibrain_rt.benchmarks.ridge.nsd_size --work DIR [--scale 1.0]

The data are simulated by `nsd_like`; targets lie on disk as float16, 4.8 GB. ``--scale`` shrinks everything. Heads are
stored as `write_subject` does, and compared with dense heads that are predicted in the dual form. How fast they are
applied is `apply`'s.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np

from unibrain_rt.benchmarks import machine
from unibrain_rt.benchmarks.kept_results import KeptResults, out_option, write_results
from unibrain_rt.benchmarks.memory import memory_of
from unibrain_rt.benchmarks.ridge.nsd_like import BLOCK, SEED, Floats, NsdLikeWorld, write_targets
from unibrain_rt.export.subjects.ridge import RidgeFit, fit_heads
from unibrain_rt.export.subjects.ridge.journal import Journal
from unibrain_rt.export.subjects.subject_writer import write_subject
from unibrain_rt.subject import Subject
from unibrain_rt.subject_files import TENSOR_FILE


def correlations(first: Floats, second: Floats) -> Floats:
    """Pearson (T,) over scans of predictions (N, T)."""
    first, second = (values - values.mean(axis=0) for values in (first, second))
    products_of = (first * second).sum(axis=0)
    return products_of / np.sqrt(np.square(first).sum(axis=0) * np.square(second).sum(axis=0))


class Identification:
    """Two-way identification by correlation of whole predictions with true targets, summed up over blocks."""

    def __init__(self, scans: int) -> None:
        self.products = np.zeros((scans, scans))
        self.sums = np.zeros((4, scans))
        self.count = 0

    def add(self, predicted: Floats, true: Floats) -> None:
        self.products += predicted @ true.T
        self.sums += [
            values.sum(axis=1, dtype=np.float64)
            for values in (predicted, np.square(predicted), true, np.square(true))
        ]
        self.count += predicted.shape[1]

    @property
    def percent(self) -> float:
        f, ff, t, tt = self.sums / self.count
        similar = (self.products / self.count - np.outer(f, t)) / np.sqrt(np.outer(ff - f * f, tt - t * t))
        own = np.diag(similar)
        others = len(own) - 1
        return float(100 * ((similar < own[:, None]).sum(axis=1) / others).mean())


def compare(
    world: NsdLikeWorld,
    fits: dict[str, RidgeFit],
    subjects: dict[str, Subject],
    betas: Floats,
    latents: Floats,
    work: Path,
) -> dict[str, dict[str, Any]]:
    """Stored predictions against dense ones on unseen scans: correlation by head, identification of stimuli."""
    compared: dict[str, dict[str, Any]] = {name: {} for name in subjects}
    stored: dict[str, dict[str, Floats]] = {}
    for name, subject in subjects.items():
        # On disk: of all subjects, memory has no room for them.
        for head, values in subject.predict(betas).items():
            path = work / f"{name}.{head}.npy"
            np.save(path, values.reshape(len(betas), -1))
            stored.setdefault(head, {})[name] = np.load(path, mmap_mode="r")
    for head, fit in fits.items():
        of_targets = fit.coefficients(fit.basis.z(betas) @ fit.basis.axes)
        each: dict[str, list[Floats]] = {name: [] for name in subjects}
        identified = {name: Identification(len(betas)) for name in (*subjects, "dense")}
        for start in range(0, fit.targets.count, BLOCK):
            part = slice(start, min(start + BLOCK, fit.targets.count))
            y = fit.targets.block(part, fit.basis, fit.held_out.folds.order).y
            mean = fit.target_mean[part]
            dense = fit.calibration[part] * (of_targets @ y)
            true = world.targets(head, latents, part.start, part.stop) - mean
            identified["dense"].add(dense, true)
            for name, values in stored[head].items():
                each[name].append(correlations(dense, values[:, part]))
                identified[name].add(values[:, part] - mean, true)
        for name, subject in subjects.items():
            correlation = np.concatenate(each[name])
            compared[name][head] = {
                "correlation": float(np.nanmean(correlation)),
                "worst_target": float(np.nanmin(correlation)),
                "identification_dense": identified["dense"].percent,
                "identification_stored": identified[name].percent,
                "rank": subject.heads[head].rank,
                "kept": subject.heads[head].fidelity,
                "alpha": fit.alpha,
                "held_out_correlation": fit.mean_correlation,
                "size_bytes": subject.size_bytes(head),
            }
            (work / f"{name}.{head}.npy").unlink()
    return compared


def measure(work: Path, scale: float, max_mb: float, budgets: tuple[float, ...]) -> dict[str, Any]:
    """The whole benchmark: heads of at most ``max_mb`` are what is told of, ``budgets`` draw the curve."""
    work.mkdir(parents=True, exist_ok=True)
    world = NsdLikeWorld(scale)
    latents = world.latent_scans()
    betas = world.betas(latents)
    tests, test_latents = betas[world.scans :].copy(), latents[world.scans :]
    np.save(work / "betas.npy", betas[: world.scans])
    del betas
    targets = write_targets(world, latents[: world.scans], work)
    begin = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - begin:7.0f} s  {what}", flush=True)

    journal = Journal(work / "journal", {"scale": scale, "seed": SEED})
    seconds = KeptResults(work, "seconds-")
    with _timed(seconds, "fit"):
        fits = fit_heads(np.load(work / "betas.npy", mmap_mode="r"), targets, journal=journal, report=say)
    wanted: dict[str, dict[str, Any]] = {"stored": {"fidelity": 0.999, "max_bytes": round(1e6 * max_mb)}}
    wanted |= {f"{budget:g}": {"fidelity": budget} for budget in budgets}
    subjects = {}
    for name, options in wanted.items():
        folder = work / f"subject-{name}"
        with _timed(seconds, name):
            if not folder.exists():
                write_subject(folder, "nsd", fits, beta_scale=1.0, journal=journal, report=say, **options)
        subjects[name] = Subject.open(folder)
        if name == "stored":
            peak = max(seconds.read("peak") or 0, _high_water())
            seconds.keep("peak", peak)
    compared = compare(world, fits, subjects, tests, test_latents, work)
    return {
        "machine": machine.collect(),
        "load_average": machine.load_average(),
        "scale": scale,
        "scans": world.scans,
        "voxels": world.voxels,
        "targets": sum(math.prod(shape) for shape in world.shapes.values()),
        "seconds": {"fit": seconds.read("fit"), "store": seconds.read("stored")},
        "peak_rss_bytes": seconds.read("peak"),
        "curve": [
            {
                "name": name,
                "size_bytes": (subjects[name].folder / TENSOR_FILE).stat().st_size,
                "correlation": float(np.mean([head["correlation"] for head in heads.values()])),
                "worst_head": min(head["correlation"] for head in heads.values()),
                "heads": heads,
            }
            for name, heads in compared.items()
        ],
    }


def _high_water() -> int:
    memory = memory_of()
    assert memory is not None
    return memory.high_water


@contextmanager
def _timed(seconds: KeptResults, part: str) -> Iterator[None]:
    """Keeps what a part took when it was done; in a later run on the same folder it is only read again."""
    start = time.monotonic()
    yield
    if not seconds.there(part):
        seconds.keep(part, time.monotonic() - start)


def page(nsd: dict[str, Any]) -> str:
    """The results as Markdown."""
    stored = nsd["curve"][0]
    dense_bytes = 4 * nsd["voxels"] * nsd["targets"]
    lines = [
        "# Ridge heads at the size of NSD",
        "",
        f"{nsd['scans']:,} × {nsd['voxels']:,} voxels, {nsd['targets']:,} targets (scale {nsd['scale']:g}), "
        f"simulated as `benchmarks/ridge/nsd_like.py` says; {nsd['machine']['cpu']}, "
        f"{nsd['machine']['cores']} cores, load {nsd['load_average']}.",
        "",
        f"Fit {nsd['seconds']['fit'] / 60:.1f} min, stored in {nsd['seconds']['store'] / 60:.1f} min; peak memory "
        f"{nsd['peak_rss_bytes'] / 2**30:.1f} GiB. Dense heads are {dense_bytes / 1e9:.2f} GB, stored ones "
        f"{stored['size_bytes'] / 1e9:.3f} GB.",
        "",
        "| head | alpha | held-out r | rank | MB | r with dense | worst target | identification dense, stored |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {name} | {head['alpha']:g} | {head['held_out_correlation']:.3f} | {head['rank']} "
            f"| {head['size_bytes'] / 1e6:.1f} | {head['correlation']:.5f} | {head['worst_target']:.4f} "
            f"| {head['identification_dense']:.2f}, {head['identification_stored']:.2f} % |"
            for name, head in stored["heads"].items()
        ),
        "",
        "![Size against fidelity](ridge-nsd.png)",
        "",
    ]
    return "\n".join(lines)


def plot(measured: dict[str, Any], path: Path) -> None:
    """Size of the stored heads against how far their predictions are from dense heads'."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), dpi=120)
    points = sorted(measured["curve"], key=lambda point: point["size_bytes"])
    sizes = [point["size_bytes"] / 1e6 for point in points]
    for key, label in (("correlation", "mean of heads"), ("worst_head", "worst head")):
        axes.loglog(sizes, [1 - point[key] for point in points], "o-", label=label)
    axes.set(xlabel="stored heads (MB)", ylabel="1 - correlation with dense predictions")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


@click.command()
@click.option(
    "--work", type=click.Path(path_type=Path), required=True, help="For 10 GB of data; a killed run goes on."
)
@click.option("--scale", type=float, default=1.0, show_default=True)
@click.option("--max-mb", type=float, default=600.0, show_default=True, help="Of the heads that are told of.")
@click.option(
    "--budget",
    "budgets",
    type=float,
    multiple=True,
    default=(0.95, 0.98, 0.99, 0.995, 0.9985),
    show_default=True,
)
@out_option
def main(work: Path, scale: float, max_mb: float, budgets: tuple[float, ...], out: Path) -> None:
    """Fit, store and judge ridge heads at the size of NSD, simulated."""
    measured = measure(work, scale, max_mb, budgets)
    write_results(out / "ridge-nsd", measured, page(measured))
    plot(measured, out / "ridge-nsd.png")


if __name__ == "__main__":
    main()

"""Applying stored ridge heads to scans: from a warm map, cold from disk, in batches; beside reading, and dense heads.

    python -m unibrain_rt.benchmarks.ridge.apply SUBJECT_FOLDER --out benchmarks/results/ridge-apply

A round times every variant once, one after another; medians over the rounds, and ratios within them, are told.
"Reading" the factors' bytes is done in two ways, on every core: copied block by block into a buffer that stays in
cache, as reading a file does, and summed up as 64-bit words, which is as fast as memory gives them. Dense heads are
multiplied by the same code from a file of float32, for a slice of at most ``--dense-mb``, and scaled up to the whole.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from unibrain_rt.benchmarks import machine
from unibrain_rt.benchmarks.kept_results import result_option, write_results
from unibrain_rt.benchmarks.markdown import machine_line, table
from unibrain_rt.engines.host import usable_cores
from unibrain_rt.factors import Factor, products
from unibrain_rt.subject import Subject
from unibrain_rt.subject_files import TENSOR_FILE

LABELS = {
    "one scan": "one scan, from a warm map",
    "a scan of 16": "a scan of a batch of 16",
    "copy": "copying the bytes",
    "sum": "summing the bytes up",
    "dense": "one scan, dense heads",
}
_COPIED = 1 << 15  # words at a time: a quarter of a megabyte


def measure(folder: Path, work: Path, rounds: int, dense_mb: int) -> dict[str, Any]:
    """Milliseconds of each variant in each round."""
    path = folder / TENSOR_FILE
    size = path.stat().st_size
    _drop(path)
    start = time.perf_counter()
    subject = Subject.open(folder)
    scan = np.random.default_rng(0).standard_normal(subject.voxels).astype(np.float32)
    scan = subject.voxel_mean + subject.voxel_std * scan
    subject.predict(scan)
    cold = 1000 * (time.perf_counter() - start)
    batch = np.repeat(scan[None], 16, axis=0)
    words = np.memmap(path, np.uint8, "r")[: size // 8 * 8].view(np.int64)
    targets = sum(head.targets for head in subject.heads.values())
    width = max(1, min(targets, (dense_mb << 20) // (4 * subject.voxels)))
    dense = _dense(work / "dense.npy", subject.voxels, width)
    z = np.random.default_rng(1).standard_normal((1, subject.voxels), np.float32)
    variants: dict[str, tuple[Callable[[], object], float]] = {
        "one scan": (lambda: subject.predict(scan), 1.0),
        "a scan of 16": (lambda: subject.predict(batch), 1 / 16),
        "copy": (lambda: _on_all_cores(_copy, words), 1.0),
        "sum": (lambda: _on_all_cores(np.sum, words), 1.0),
        "dense": (lambda: products([z], [dense]), targets / width),
    }
    milliseconds: dict[str, list[float]] = {name: [] for name in variants}
    try:
        for number in range(rounds + 1):
            for name, (run, share) in variants.items():
                start = time.perf_counter()
                run()
                if number:  # the first warms up
                    milliseconds[name].append(1000 * (time.perf_counter() - start) * share)
    finally:
        (work / "dense.npy").unlink()
    return {
        "machine": machine.collect(),
        "load_average": machine.load_average(),
        "voxels": subject.voxels,
        "targets": targets,
        "ranks": {name: head.rank for name, head in subject.heads.items()},
        "bytes": size,
        "dense_bytes": 4 * subject.voxels * targets,
        "dense_share": width / targets,
        "cold_ms": cold,
        "milliseconds": milliseconds,
    }


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    milliseconds = results["milliseconds"]
    rows = [
        [
            LABELS[name],
            f"{median(each):.1f}",
            f"{min(each):.1f}–{max(each):.1f}",
            *(
                f"{median(a / b for a, b in zip(each, milliseconds[read], strict=True)):.2f}"
                for read in ("copy", "sum")
            ),
        ]
        for name, each in milliseconds.items()
    ]
    ranks = ", ".join(f"{name} {rank or 'exact'}" for name, rank in results["ranks"].items())
    return (
        "\n\n".join(
            [
                "# Applying ridge heads",
                "`python -m unibrain_rt.benchmarks.ridge.apply`: "
                f"{results['voxels']:,} voxels, {results['targets']:,} targets, {results['bytes'] / 1e6:.0f} MB "
                f"(ranks: {ranks}); dense heads would be {results['dense_bytes'] / 1e9:.2f} GB, and were timed on "
                f"{results['dense_share']:.0%} of that. Load average {results['load_average']}, which counts others.",
                machine_line(results["machine"]),
                table(["", "median ms", "range", "times copying", "times summing"], rows),
                f"Cold from disk, opening the subject included: {results['cold_ms']:.0f} ms (once).",
            ]
        )
        + "\n"
    )


def _dense(path: Path, voxels: int, width: int) -> Factor:
    """A warm map of random weights (voxels, width)."""
    row = np.random.default_rng(0).standard_normal(width, np.float32)
    dense = np.lib.format.open_memmap(path, "w+", np.float32, (voxels, width))
    for voxel in range(voxels):
        dense[voxel] = row
    dense.flush()
    return Factor(np.asarray(np.load(path, mmap_mode="r")))


def _copy(words: NDArray[np.int64]) -> None:
    buffer = np.empty(_COPIED, np.int64)
    for start in range(0, len(words), _COPIED):
        part = words[start : start + _COPIED]
        np.copyto(buffer[: len(part)], part)


def _on_all_cores(work: Callable[[NDArray[np.int64]], object], words: NDArray[np.int64]) -> None:
    cores = usable_cores()
    edges = [len(words) * number // cores for number in range(cores + 1)]
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(lambda bounds: work(words[slice(*bounds)]), pairwise(edges)))


def _drop(path: Path) -> None:
    """Out of the page cache, as far as the kernel obeys."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@click.command()
@click.argument("subject", type=click.Path(path_type=Path, exists=True))
@result_option
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True)
@click.option("--dense-mb", type=click.IntRange(1), default=2048, show_default=True)
def main(subject: Path, out: Path, rounds: int, dense_mb: int) -> None:
    """Time the heads in the folder SUBJECT, as `write_subject` leaves them."""
    results = measure(subject, out.parent, rounds, dense_mb)
    write_results(out, results, page(results))


if __name__ == "__main__":
    main()

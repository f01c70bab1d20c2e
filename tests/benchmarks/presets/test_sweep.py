"""The choice of presets, on scores made up by hand; and a sweep of two cells from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner

for library in ("torch", "skimage", "nltk", "onnxruntime"):
    pytest.importorskip(library)

from unibrain_rt.benchmarks.presets import sweep  # noqa: E402
from unibrain_rt.benchmarks.presets.choice import PAPER, Cell, cells, choose, frontier, judge  # noqa: E402
from unibrain_rt.flows import FLOWS  # noqa: E402
from unibrain_rt.presets import PRESETS  # noqa: E402
from unibrain_rt.samplers import Schedule  # noqa: E402

PAPER_CELL = Cell(PRESETS[PAPER]).name


def record(
    steps: int, pixcorr: float, clip: float = 0.95, noise: float = 0.01, like: float = 0.99
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    scores = {
        name: (value + noise * rng.standard_normal(50)).tolist()
        for name, value in (("PixCorr", pixcorr), ("CLIP", clip))
    }
    return {"running": steps, "scores": scores, "against_paper": {"PixCorr": like}}


def judged(**records: dict[str, Any]) -> dict[str, dict[str, Any]]:
    every = {PAPER_CELL: record(500, 0.6), **records}
    for one in every.values():
        one["judged"] = judge(one, every[PAPER_CELL])
    return every


def test_every_cell_is_a_table_that_runs() -> None:
    every = cells()
    assert every[0].preset == PRESETS[PAPER]
    assert len({cell.name for cell in every}) == len(every) > 100
    for cell in every:
        for flow in FLOWS:
            assert len(cell.preset.table(Schedule(), flow).timesteps) == cell.running


def test_fast_is_the_quickest_that_loses_nothing() -> None:
    found = judged(same=record(150, 0.6), worse=record(100, 0.585), bad=record(50, 0.3))
    assert choose(found) == {"fast": "same", "realtime": "worse"}
    assert choose(judged(bad=record(50, 0.3))) == {"fast": PAPER_CELL, "realtime": PAPER_CELL}


def test_fast_gives_the_pictures_of_paper() -> None:
    found = judged(other=record(50, 0.61, like=0.9), same=record(100, 0.6))
    assert choose(found) == {"fast": "same", "realtime": "other"}


def test_of_as_many_steps_the_better_is_taken() -> None:
    assert choose(judged(good=record(50, 0.6), better=record(50, 0.62)))["fast"] == "better"


def test_one_measure_that_is_lost_is_enough() -> None:
    # Above chance, which is one half, a tenth is lost.
    found = judged(blind=record(100, 0.6, clip=0.905))
    assert found["blind"]["judged"]["lost"]["CLIP"] == pytest.approx(0.1, abs=0.01)
    assert choose(found)["fast"] == PAPER_CELL


def test_a_loss_below_the_noise_and_the_limit_passes() -> None:
    found = judged(close=record(100, 0.599, noise=0.05))
    assert choose(found)["fast"] == "close"


def test_the_frontier_is_what_no_quicker_cell_reaches() -> None:
    found = judged(a=record(50, 0.3), b=record(100, 0.5), c=record(120, 0.4), d=record(200, 0.7))
    assert frontier(found) == ["a", "b", "d"]


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    words = ["--work", str(work), "--out", str(out), "--scans", "3"]
    first = CliRunner().invoke(sweep.main, [*words, "--cells", "1"], catch_exceptions=False)
    assert first.exit_code == 0, first.output
    # The only cell is paper's: nothing is quicker.
    results = json.loads((out / "presets.json").read_text("utf-8"))
    assert results["chosen"] == {"fast": PAPER_CELL, "realtime": PAPER_CELL}
    kept = (work / f"{PAPER_CELL}.json").stat().st_mtime_ns
    second = CliRunner().invoke(sweep.main, [*words, "--cells", "1"], catch_exceptions=False)
    assert second.exit_code == 0, second.output
    assert (work / f"{PAPER_CELL}.json").stat().st_mtime_ns == kept
    ElementTree.parse(out / "presets.svg")
    refused = CliRunner().invoke(sweep.main, [*words[:-1], "4", "--cells", "1"])
    assert refused.exit_code == 2
    assert "another number of scans" in refused.output
    # Of the first three, one runs no more than three steps.
    third = CliRunner().invoke(
        sweep.main, [*words, "--cells", "3", "--most-steps", "3"], catch_exceptions=False
    )
    assert third.exit_code == 0, third.output
    results = json.loads((out / "presets.json").read_text("utf-8"))
    left = [cell for cell in cells()[:3] if cell.name not in results["cells"]]
    assert [cell.running > 3 for cell in left] == [True]
    assert results["complete_to_steps"] == left[0].running - 1

"""The committed pages are what the committed results give."""

from __future__ import annotations

from pathlib import Path

import pytest

from unibrain_rt.benchmarks.gpu.pages import PAGES
from unibrain_rt.benchmarks.gpu.parts import read


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_as_its_results_say(name: str, repository: Path) -> None:
    path = repository / "benchmarks" / "results" / f"gpu-{name}.json"
    assert PAGES[name](read(path)) == path.with_suffix(".md").read_text("utf-8"), (
        "run python -m unibrain_rt.benchmarks.gpu.pages"
    )


def test_the_targets_are_told_as_they_were_met(repository: Path) -> None:
    """Of the first GPU that this ran on: what the page claims beside what was measured."""
    rounds = read(repository / "benchmarks" / "results" / "gpu-fast.json")["presets"]["paper"]["rounds"]
    decode = sorted(one["decode"]["cuda"] for one in rounds)[len(rounds) // 2]
    ratios = sorted(one["decode"]["torch eager"] / one["decode"]["cuda"] for one in rounds)
    captions = sorted(one["caption"]["cuda, no graphs"] / one["caption"]["cuda"] for one in rounds)
    assert 270 < decode < 450
    assert ratios[len(rounds) // 2] > 2.5
    assert captions[len(rounds) // 2] > 1.2

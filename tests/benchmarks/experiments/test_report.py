"""The whole report on the shipped bundle, small: few scans, few steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from unibrain_rt.benchmarks.experiments import experiments
from unibrain_rt.benchmarks.experiments.report import run
from unibrain_rt.benchmarks.quality.ablations import VARIANTS
from unibrain_rt.errors import InputError
from unibrain_rt.export.phantom.people import SUBJECTS

pytestmark = pytest.mark.slow
SCANS = 12


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from click.testing import CliRunner

    from unibrain_rt.benchmarks.experiments.cli import command

    folder = tmp_path_factory.mktemp("report") / "out"
    words = ["report", "--out", str(folder), "--scans", str(SCANS), "--preset", "realtime"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments, "ACTIVATIONS", 2)
        result = CliRunner().invoke(command, words, catch_exceptions=False)
    assert result.exit_code == 0
    return folder


@pytest.fixture(scope="module")
def tables(out: Path) -> dict[str, list[dict[str, Any]]]:
    record = json.loads((out / "report.json").read_text("utf-8"))
    return {
        f"{section['title']}: {block['table']}": block["rows"]
        for section in record["sections"]
        for block in section["blocks"]
        if "table" in block
    }


def test_it_leaves_one_page_its_text_its_figures_and_a_contact_sheet(out: Path) -> None:
    assert {path.name for path in out.iterdir()} == {
        "report.html",
        "report.md",
        "report.json",
        "examples.png",
    }
    assert Image.open(out / "examples.png").size[0] > 500
    html = (out / "report.html").read_text("utf-8")
    assert html.count("<img ") > 100
    assert "<script" not in html
    assert "http://" not in html


def test_every_subject_is_scored_with_intervals(tables: dict[str, list[dict[str, Any]]]) -> None:
    rows = tables["How good the decodes are: Pictures"]
    assert [row["subject"] for row in rows] == list(SUBJECTS)
    for row in rows:
        for measure in ("CLIP", "Judge", "Pixels", "PixCorr", "SSIM"):
            cell = row[measure]
            assert cell["n"] == SCANS
            assert cell["low"] <= cell["mean"] <= cell["high"]
    captions = tables["How good the decodes are: Captions"]
    assert {"METEOR", "ROUGE-1", "ROUGE-L", "CLIP", "names kind", "names colour"} <= set(captions[0])


def test_both_ablations_stand_beside_the_paper_s(tables: dict[str, list[dict[str, Any]]]) -> None:
    names = [variant.name for variant in VARIANTS]
    for what in ("images", "captions"):
        ours = tables[f"Ablation: {what}: The phantom"]
        assert [row["variant"] for row in ours] == names
        paper = next(
            rows for title, rows in tables.items() if title.startswith(f"Ablation: {what}: The paper")
        )
        assert [row["variant"] for row in paper] == names
        assert paper[0]["CLIP"] == {"images": 0.93, "captions": 0.861}[what]
    means = {row["variant"]: row["PixCorr"]["mean"] for row in tables["Ablation: images: The phantom"]}
    # What the latent says of the layout is lost without it.
    assert means["full"] > means["without Z"] + 0.1


def test_regions_controls_and_agreement_are_there(tables: dict[str, list[dict[str, Any]]]) -> None:
    active = tables["Regions: one active: Each region active"]
    assert len(active) == 4 * len(SUBJECTS)
    assert all(row["captions of its kind"]["n"] == 2 for row in active)
    lesions = tables["Regions: one silenced: What is left"]
    assert lesions[0]["silenced"] == "nothing"
    controls = tables["Controls: Controls"]
    assert [row["control"] for row in controls] == ["shuffled voxels", "noise only", "mean scan"]
    decoded = tables["How good the decodes are: Pictures"][0]
    assert all(row["Pixels"]["mean"] < decoded["Pixels"]["mean"] for row in controls)
    pairs = tables["Across subjects: Agreement of two subjects"]
    assert len(pairs) == len(SUBJECTS) * (len(SUBJECTS) - 1) // 2


def test_a_report_that_is_there_is_kept(out: Path, cli: Callable[..., Any]) -> None:
    before = (out / "report.html").read_bytes()
    result = cli("phantom", "report", "--out", out, "--scans", "10")
    assert result.code == 2
    assert "exists already" in result.complaints[0]
    assert (out / "report.html").read_bytes() == before


def test_another_bundle_is_no_phantom(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="no phantom"):
        run(tiny_bundle, scans=10)

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from unibrain_rt import Decoder
from unibrain_rt.bundle import Bundle
from unibrain_rt.subject import Subject

SUBJECT = "sub-01"
PRESET = "realtime"


@pytest.fixture(scope="module")
def data(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The six example scans as one file, a kind for each, and a mask with two regions."""
    folder = tmp_path_factory.mktemp("data")
    examples = repository / "examples"
    first = np.load(examples / "scan.npy")[None]
    others = np.load(examples / "scans.npy").astype(np.float32) / 300
    np.save(folder / "scans.npy", np.concatenate([first, others]).astype(np.float32))
    (folder / "kinds.txt").write_text("word\nball\nword\nball\nball\nball\n", "utf-8")
    mask = Bundle.open().subject(SUBJECT).voxel_space.mask
    assert mask is not None
    inside = np.argwhere(mask)

    def volume(path: Path, voxels: np.ndarray) -> None:
        values = np.zeros(mask.shape, np.int16)
        values[tuple(voxels.T)] = 1
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)

    volume(folder / "mask.nii.gz", inside)
    (folder / "rois").mkdir()
    volume(folder / "rois" / "prf-visualrois.nii.gz", inside[:300])
    volume(folder / "rois" / "floc-faces.nii.gz", inside[500:600])
    return folder


def arguments(data: Path, repository: Path) -> list[str]:
    stimuli = repository / "examples" / "stimuli"
    files = {"--scans": data / "scans.npy", "--images": stimuli, "--captions": stimuli / "captions.json"}
    return [str(word) for pair in files.items() for word in pair]


@dataclass(frozen=True)
class Run:
    out: Path
    printed: str
    told: str
    modules: set[str]
    report: dict[str, Any]


@pytest.fixture(scope="module")
def run(data: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One evaluation with everything in it, in a process of its own."""
    out = tmp_path_factory.mktemp("evaluation") / "out"
    words = [
        "evaluate",
        *arguments(data, repository),
        "--subject",
        SUBJECT,
        "--preset",
        PRESET,
        "--seed",
        "5",
    ]
    words += ["--mask", str(data / "mask.nii.gz"), "--rois", str(data / "rois"), "--ablations", "--regions"]
    words += [
        "--kinds",
        str(data / "kinds.txt"),
        "--workers",
        "1",
        "--out",
        str(out),
        f"--json={out.parent}/s.json",
    ]
    code = (
        "import json, sys\nfrom unibrain_rt.cli import main\n"
        f"try: main({words!r})\nexcept SystemExit as end: assert not end.code, end.code\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=out.parent)
    assert done.returncode == 0, done.stderr
    *printed, modules = done.stdout.splitlines()
    report = json.loads((out / "report.json").read_text("utf-8"))
    return Run(out, "\n".join(printed), done.stderr, set(json.loads(modules)), report)


def test_needs_neither_torch_nor_the_exporters(run: Run) -> None:
    assert "onnxruntime" in run.modules
    assert not run.modules & {"torch", "transformers", "diffusers", "onnx", "optimum", "torchvision"}


def test_writes_a_report_of_everything_that_was_asked_for(run: Run) -> None:
    assert sorted(path.name for path in run.out.iterdir()) == ["report.html", "report.json", "report.md"]
    assert [section["title"] for section in run.report["sections"]] == [
        "What was seen, and what was decoded",
        "How good the decodes are",
        "By kind",
        "Controls",
        "Ablations",
        "Regions",
        "How this was made",
    ]
    evaluation = run.report["evaluation"]
    assert (evaluation["subject"], evaluation["scans"], evaluation["seed"]) == (SUBJECT, 6, 5)
    assert list(evaluation["conditions"]) == [
        "decoded",
        "shuffled voxels",
        "noise only",
        "mean scan",
        "only Z",
        "only C_T",
        "only C_I",
        "without Z",
        "without C_T",
        "without C_I",
        "early visual silenced",
        "faces silenced",
    ]
    source = (run.out / "report.html").read_text("utf-8")
    # Best, median and worst two with their stimuli; six of each control; six seeds of the active region.
    assert source.count("<img ") == 3 * 2 * 2 + 3 * 6 + 6
    assert (
        "without synonyms" in source
        or evaluation["conditions"]["decoded"]["captions"]["notes"]["meteor_synonyms"]
    )


def test_decodes_as_the_decoder_does(run: Run, data: Path) -> None:
    decoder = Decoder.open(subject=SUBJECT, preset=PRESET, threads=1)
    conditions = run.report["evaluation"]["conditions"]
    scans = np.load(data / "scans.npy")
    for place in (0, 4):
        assert (
            conditions["decoded"]["decoded_captions"][place] == decoder.decode(scans[place], seed=5).caption
        )


def test_decodes_are_better_than_controls(run: Run) -> None:
    means = {
        name: {measure: one["mean"] for measure, one in condition["images"]["metrics"].items()}
        for name, condition in run.report["evaluation"]["conditions"].items()
    }
    for name in ("shuffled voxels", "noise only", "mean scan"):
        assert means["decoded"]["PixCorr"] > means[name]["PixCorr"]
        assert means["decoded"]["Pixels"] > means[name]["Pixels"]
    # Silencing early visual cortex costs where things are.
    assert means["early visual silenced"]["PixCorr"] < means["decoded"]["PixCorr"]


def test_scores_are_printed_and_written_as_json(run: Run) -> None:
    assert "PixCorr" in run.printed
    assert "noise only" in run.printed
    assert "report.html: written in" in run.printed
    assert "decoded" in run.told
    record = json.loads((run.out.parent / "s.json").read_text("utf-8"))
    full, items = record["conditions"]["decoded"], run.report["evaluation"]["conditions"]["decoded"]
    assert full["images"]["metrics"]["CLIP"]["mean"] == items["images"]["metrics"]["CLIP"]["mean"]
    assert len(items["images"]["metrics"]["CLIP"]["items"]) == 6
    assert "items" not in full["images"]["metrics"]["CLIP"]


def test_kinds_are_broken_down(run: Run) -> None:
    table = next(s for s in run.report["sections"] if s["title"] == "By kind")["blocks"][1]
    assert [(row["kind"], row["n"]) for row in table["rows"]] == [("word", 2), ("ball", 4)]


@pytest.mark.parametrize(
    ("change", "code", "problem"),
    [
        (lambda words, data: words[2:], 2, "Give either --nsd, or --scans"),
        (lambda words, data: [*words, "--nsd", data], 2, "Give either --nsd, or --scans"),
        (lambda words, data: words[:2], 2, "--scans needs --images and --captions"),
        (lambda words, data: ["--nsd", data, *words[2:4]], 2, "--images goes with --scans"),
        (lambda words, data: [*words, "--coco", data], 2, "--coco goes with --nsd"),
        (lambda words, data: [*words, "--preset", "slow"], 2, "no preset 'slow'"),
        (lambda words, data: [*words, "--subject", "sub-99"], 2, "no subject 'sub-99'"),
        (lambda words, data: [*words, "--limit", "2"], 2, "--limit"),
        (lambda words, data: [*words, "--kinds", data / "five.txt"], 2, "5 kinds for 6 scans"),
        (lambda words, data: [*words, "--features", data / "five.txt"], 2, "not valid JSON"),
        (lambda words, data: ["--scans", data / "narrow.npy", *words[2:]], 2, "7 voxels"),
        (lambda words, data: [*words, "--out", data / "full"], 2, "exists already"),
        (lambda words, data: [*words, "--out", data / "five.txt"], 2, "a file stands"),
        (
            lambda words, data: [*words, "--out", data / "new", f"--json={data / 'new' / 'report.json'}"],
            2,
            "among the files",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_one_line_and_leaves_nothing(
    change: Callable[[list[Any], Path], list[Any]],
    code: int,
    problem: str,
    data: Path,
    repository: Path,
    tmp_path: Path,
    cli: Any,
    phantom_bundle: Path,
) -> None:
    (data / "five.txt").write_text("a\n" * 5, "utf-8")
    (data / "full").mkdir(exist_ok=True)
    (data / "full" / "report.json").write_text("{}", "utf-8")
    np.save(data / "narrow.npy", np.zeros((6, 7), np.float32))
    words = ["--out", tmp_path / "out", "--subject", SUBJECT]
    found = cli("evaluate", *words, *change(arguments(data, repository), data))
    assert found.code == code
    assert len([line for line in found.complaints if "unibrain-rt:" in line]) == 1
    assert re.search(problem, found.err), found.err
    assert not (tmp_path / "out").exists()


def test_a_report_is_never_written_into_the_bundle(
    data: Path, repository: Path, phantom_bundle: Path, cli: Any
) -> None:
    out = phantom_bundle / "report"
    found = cli("evaluate", *arguments(data, repository), "--subject", SUBJECT, "--out", out)
    assert found.code == 2
    assert "lies in the bundle" in found.err
    assert not out.exists()


def test_features_are_exported_by_name(cli: Any, tmp_path: Path) -> None:
    from unibrain_rt.export.judges import cli as features_cli
    from unibrain_rt.export.judges import extractors

    assert set(features_cli.NAMES) == set(extractors.NAMES)
    found = cli("export-features", "alexnet2", "--weights", tmp_path / "none.pth", "--out", tmp_path / "out")
    assert found.code == 2
    assert "no such file" in found.err
    assert not (tmp_path / "out").exists()


def test_regions_that_nobody_knows_are_one_line(
    data: Path, repository: Path, cli: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Subject, "rois", lambda subject: {})
    words = ["--subject", SUBJECT, "--regions", "--out", tmp_path / "out"]
    found = cli("evaluate", *arguments(data, repository), *words)
    assert found.code == 2
    assert "no regions are known of sub-01: give --rois" in found.err
    assert not (tmp_path / "out").exists()


def test_a_library_that_is_missing_is_named(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom unibrain_rt.cli import main\nsys.modules['rouge_score'] = None\n"
        "main(['evaluate', '--nsd', 'nowhere', '--out', 'out'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("unibrain-rt: evaluate needs rouge_score")
    assert line.endswith('which is not installed; run: pip install "unibrain-rt[export]"')

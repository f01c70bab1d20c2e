"""``unibrain-rt bench`` through its command line: what it measures, what it writes, and how it ends."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result

pytest.importorskip("onnxruntime")

from unibrain_rt.benchmarks.bench.cli import command
from unibrain_rt.benchmarks.bench.compare import THRESHOLD, compare
from unibrain_rt.benchmarks.bench.decodes import STAGES

RUNS = 3


def bench(*words: str) -> Result:
    return CliRunner().invoke(command, list(words))


def command_line(*words: str) -> subprocess.CompletedProcess[str]:
    """The whole command line, whose exit codes and messages are what users see."""
    return subprocess.run(
        [sys.executable, "-m", "unibrain_rt", "bench", *words], capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, str]:
    """Results of the phantom, the folder that they were written to, and what was printed."""
    out = tmp_path_factory.mktemp("bench") / "out"
    done = bench(
        "--engine", "onnxruntime", "--preset", "realtime", "--preset", "fast", "--threads", "1",
        "--runs", str(RUNS), "--out", str(out),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return json.loads((out / "bench.json").read_text("utf-8")), out, done.output


def test_every_stage_is_timed(measured: tuple[dict[str, Any], Path, str]) -> None:
    results, _, _ = measured
    assert [case["preset"] for case in results["cases"]] == ["realtime", "fast"]
    for case in results["cases"]:
        assert list(case["stages"]) == [*STAGES, "time"]
        for found in (*case["stages"].values(), *case["steps"].values()):
            assert 0 < found["p50"] <= found["p90"] <= found["p99"]
        records = [record for one in case["rounds"] for record in one["records"]]
        assert len(records) == RUNS
        for record in records:
            # The stages are the decode: what lies between them is little.
            assert 0.8 * record["end_to_end"] < sum(record["stages"].values()) <= record["end_to_end"]
            assert record["undisturbed"]["end_to_end"] <= record["end_to_end"] + 1e-3
        assert case["memory"]["peak_rss_bytes"] > case["memory"]["peak_own_bytes"] > 2**20
    steps = [case["steps"]["image_step"]["n"] / RUNS for case in results["cases"]]
    assert steps == [3, 5]


def test_the_hosts_part_in_a_loop_is_small(measured: tuple[dict[str, Any], Path, str]) -> None:
    for case in measured[0]["cases"]:
        assert 0 < case["host_share"]["image_step"] < 0.1


def test_limits_and_projections_are_there(measured: tuple[dict[str, Any], Path, str]) -> None:
    results, _, printed = measured
    for case in results["cases"]:
        for stage, limit in case["roofline"].items():
            assert limit["limit_ms"] > 0, stage
            if stage != "all":
                spent = case["stages"][stage]["p50"]
                assert limit["share"] == pytest.approx(limit["limit_ms"] / spent)
    devices = {one["device"]: one for one in results["projections"]}
    assert devices["H200"]["limit_ms"] < devices["Jetson Orin Nano 8GB"]["limit_ms"]
    assert all("not measured" in one["projection"] for one in devices.values())
    assert "Projections, not measurements" in printed


def test_start_up_is_told_part_by_part(measured: tuple[dict[str, Any], Path, str]) -> None:
    (one,) = measured[0]["startup"]
    assert one["warm_ms"]["n"] == RUNS
    assert all(one["parts_ms"][part] > 0 for part in ("interpreter", "imports", "graphs", "decode"))
    # The parts were timed in runs of their own, which took longer or less long on a machine that others use.
    assert 0.2 < sum(one["parts_ms"].values()) / one["warm_ms"]["p50"] < 5


def test_the_page_and_the_picture(measured: tuple[dict[str, Any], Path, str]) -> None:
    results, out, _ = measured
    page = (out / "bench.md").read_text("utf-8")
    for expected in (results["bundle"]["fingerprint"], results["machine"]["cpu"], "bench.svg", "end to end"):
        assert expected in page
    assert results["bundle"]["fingerprint"] in (out / "bench.svg").read_text("utf-8")
    root = ElementTree.parse(out / "bench.svg").getroot()
    bars = [each for each in root.iter() if each.tag.endswith("rect") and len(each)]
    assert len(bars) == 2 * len(STAGES)


def scaled(
    results: dict[str, Any], factor: float, noise: float = 0.0, part: str | None = None
) -> dict[str, Any]:
    """Results as they would be of a build that takes ``factor`` as long, in ``part`` or in all."""
    rng = np.random.default_rng(int(1000 * factor))
    made = copy.deepcopy(results)
    for case in made["cases"]:
        case["rounds"] = [copy.deepcopy(case["rounds"][0]) for _ in range(10)]
        for one in case["rounds"]:
            drift = 1 + noise * rng.standard_normal()
            for record in one["records"]:
                for name in record["undisturbed"]:
                    own = factor if part in (None, name) else 1.0
                    record["undisturbed"][name] = 10 * own * drift * (1 + noise * rng.standard_normal())
                record["calibration"] = drift
        case["undisturbed_p50"] = dict.fromkeys(case["undisturbed_p50"], 10 * factor)
    return made


@pytest.mark.parametrize(("factor", "slower"), [(1.2, True), (1.0, False), (1.03, False), (0.7, False)])
def test_a_slowdown_is_told_from_noise(
    measured: tuple[dict[str, Any], Path, str], factor: float, slower: bool
) -> None:
    found = compare(scaled(measured[0], 1.0, 0.03), scaled(measured[0], factor, 0.03))
    whole = [one for one in found if one.part == "end_to_end"]
    assert len(whole) == 2
    assert [one.verdict == "slower" for one in whole] == [slower] * 2
    for one in whole:
        assert one.low < factor < one.high
    assert (whole[0].verdict == "faster") == (factor < 1 / (1 + THRESHOLD))


def test_a_faster_machine_does_not_hide_a_slower_build(measured: tuple[dict[str, Any], Path, str]) -> None:
    old, new = scaled(measured[0], 1.0, 0.02), scaled(measured[0], 1.2, 0.02)
    for case in new["cases"]:
        for record in (record for one in case["rounds"] for record in one["records"]):
            record["calibration"] /= 1.2
            for name in record["undisturbed"]:
                record["undisturbed"][name] /= 1.2
    assert {one.verdict for one in compare(old, new) if one.part == "end_to_end"} == {"slower"}


def test_one_slow_stage_is_noticed(measured: tuple[dict[str, Any], Path, str]) -> None:
    found = compare(scaled(measured[0], 1.0), scaled(measured[0], 1.2, part="autokl"))
    assert {one.part for one in found if one.verdict == "slower"} == {"autokl"}


def test_compare_exits_with_1_where_it_is_slower(
    measured: tuple[dict[str, Any], Path, str], tmp_path: Path
) -> None:
    files = {}
    for name, factor in (("old", 1.0), ("same", 1.01), ("slow", 1.25)):
        files[name] = str(tmp_path / f"{name}.json")
        Path(files[name]).write_text(json.dumps(scaled(measured[0], factor, 0.01)), encoding="utf-8")
    same = command_line("--compare", files["old"], files["same"])
    assert (same.returncode, same.stderr) == (0, "")
    slow = command_line("--compare", files["old"], files["slow"], f"--json={tmp_path / 'found.json'}")
    assert slow.returncode == 1
    assert slow.stderr.count("\n") == 1
    assert "is slower" in slow.stderr
    assert json.loads((tmp_path / "found.json").read_text("utf-8"))["slower"] is True
    assert command_line("--compare", files["old"], files["slow"], "--threshold", "40").returncode == 0


def test_results_that_cannot_be_compared_say_why(
    measured: tuple[dict[str, Any], Path, str], tmp_path: Path
) -> None:
    old, other = tmp_path / "old.json", tmp_path / "other.json"
    old.write_text(json.dumps(measured[0]), encoding="utf-8")
    changes: dict[str, tuple[str, Any]] = {
        "different bundles": ("bundle", {**measured[0]["bundle"], "fingerprint": "0"}),
        "different machines": ("machine", {**measured[0]["machine"], "cores": 99}),
        "another --threads": ("settings", {**measured[0]["settings"], "threads": 7}),
        "no engine and preset in common": ("cases", []),
        "not a result of unibrain-rt bench": ("kind", "shopping list"),
    }
    for problem, (key, value) in changes.items():
        other.write_text(json.dumps({**measured[0], key: value}), encoding="utf-8")
        done = bench("--compare", str(old), str(other))
        assert getattr(done.exception, "exit_code", None) == 2
        assert problem in str(done.exception)
    other.write_text("{", encoding="utf-8")
    assert "not valid JSON" in str(bench("--compare", str(old), str(other)).exception)
    assert "cannot be read" in str(bench("--compare", str(old), str(tmp_path / "none.json")).exception)


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["no-such-bundle"], 2, "no such bundle"),
        (["--preset", "slow"], 2, "no preset 'slow'"),
        (["--engine", "abacus", "--no-startup"], 3, "unknown engine 'abacus'"),
        (["--engine", "abacus"], 3, "unknown engine 'abacus'"),
        (["--subject", "nobody", "--no-startup"], 2, "no subject 'nobody'"),
        (["--scan", "none.npy", "--no-startup"], 2, "none.npy"),
        (["--runs", "0"], 2, "--runs"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(words: list[str], code: int, problem: str) -> None:
    done = command_line(*words)
    assert done.returncode == code, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("unibrain-rt: ")
    assert problem in last
    assert "Traceback" not in done.stderr


def test_nothing_is_written_into_the_bundle(tiny_template: Path) -> None:
    done = bench(str(tiny_template), "--out", str(tiny_template / "results"))
    assert "lies in the bundle" in str(done.exception)
    assert not (tiny_template / "results").exists()


@pytest.mark.slow
def test_a_bundle_without_subjects_and_scans_at_a_time(tiny_template: Path, tmp_path: Path) -> None:
    done = bench(
        str(tiny_template),
        "--preset",
        "realtime",
        "--runs",
        "2",
        "--batch",
        "2",
        f"--json={tmp_path / 'r.json'}",
    )
    assert done.exit_code == 0, done.output
    (case,) = json.loads((tmp_path / "r.json").read_text("utf-8"))["cases"]
    assert case["scans_per_second"] > 0
    # Two decodes in each of two processes.
    assert sum(len(one["records"]) for one in case["rounds"]) == 4


WITHOUT = "import sys; sys.modules.update(dict.fromkeys({libraries!r})); from unibrain_rt.cli import main; main({words!r})"
NOT_LEAN = (
    "torch",
    "onnx",
    "diffusers",
    "transformers",
    "scipy",
    "matplotlib",
    "skimage",
    "safetensors",
)


def test_a_lean_install_measures_and_compares(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [
        "bench",
        "--engine",
        "onnxruntime",
        "--preset",
        "realtime",
        "--runs",
        "1",
        "--no-startup",
        "--out",
        str(out),
    ]
    for each in (words, ["bench", "--compare", str(out / "bench.json"), str(out / "bench.json")]):
        code = WITHOUT.format(libraries=NOT_LEAN, words=each)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert "end to end" in done.stdout

"""The published-size benchmark's driver, with its long parts replaced: resuming, results, the page."""

from __future__ import annotations

import json
import platform
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from unibrain_rt.benchmarks import export_cost, machine, published
from unibrain_rt.benchmarks.export_cost import measure_export
from unibrain_rt.benchmarks.memory import PeakMemory
from unibrain_rt.benchmarks.peers.rounds import summarise

MEMORY = {"anonymous_bytes": 2**30, "file_backed_bytes": 0, "total_bytes": 2**30, "high_water_bytes": 2**30}


def fake_export(checkpoint: Path, bundle: Path, precision: str, config: Path | None) -> dict[str, Any]:
    stage = {
        "name": "unet_time",
        "seconds": 3.0,
        "peak_rss_bytes": None,
        "peak_anonymous_bytes": None,
        "peak_file_backed_bytes": None,
    }
    return {
        "precision": precision,
        "seconds": 70.0,
        "cpu_seconds": 60.0,
        "peak_rss_bytes": 3 * 2**30,
        "peak_anonymous_bytes": 2**30,
        "peak_file_backed_bytes": 2**31,
        "checkpoint_bytes": 2**32,
        "stages": [stage],
        "files": {"bundle.json": 1000, f"graphs/{precision}.onnx": 2_000_000},
    }


def fake_flow(
    flow: str, checkpoint: Path, bundles: Any, *, peers: Any, rounds: int, **_: Any
) -> dict[str, Any]:
    variants = [f"{peer}/{'whole' if peer in ('torch', 'diffusers') else 'partitioned'}" for peer in peers]
    one = {name: {"seconds": 1.0 + place, "cpu_seconds": 2.0} for place, name in enumerate(variants)}
    group = {"peers": list(peers), "rounds": [one] * rounds}
    peer = {
        "load_seconds": 9.0,
        "first_step_seconds": {"whole": 4.0},
        "peak_rss_bytes": 2**30,
        "peaks": {"load": MEMORY},
    }
    return {
        "flow": flow,
        "threads": 2,
        "timestep": 721,
        "load_average_before": 0.1,
        "step_weights_bytes": 8_000_000_000,
        "groups": [group],
        "peers": dict.fromkeys(peers, peer),
        "relative_errors": dict.fromkeys(variants, 3e-7),
        **summarise([group["rounds"]]),
    }


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for the long parts; collects what was asked for."""
    calls: list[str] = []

    def note(what: str, result: Any) -> Any:
        calls.append(what)
        return result

    monkeypatch.setattr(
        published, "measure_export", lambda *a: note(f"export {a[2]}", fake_export(*a)), raising=True
    )
    monkeypatch.setattr(
        published, "measure_flow", lambda flow, *a, **k: note(f"flow {flow}", fake_flow(flow, *a, **k))
    )
    monkeypatch.setattr(
        published.Published,
        "_write_checkpoint",
        lambda self: note("checkpoint", {"seconds": 100.0, "files": {"a.safetensors": 15_000_000_000}}),
    )
    return calls


def run(tmp_path: Path, *extra: str) -> str:
    arguments = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--rounds", "3", *extra]
    done = CliRunner().invoke(published.main, arguments)
    assert done.exit_code == 0, done.output
    return done.output


def test_parts_run_once_and_end_in_a_page(tmp_path, measured):
    run(tmp_path)
    everything = [
        "checkpoint",
        "export fp32",
        "export fp16",
        "flow image",
        "flow text",
        "flow image",
        "flow text",
    ]
    assert measured == everything
    assert "measured before, kept" in run(tmp_path)
    assert measured == everything
    results = json.loads((tmp_path / "out" / "published-cpu.json").read_text(encoding="utf-8"))
    assert [flow["flow"] for flow in results["flows"]] == ["image", "text"]
    assert [len(flow["groups"][0]["rounds"]) for flow in results["flows"]] == [3, 9]
    assert results["machines"] == [machine.collect()]
    page = (tmp_path / "out" / "published-cpu.md").read_text(encoding="utf-8")
    for expected in (
        "`a.safetensors` 15.00 GB; written in 100 s.",
        "| fp16 | 70 s | 60 s | 3.00 GiB | 1.00 GiB | 2.00 GiB | 0.00 GB |",
        "| unet_time | 3 s | – | – | 3 s | – | – |",
        "| `graphs/fp16.onnx` | – | 2.0 |",
        "| our torch module, whole step | 2.000 s | 2.000–2.000 s | 2.000 s | 3.0e-07 |",
        "| ONNX Runtime partitioned over torch whole | **2.00** | 2.00–2.00 |",
        "### The fp16 bundle on a CPU, text flow",
    ):
        assert expected in page
    assert str(tmp_path) not in page + json.dumps(results)


def test_a_part_runs_alone_and_again_without_its_file(tmp_path, measured):
    run(tmp_path, "--part", "export")
    assert measured == ["export fp32", "export fp16"]
    (tmp_path / "work" / "export-fp16.json").unlink()
    run(tmp_path, "--part", "export")
    assert measured[2:] == ["export fp16"]
    page = (tmp_path / "out" / "published-cpu.md").read_text(encoding="utf-8")
    assert "## Export" in page
    assert "guided step" not in page


def test_a_failing_part_leaves_the_others_results(tmp_path, measured, monkeypatch):
    def fail(*_: Any) -> None:
        raise RuntimeError("export exited 3: no space")

    monkeypatch.setattr(published, "measure_export", fail)
    done = CliRunner().invoke(published.main, ["--work", str(tmp_path / "work"), "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert "no space" in done.output
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["checkpoint.json"]
    page = (tmp_path / "published-cpu.md").read_text(encoding="utf-8")
    assert "## Checkpoint" in page
    assert "## Export" not in page


def fake_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exit_code: int) -> None:
    """Stands in for Python running ``unibrain-rt export``: two lines of progress, then a bundle."""
    script = tmp_path / "python"
    script.write_text(
        "#!/bin/sh\n"
        "echo '[1/2] unet_context     0 s' >&2; sleep 0.5\n"
        "echo '[2/2] unet_time        1 s' >&2; sleep 0.5\n"
        f'mkdir -p "$6"; echo x > "$6/bundle.json"; echo the end >&2; exit {exit_code}\n',
        encoding="utf-8",
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(export_cost.sys, "executable", str(script))


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's accounts of memory")
def test_an_export_is_timed_by_its_progress(tmp_path, monkeypatch):
    fake_interpreter(tmp_path, monkeypatch, 0)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "a.safetensors").write_bytes(bytes(7))
    found = measure_export(tmp_path / "checkpoint", tmp_path / "bundle", "fp16", None)
    assert [stage["name"] for stage in found["stages"]] == ["start", "unet_context", "unet_time"]
    assert all(stage["seconds"] >= 0.4 for stage in found["stages"][1:])
    assert sum(stage["seconds"] for stage in found["stages"]) == pytest.approx(found["seconds"], abs=1e-6)
    assert found["stages"][1]["peak_rss_bytes"] > 0
    assert found["peak_rss_bytes"] > 0
    assert found["checkpoint_bytes"] == 7
    assert found["files"] == {"bundle.json": 2}


def test_a_failed_export_says_why(tmp_path, monkeypatch):
    fake_interpreter(tmp_path, monkeypatch, 3)
    with pytest.raises(RuntimeError, match=r"(?s)--precision fp32 exited 3.*the end"):
        measure_export(tmp_path, tmp_path / "bundle", "fp32", None)


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's accounts of memory")
def test_peak_memory_is_seen_from_outside():
    code = "import sys; a = b'x' * 80_000_000; print('full', flush=True); sys.stdin.readline()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with PeakMemory(process.pid) as memory:
        memory.stage = "full"
        assert process.stdout is not None
        process.stdout.readline()
        memory.sample()
        process.communicate("\n")
    assert 80e6 < memory.peak.anonymous < 300e6
    assert memory.peak.high_water >= memory.peak.total > memory.peak.anonymous
    assert list(memory.stages) == ["full"]


def test_the_machine_is_described_but_not_named():
    found = machine.collect()
    assert found["cores"] >= 1
    assert found["packages"]["numpy"]
    text = json.dumps(found)
    assert platform.node() not in text
    assert "/" not in text.replace("GNU/Linux", "")

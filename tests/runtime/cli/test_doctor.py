"""``unibrain-rt doctor``: what it prints, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unibrain_rt.engines import Engine, EngineError, GraphSpec, catalogue

Run = Callable[..., Any]


def state_of(out: str, name: str) -> str:
    return next(line.split()[0] for line in out.splitlines() if line.split()[1:2] == [name])


def test_the_phantom_is_looked_at_by_default(cli: Run) -> None:
    pytest.importorskip("onnxruntime")
    done = cli("doctor")
    assert (done.code, done.err) == (0, "")
    for name in ("platform", "onnxruntime", "auto", "bundle", "memory", "plans"):
        assert state_of(done.out, name) in {"ok", "warning"}
    assert "phantom" in done.out
    assert done.out.splitlines()[-1].startswith("0 problems, ")


def test_json(cli: Run, tiny_bundle: Path, plans: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    done = cli("doctor", tiny_bundle, "--json")
    assert (done.code, done.err) == (0, "")
    (record,) = (json.loads(line) for line in done.out.splitlines())
    assert record["ok"]
    assert record["auto"]["engine"] == "onnxruntime"
    assert record["auto"]["variable"] == "onnxruntime"
    assert {engine["engine"] for engine in record["engines"]} == set(catalogue.ENGINES)
    assert record["bundle_memory"]["needed_bytes"] > record["bundle_memory"]["needed_low_memory_bytes"] > 0
    assert record["cache"]["folder"] == str(plans)
    assert {check["state"] for check in record["checks"]} <= {"ok", "warning", "problem", "–"}
    assert cli("doctor", tiny_bundle, "--json", tmp_path / "doctor.json").out
    assert json.loads((tmp_path / "doctor.json").read_text())["ok"]


def test_auto_tells_what_it_would_rather_have_taken(
    cli: Run, copying: Any, plans: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UNIBRAIN_RT_ENGINE")
    done = cli("doctor", tiny_bundle)
    line = next(line for line in done.out.splitlines() if line.split()[1:2] == ["auto"])
    assert "onnxruntime on cpu; passed over copying (6 of 6 plans are missing" in line
    cli("build", tiny_bundle, "--engine", "copying")
    line = next(line for line in cli("doctor", tiny_bundle).out.splitlines() if line.split()[1:2] == ["auto"])
    assert line.endswith("copying on copier")
    elsewhere = cli("doctor", tiny_bundle, "--cache", plans / "none").out
    assert "passed over copying" in elsewhere


def test_where_no_engine_works(cli: Run, copying: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNIBRAIN_RT_ENGINE")
    monkeypatch.setattr(catalogue, "ENGINES", ("copying",))
    monkeypatch.setattr("unibrain_rt.diagnosis.ENGINES", ("copying",))
    copying.module.found = type(copying.module.found)(
        "copying", problem="is not installed", advice="install it"
    )
    done = cli("doctor")
    assert (done.code, done.err) == (3, "")
    assert state_of(done.out, "auto") == "problem"
    assert "→ install it" in done.out
    assert done.out.splitlines()[-1].startswith("1 problems")


def test_an_engine_whose_check_fails_spares_the_others(
    cli: Run, copying: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError("libcopy.so: undefined symbol")

    monkeypatch.setattr("unibrain_rt.diagnosis.ENGINES", ("copying", "onnxruntime"))
    copying.module.probe = fail
    done = cli("doctor")
    assert done.code == 0
    assert state_of(done.out, "copying") == "warning"
    assert "cannot be looked at (OSError: libcopy.so: undefined symbol)" in done.out


def test_a_broken_bundle_is_a_problem_among_the_others(cli: Run, tiny_bundle: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tiny_bundle / "graphs" / "unet_time.onnx").unlink()
    done = cli("doctor", tiny_bundle)
    assert done.code == 3
    assert state_of(done.out, "bundle") == "problem"
    assert state_of(done.out, "onnxruntime") == "ok"


def test_a_graph_that_is_no_onnx_is_a_problem(
    cli: Run, tiny: Any, tiny_bundle: Path, tiny_scan: Path, tmp_path: Path
) -> None:
    """A file that is not the one that was exported is the doctor's; one that was never a graph is the decode's."""
    graph = tiny_bundle / "graphs" / "unet_time.onnx"
    graph.write_bytes(b"\x3a\xff\x01")
    done = cli("doctor", tiny_bundle)
    assert done.code == 3
    assert state_of(done.out, "bundle") == "problem"
    tiny.seal(tiny_bundle)
    done = cli("decode", tiny_scan, "--bundle", tiny_bundle, "--out", tmp_path / "out")
    assert done.code == 3
    assert len(done.complaints) == 1
    assert "unet_time" in done.complaints[0]


def test_no_such_bundle(cli: Run, tmp_path: Path) -> None:
    done = cli("doctor", tmp_path / "none")
    assert (done.code, done.out) == (2, "")
    assert "no such bundle" in done.complaints[0]


def test_graphs_that_miss_kernels_are_told(
    cli: Run, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")

    def check(engine: Engine, graph: GraphSpec, free: int = 1) -> None:
        if graph.name == "unet_image_step":
            raise EngineError(f"{graph.name}: only 0 of 4 attention nodes have a kernel; run: pip install it")

    monkeypatch.setattr("unibrain_rt.engines.onnxruntime.OnnxRuntimeEngine.check", check)
    done = cli("doctor", tiny_bundle)
    assert done.code == 0
    assert state_of(done.out, "speed") == "warning"
    assert "unet_image_step: only 0 of 4 attention nodes have a kernel" in done.out
    assert "→ run: pip install it" in done.out
    record = json.loads(cli("doctor", tiny_bundle, "--json").out)
    assert len(record["auto"]["slow"]) == 1

"""``unibrain-rt build``: what it compiles, what it finds, what it tells, and the cache that it shows and prunes."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unibrain_rt.engines.plans import KERNELS, PlanCache, PlanKey

Run = Callable[..., Any]
GRAPHS = ["unet_context", "unet_image_step", "unet_text_step", "autokl_decode", "optimus_decode", "unet_time"]


@pytest.fixture
def build(cli: Run, copying: Any, plans: Path, tiny_bundle: Path) -> Run:
    """Builds for the preset ``paper``."""
    return lambda *words: cli("build", tiny_bundle, "--engine", "copying", "--preset", "paper", *words)


def test_every_graph_of_a_decode_is_compiled(build: Run, plans: Path) -> None:
    done = build()
    assert done.code == 0
    lines = done.out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == GRAPHS
    assert all("built in" in line and line.endswith("never built") for line in lines[:-1])
    assert lines[-1].startswith("6 built in ")
    assert lines[-1].endswith(f" in {plans}")
    assert done.complaints == [f"{graph}: copying compiles it (never built)" for graph in GRAPHS]
    assert len(list(plans.glob("*.plan"))) == 6


def test_a_second_build_is_all_hits(build: Run) -> None:
    build()
    done = build()
    assert (done.code, done.err) == (0, "")
    assert all(line.split()[-3] == "hit" for line in done.out.splitlines()[:-1])
    assert done.out.splitlines()[-1].startswith("0 built in 0.0 s, 6 were there; ")
    assert "asked for" in build("--force").out


def test_all_presets_are_built_by_default(cli: Run, copying: Any, plans: Path, tiny_bundle: Path) -> None:
    done = cli("build", tiny_bundle, "--engine", "copying", "--json")
    plans_made = json.loads(done.out)["plans"]
    times = [plan["free"] for plan in plans_made if plan["graph"] == "unet_time"]
    assert len(times) == 3
    assert len(set(times)) == 3
    assert len(plans_made) == 8


def test_for_a_gpu_every_subjects_heads_are_compiled(
    cli: Run, copying: Any, plans: Path, tiny: Any, tmp_path: Path
) -> None:
    """Or those of the subjects named; an engine on the host applies them itself, and compiles none."""
    bundle = tiny.make_bundle(tmp_path / "two", ("sub-01", "sub-02"))
    words = ["build", bundle, "--engine", "copying", "--preset", "paper"]
    assert [line.split()[0] for line in cli(*words).out.splitlines()[:-1]] == GRAPHS
    copying.on_device = True
    done = cli(*words, "--subject", "sub-02")
    assert done.code == 0
    rows = done.out.splitlines()[:-1]
    assert [line.split()[0] for line in rows] == [*GRAPHS, "ridge_sub-02"]
    assert rows[-1].endswith("never built")
    done = cli(*words)
    assert [line.split()[0] for line in done.out.splitlines()[-3:-1]] == ["ridge_sub-01", "ridge_sub-02"]
    assert "1 built in" in done.out
    shown = cli("build", "--list").out
    assert "ridge_sub-01" in shown
    assert "ridge_sub-02" in shown
    done = cli(*words, "--subject", "sub-03")
    assert (done.code, done.complaints) == (
        2,
        ["unibrain-rt: no subject 'sub-03' in this bundle; it has sub-01, sub-02"],
    )


def test_other_heads_are_another_plan(
    cli: Run, copying: Any, plans: Path, tiny: Any, tiny_bundle: Path
) -> None:
    """The graph's own file is the same: its weights are the heads' file, whose hash is the manifest's."""
    copying.on_device = True
    words = ["build", tiny_bundle, "--engine", "copying", "--preset", "paper"]
    cli(*words)
    heads = tiny_bundle / "subjects" / "sub-01" / "heads.safetensors"
    raw = bytearray(heads.read_bytes())
    raw[-1] ^= 1
    heads.write_bytes(raw)
    tiny.seal(tiny_bundle)
    row = next(line for line in cli(*words).out.splitlines() if line.startswith("ridge_sub-01"))
    assert row.endswith("heads.safetensors has changed")


def test_a_broken_subject_keeps_nothing_from_being_compiled(
    cli: Run, copying: Any, plans: Path, tiny: Any, tmp_path: Path
) -> None:
    bundle = tiny.make_bundle(tmp_path / "three", ("sub-01", "sub-02", "sub-03"))
    (bundle / "subjects" / "sub-01" / "heads.safetensors").write_bytes(b"nothing")
    (bundle / "subjects" / "sub-02" / "ridge.onnx").unlink()
    tiny.seal(bundle)
    copying.on_device = True
    done = cli("build", bundle, "--engine", "copying", "--preset", "paper")
    assert done.code == 3
    assert [line.split()[0] for line in done.out.splitlines()[:-1]] == [*GRAPHS, "ridge_sub-03"]
    first, second, *_ = done.complaints
    assert "sub-01" in first
    assert second.startswith("sub-02: has no ridge.onnx: its heads are applied on the host")


def test_several_targets(build: Run) -> None:
    done = build("--target", "sm86,SM89,sm86")
    rows = [line.replace(" (74)", "").split()[:2] for line in done.out.splitlines()[:-1]]
    assert rows == [[graph, target] for target in ("sm86", "sm89") for graph in GRAPHS]
    assert "built for sm86, not sm89" in done.out
    assert "6 were there" in build("--target", "sm89").out
    assert "6 were there" in build().out, "sm86 is the one here"


def test_what_changed_is_said(build: Run, copying: Any, tiny: Any, tiny_bundle: Path) -> None:
    build()
    weights = tiny_bundle / "graphs" / "unet.weights"
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.write_bytes(content)
    tiny.seal(tiny_bundle)
    done = build()
    row = next(line for line in done.out.splitlines() if line.startswith("unet_context"))
    assert row.endswith("unet.weights has changed")
    copying.version = "1.1"
    assert "built with copying 1.0, this is 1.1" in build().out


def test_fp32_forms_are_built_where_asked(
    cli: Run, copying: Any, plans: Path, tiny: Any, tiny_bundle: Path
) -> None:
    graphs = tiny_bundle / "graphs"
    shutil.copy(graphs / "autokl_decode.onnx", graphs / "autokl_decode.fp32.onnx")
    manifest = json.loads((tiny_bundle / "bundle.json").read_text())
    manifest["graphs"]["autokl_decode"]["fallback"] = "graphs/autokl_decode.fp32.onnx"
    tiny.seal(tiny_bundle, graphs=manifest["graphs"])
    words = ["build", tiny_bundle, "--engine", "copying", "--preset", "paper"]
    assert len(cli(*words).out.splitlines()) == 7
    done = cli(*words, "--fallbacks")
    assert "1 built in" in done.out
    assert next(line for line in done.out.splitlines() if "built in" in line).startswith("autokl_decode.fp32")
    assert "7 were there" in cli(*words, "--fallbacks").out


def test_a_graph_that_cannot_be_compiled_keeps_no_other_from_it(build: Run, copying: Any) -> None:
    copying.refused = "unet_text_step"
    done = build()
    assert done.code == 3
    assert "unibrain-rt: unet_text_step: unknown operator Copy" in done.complaints
    row = next(line for line in done.out.splitlines() if line.startswith("unet_text_step"))
    assert row.split()[-1] == "failed"
    assert done.out.splitlines()[-1].startswith("5 built")
    copying.refused = None
    assert "1 built in" in build().out


def test_json(build: Run, plans: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    done = build("--target", "sm89", "--json")
    assert done.code == 0
    (record,) = (json.loads(line) for line in done.out.splitlines())
    assert (record["bundle"], record["engine"], record["ok"]) == (str(tiny_bundle), "copying", True)
    assert record["cache"] == str(plans)
    first = record["plans"][0]
    assert (first["graph"], first["target"], first["hit"], first["reason"]) == (
        "unet_context",
        "sm89",
        False,
        "never built",
    )
    assert Path(first["path"]).stat().st_size == first["size_bytes"]
    assert first["error"] is None
    written = build("--json", tmp_path / "report.json")
    assert written.out
    assert json.loads((tmp_path / "report.json").read_text())["plans"]


def test_an_engine_that_compiles_nothing(cli: Run, plans: Path, tiny_bundle: Path) -> None:
    pytest.importorskip("onnxruntime")
    done = cli("build", tiny_bundle, "--engine", "onnxruntime")
    assert (done.code, done.out, done.err) == (
        0,
        "onnxruntime compiles nothing ahead of time: decode at once\n",
        "",
    )
    assert cli("build", tiny_bundle).out == done.out, "the environment names it"
    assert not plans.exists()


def test_a_graph_that_misses_kernels_is_a_failure(
    cli: Run, plans: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    from unibrain_rt.engines import EngineError, GraphSpec
    from unibrain_rt.engines.onnxruntime import OnnxRuntimeEngine

    def check(self: Any, graph: GraphSpec, free: int = 1) -> None:
        if graph.name.endswith("_step"):
            raise EngineError(f"{graph.name}: only 0 of 8 attention nodes have a kernel")

    monkeypatch.setattr(OnnxRuntimeEngine, "check", check)
    done = cli("build", tiny_bundle, "--engine", "onnxruntime", "--preset", "paper", "--json")
    assert done.code == 3
    assert json.loads(done.out)["ok"] is False
    assert len(done.complaints) == 2
    assert "unet_image_step: only 0 of 8 attention nodes" in done.err


def test_an_engine_that_is_only_installed_builds_for_named_targets(build: Run, copying: Any) -> None:
    copying.module.found = type(copying.module.found)("copying", "1.0", problem="no GPU here")
    done = build()
    assert (done.code, done.complaints) == (3, ["unibrain-rt: engine copying: no GPU here"])
    assert build("--target", "sm89").code == 0


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["BUNDLE"], 2, "name the engine to build for with --engine"),
        (["BUNDLE", "--engine", "auto"], 2, "name the engine to build for with --engine"),
        (["BUNDLE", "--engine", "nothing"], 3, "unknown engine 'nothing'"),
        (["BUNDLE", "--engine", "copying", "--preset", "nothing"], 2, "no preset 'nothing'"),
        (["BUNDLE", "--engine", "copying", "--target", "ampere"], 2, "'ampere' is no compute capability"),
        (["nothing", "--engine", "copying"], 2, "no such bundle"),
        (["BUNDLE", "--list"], 2, "--list and --prune stand alone"),
        (["--list", "--prune"], 2, "--list and --prune stand alone"),
        (["--prune", "--engine", "copying"], 2, "--list and --prune stand alone"),
        (["--prune", "--keep", "lots"], 2, "'lots' is no size such as 10GB"),
        (["--prune", "--older-than", "-1"], 2, "older-than"),
        (["--list", "--all"], 2, "go with --prune"),
        (["BUNDLE", "--engine", "copying", "--cache", "FILE"], 3, "name another folder with --cache"),
    ],
)
def test_what_cannot_be_done(
    cli: Run,
    copying: Any,
    plans: Path,
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    problem: str,
) -> None:
    monkeypatch.delenv("UNIBRAIN_RT_ENGINE")
    places = {"BUNDLE": tiny_bundle, "FILE": tiny_bundle / "bundle.json"}
    done = cli("build", *(places.get(word, word) for word in words))
    assert done.code == code
    assert problem in done.complaints[-1]
    assert "Traceback" not in done.err


# --- The cache ----------------------------------------------------------------------------------------------


def test_the_cache_is_shown(build: Run, cli: Run, plans: Path) -> None:
    empty = cli("build", "--list")
    assert (empty.code, empty.out) == (0, f"0 plans, 0 bytes of at most 40 GB, in {plans}\n")
    build()
    done = cli("build", "--list")
    lines = done.out.splitlines()
    titles = ["engine", "version", "graph", "holds", "target", "size", "took", "built", "used"]
    assert lines[0].split() == titles
    assert {line.split()[2] for line in lines[1:-1]} == set(GRAPHS)
    assert lines[-1].startswith("6 plans, ")
    record = json.loads(cli("build", "--list", "--json").out)
    assert {plan["graph"] for plan in record["plans"]} == set(GRAPHS)
    assert cli("build", "--list", "--cache", plans / "none").out.startswith("0 plans")


def test_kernels_are_shown_and_pruned_beside_their_plans(build: Run, cli: Run, plans: Path) -> None:
    build()
    settings = {"holds": KERNELS, "version": "1.7", "target": "sm89", "device": "GPU"}
    key = PlanKey("tensorrt-rtx", "unet_context", {}, settings)
    PlanCache(plans).build(key, lambda path: path.write_bytes(b"k" * 5000) and None)
    lines = cli("build", "--list").out.splitlines()
    assert lines[-1].startswith("6 plans and the kernels of 1, ")
    (row,) = (line.split() for line in lines if line.startswith("tensorrt-rtx"))
    assert row[:7] == ["tensorrt-rtx", "1.7", "unet_context", "kernels", "sm89", "5", "kB"]
    done = cli("build", "--prune", "--all").out.splitlines()
    assert done[-1].startswith("removed 6 plans and the kernels of 1, ")
    assert "; 0 plans are left, " in done[-1]


def test_the_cache_is_pruned(build: Run, cli: Run, plans: Path) -> None:
    build()
    assert cli("build", "--prune").out.startswith("removed 0 plans")
    old = next(plans.glob("*.json"))
    then = time.time() - 3 * 86400
    os.utime(old, (then, then))
    done = cli("build", "--prune", "--older-than", "2")
    assert done.out.splitlines()[-1].startswith("removed 1 plans")
    assert not old.exists()
    smaller = cli("build", "--prune", "--keep", "1kB", "--json")
    record = json.loads(smaller.out)
    assert sum(plan["size_bytes"] for plan in record["plans"]) <= 1000
    assert record["removed"]
    assert cli("build", "--prune", "--all").code == 0
    assert list(plans.iterdir()) == []


# --- A decode, and plans ------------------------------------------------------------------------------------


@pytest.fixture
def decode(cli: Run, tiny_bundle: Path, tiny_scan: Path, tmp_path: Path, copying: Any, plans: Path) -> Run:
    return lambda *words: cli(
        "decode", tiny_scan, "--bundle", tiny_bundle, "--out", tmp_path / "out", "--overwrite", *words
    )


@pytest.mark.parametrize("memory", [[], ["--low-memory"]])
def test_a_decode_takes_the_plans_that_were_built(
    build: Run, decode: Run, tmp_path: Path, memory: list[str]
) -> None:
    decode("--engine", "onnxruntime")
    expected = json.loads((tmp_path / "out" / "scan.json").read_text())["caption"]
    missing = decode("--engine", "copying", *memory)
    assert missing.code == 3
    line = "no plan for copying (never built); run: unibrain-rt build BUNDLE --engine copying"
    assert line in missing.complaints[-1]
    build()
    done = decode("--engine", "copying", *memory)
    assert (done.code, done.err) == (0, "")
    record = json.loads((tmp_path / "out" / "scan.json").read_text())
    assert (record["engine"], record["caption"]) == ("copying", expected)


def test_plans_of_another_folder(build: Run, decode: Run, plans: Path) -> None:
    build("--cache", plans / "elsewhere")
    assert decode("--engine", "copying").code == 3
    assert decode("--engine", "copying", "--cache", plans / "elsewhere").code == 0


def test_auto_passes_over_a_gpu_without_a_plan_of_the_heads(
    build: Run, copying: Any, decode: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subject that was fitted after the graphs were built, say."""
    build()
    copying.on_device = True
    monkeypatch.delenv("UNIBRAIN_RT_ENGINE")
    done = decode()
    assert done.code == 0
    (line,) = done.complaints
    assert line.startswith("passed over copying: 1 of 7 plans are missing (ridge_sub-01: never built); run: ")
    assert decode("--low-memory").complaints == [], "there, heads are applied on the host"


@pytest.mark.parametrize("memory", [[], ["--low-memory"]])
def test_auto_passes_over_an_engine_without_plans_and_says_so(
    build: Run, decode: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: list[str]
) -> None:
    monkeypatch.delenv("UNIBRAIN_RT_ENGINE")
    done = decode(*memory)
    assert done.code == 0
    (line,) = done.complaints
    assert line.startswith("passed over copying: 6 of 6 plans are missing (unet_context: never built); run: ")
    assert json.loads((tmp_path / "out" / "scan.json").read_text())["engine"] == "onnxruntime"
    build()
    assert decode(*memory).err == ""
    assert json.loads((tmp_path / "out" / "scan.json").read_text())["engine"] == "copying"


def test_an_engine_that_is_not_installed_is_no_news(
    decode: Run, copying: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UNIBRAIN_RT_ENGINE")
    copying.module.found = type(copying.module.found)("copying", problem="is not installed")
    done = decode()
    assert (done.code, done.err) == (0, "")


def test_a_graph_that_was_computed_in_fp32_is_named_once(
    cli: Run, tiny: Any, tiny_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    import numpy as np
    import onnx
    from onnx import numpy_helper

    graphs = tiny_bundle / "graphs"
    shutil.copy(graphs / "autokl_decode.onnx", graphs / "autokl_decode.fp32.onnx")
    model = onnx.load(graphs / "autokl_decode.onnx")
    kernel = next(tensor for tensor in model.graph.initializer if tensor.name == "kernel")
    spoilt = np.full(tuple(kernel.dims), np.nan, np.float32)
    kernel.CopyFrom(numpy_helper.from_array(spoilt, "kernel"))
    onnx.save(model, graphs / "autokl_decode.onnx")
    manifest = json.loads((tiny_bundle / "bundle.json").read_text())
    manifest["graphs"]["autokl_decode"]["fallback"] = "graphs/autokl_decode.fp32.onnx"
    tiny.seal(tiny_bundle, graphs=manifest["graphs"])
    np.save(tmp_path / "scans.npy", np.stack([tiny.scan(number) for number in range(3)]))
    done = cli("decode", tmp_path / "scans.npy", "--bundle", tiny_bundle, "--out", tmp_path / "out")
    assert done.code == 0
    notes = [line for line in done.complaints if "fp32" in line]
    assert notes == ["autokl_decode: computed in fp32, because numbers in half precision were not finite"]

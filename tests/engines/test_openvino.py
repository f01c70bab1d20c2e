"""OpenVINO: what is its own; tests/engines/test_host.py has what every engine on the CPU does."""

from __future__ import annotations

import importlib
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unibrain_rt import Decoder, read_scans
from unibrain_rt.bundle import Bundle
from unibrain_rt.captions import CaptionOptions
from unibrain_rt.engines import EngineError, Settings, catalogue, create_engine, openvino, probe
from unibrain_rt.engines.catalogue import ENGINE_VARIABLE
from unibrain_rt.engines.openvino import OpenVinoEngine

pytest.importorskip("openvino")
pytest.importorskip("onnx")
hand = importlib.import_module("hand_graphs")
LogLines: Any = importlib.import_module("log_lines").LogLines


@pytest.fixture
def told() -> list[str]:
    lines: list[str] = LogLines()
    return lines


@pytest.fixture
def engine(tmp_path: Path, told: list[str]) -> OpenVinoEngine:
    return OpenVinoEngine(Settings(threads=1, cache=tmp_path / "plans"))


def total(engine: OpenVinoEngine, graph: Any, a: float = 2.0) -> float:
    session = engine.open(graph)
    session.write("a", a)
    session.write("b", 1)
    session.run()
    return float(session.read("sum")[0, 0])


# --- Plans --------------------------------------------------------------------------------------------------


def test_a_graph_is_compiled_once(engine: OpenVinoEngine, told: list[str], tmp_path: Path) -> None:
    graph = hand.adder(tmp_path)
    assert total(engine, graph) == 3
    assert told == ["adder: openvino compiles it (never built)"]
    assert total(engine, graph) == 3
    assert len(told) == 1
    assert engine.build(graph).hit


def test_every_size_of_a_free_axis_has_a_plan(
    engine: OpenVinoEngine, told: list[str], tmp_path: Path
) -> None:
    graph = hand.adder(tmp_path, shape=("N", 3))
    for free in (2, 5, 2):
        assert engine.open(graph, free=free).read("sum").shape == (free, 3)
    assert len(told) == 2
    assert "built with shapes free axes of 2, not free axes of 5" in told[1]


def test_a_plan_that_cannot_be_read_is_built_anew(
    engine: OpenVinoEngine, told: list[str], tmp_path: Path
) -> None:
    graph = hand.adder(tmp_path)
    plan = engine.build(graph).path
    size = plan.stat().st_size
    plan.write_bytes(b"\0" * size)
    assert total(engine, graph) == 3
    assert told[1:] == [
        "adder: openvino cannot read its plan; compiling anew",
        "adder: openvino compiles it (asked for)",
    ]
    assert total(engine, graph) == 3
    assert len(told) == 3


def test_a_folder_that_cannot_be_written_is_no_reason_to_fail(told: list[str], tmp_path: Path) -> None:
    (tmp_path / "plans").write_text("a file")
    engine = OpenVinoEngine(Settings(cache=tmp_path / "plans"))
    assert total(engine, hand.adder(tmp_path)) == 3
    assert f"plan cache {tmp_path / 'plans'}: cannot be" in told[-1]
    assert told[-1].endswith("compiled without it")


def test_weights_are_not_copied_into_large_plans(
    engine: OpenVinoEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = hand.walk(tmp_path)
    whole = engine.build(graph).size_bytes
    monkeypatch.setattr(openvino, "PLAN_WEIGHTS_BYTES", 3)
    assert engine.build(graph, anew=True).size_bytes < 100 < whole
    session = engine.open(graph)
    session.write("x", 1)
    session.run()
    np.testing.assert_array_equal(session.read("next_x"), [[2, 2]])


def test_it_compiles_for_no_other_machine(engine: OpenVinoEngine, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="leave --target out"):
        engine.build(hand.adder(tmp_path), target="sm89")


def test_a_plan_is_for_one_processor_version_and_precision(engine: OpenVinoEngine, tmp_path: Path) -> None:
    settings = engine.key(hand.adder(tmp_path)).settings
    assert settings["precision"] == engine.precision
    assert settings["version"].startswith(str(engine.describe()["version"]))
    assert "FP32" in settings["target"]


# --- Precision ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["argument", "environment"])
def test_the_precision_can_be_named(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if given == "environment":
        monkeypatch.setenv(openvino.PRECISION_VARIABLE, "fp32")
    engine = OpenVinoEngine(Settings(cache=tmp_path), "fp32" if given == "argument" else None)
    assert engine.describe()["precision"] == "fp32"
    with pytest.raises(EngineError, match="unknown precision 'int4'; known are fp32 and bf16"):
        OpenVinoEngine(Settings(cache=tmp_path), "int4")


@pytest.mark.parametrize("native", [True, False])
def test_bf16_is_taken_where_it_is_native(
    native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = importlib.import_module("openvino")
    answer = library.Core.get_property

    def get_property(core: Any, device: str, name: str) -> Any:
        found = answer(core, device, name)
        if name != "OPTIMIZATION_CAPABILITIES":
            return found
        return [*{*found, "BF16"}] if native else [one for one in found if one != "BF16"]

    monkeypatch.setattr(library.Core, "get_property", get_property)
    assert OpenVinoEngine(Settings(cache=tmp_path)).precision == ("bf16" if native else "fp32")
    if not native:
        with pytest.raises(EngineError, match="does not compute bf16; use fp32"):
            OpenVinoEngine(Settings(cache=tmp_path), "bf16")


# --- Decodes ------------------------------------------------------------------------------------------------


def psnr(one: Any, other: Any) -> float:
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


def test_the_phantom_decodes_as_on_onnxruntime(
    engine: OpenVinoEngine, phantom_bundle: Path, repository: Path, report: Any
) -> None:
    """Also that a graph with an ONNX function in it loads: its self-attention is one."""
    pytest.importorskip("onnxruntime")
    bundle = Bundle.open(phantom_bundle)
    subject = bundle.subject()
    scans = list(itertools.islice(read_scans(repository / "examples" / "scans.npy", subject.voxel_space), 3))
    wanted, found = (
        Decoder(bundle, subject, one, "fast", CaptionOptions())
        for one in (create_engine("onnxruntime"), engine)
    )
    for preset, count in (("fast", 3), ("paper", 1)):
        decoders = [decoder.sampling(bundle.preset(preset), preset) for decoder in (wanted, found)]
        likeness = []
        for seed, scan in enumerate(scans[:count]):
            want, have = (decoder.decode(scan.betas, seed=seed) for decoder in decoders)
            assert have.caption == want.caption
            likeness.append(psnr(have.image, want.image))
        report(
            f"openvino {engine.precision}, {preset}: PSNR to onnxruntime fp32 {min(likeness):.1f} dB or more"
        )
        assert min(likeness) > 35


def test_every_graph_agrees_with_the_reference(
    golden_dir: Path, golden_bundle: Path, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO's own fused attention does not, on the text flow's few tokens."""
    monkeypatch.setenv("UNIBRAIN_RT_CACHE", str(tmp_path))
    monkeypatch.setenv(openvino.PRECISION_VARIABLE, "fp32")
    done = cli("verify", golden_bundle, "--golden", golden_dir / "golden.safetensors", "--engine", "openvino")
    assert done.code == 0, done.err


def test_threads_do_not_change_a_decode(tiny: Any, tiny_template: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_template)
    images = []
    for threads in (1, 2):
        engine = OpenVinoEngine(Settings(threads=threads, cache=tmp_path), "fp32")
        assert engine.describe()["threads"] == threads
        decoder = Decoder(bundle, bundle.subject(), engine, "fast", CaptionOptions())
        images.append(decoder.decode(tiny.scan()).image)
    assert psnr(*images) > 60


# --- Being there --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("native", [True, False])
def test_auto_takes_it_before_onnxruntime_where_bf16_is_native(
    monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    monkeypatch.delenv(ENGINE_VARIABLE, raising=False)
    monkeypatch.setattr(catalogue, "ENGINES", ("openvino", "onnxruntime"))
    library = importlib.import_module("openvino")

    class Core(library.Core):  # type: ignore[misc, name-defined]
        def get_property(self, device: str, name: str) -> Any:
            capabilities = ["FP32", "BF16"] if native else ["FP32"]
            return capabilities if name == "OPTIMIZATION_CAPABILITIES" else super().get_property(device, name)

    monkeypatch.setattr(library, "Core", Core)
    assert create_engine("auto").name == ("openvino" if native else "onnxruntime")
    # It is taken where there is nothing else.
    monkeypatch.setattr(catalogue, "ENGINES", ("openvino",))
    assert create_engine("auto").name == "openvino"


def test_its_probe_names_the_processor() -> None:
    found = probe("openvino")
    assert found.usable
    assert found.device is not None
    assert found.device.startswith("cpu (")


def test_without_openvino_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineError, match=r'pip install "unibrain-rt\[openvino\]"'):
        create_engine("openvino")


def test_its_converter_is_not_imported(tmp_path: Path) -> None:
    """It takes longer than all the rest of the library, and brings telemetry along."""
    code = (
        "import sys; from unibrain_rt.engines import probe; assert probe('openvino').usable\n"
        "assert not [name for name in sys.modules if 'telemetry' in name or name == 'openvino.tools.ovc']\n"
        "from openvino.tools.ovc import convert_model"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

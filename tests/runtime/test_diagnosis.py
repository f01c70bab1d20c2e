"""Checks of the doctor, one by one, on machines that are made up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from unibrain_rt.diagnosis import (
    NOTHING,
    OK,
    PROBLEM,
    WARNING,
    Choice,
    Diagnosis,
    Machine,
    check_cache,
    check_choice,
    check_engine,
    check_machine,
    check_memory,
    check_onnxruntimes,
)
from unibrain_rt.engines import Probe
from unibrain_rt.engines.cuda.driver import Gpu, Gpus
from unibrain_rt.engines.plans import PlanCache, PlanKey
from unibrain_rt.graph_size import DecodeMemory
from unibrain_rt.platform_facts import Jetson, Memory, Processor

GB = 10**9
RTX = Gpu("NVIDIA RTX 4090", "sm89", 24 * GB, 20 * GB)
PLAIN = Machine(
    system="Linux",
    architecture="x86_64",
    python="3.11.7",
    cores=8,
    processor=Processor("A processor", ("avx2", "avx512f")),
    jetson=None,
    driver=None,
    gpus=Gpus(),
    memory=Memory(32 * GB, 16 * GB),
    onnxruntimes={},
)
WORKSTATION = replace(PLAIN, driver="550.54.15", gpus=Gpus((RTX,)))
ORIN = replace(
    PLAIN,
    architecture="aarch64",
    processor=Processor(None, ("asimdhp",)),
    jetson=Jetson("NVIDIA Jetson AGX Orin Developer Kit", "36.4.3"),
    driver="540.4.0",
    gpus=Gpus((Gpu("Orin", "sm87", 64 * GB, 50 * GB, shared=True),)),
)
ABSENT = Probe("tensorrt", problem="is not installed", advice='run: pip install "unibrain-rt[tensorrt]"')


def test_a_workstation_is_described() -> None:
    checks = {check.name: check for check in check_machine(WORKSTATION)}
    assert list(checks) == ["platform", "processor", "driver", "gpu 0"]
    assert {check.state for check in checks.values()} == {OK}
    assert checks["processor"].text == "A processor, 8 cores, avx2 avx512f"
    assert checks["driver"].text == "NVIDIA 550.54.15"
    assert checks["gpu 0"].text == "NVIDIA RTX 4090, sm89, 24 GB, 20 GB free"


def test_a_jetson_is_described() -> None:
    checks = {check.name: check for check in check_machine(ORIN)}
    assert checks["jetson"].text == "NVIDIA Jetson AGX Orin Developer Kit, Jetson Linux 36.4.3 (JetPack 6)"
    assert checks["gpu 0"].text == "Orin, sm87, 64 GB, the host's, 50 GB free"
    assert checks["processor"].text == "aarch64, 8 cores, asimdhp"


def test_a_plain_computer_is_nothing_to_worry_about() -> None:
    states = {check.name: check.state for check in check_machine(PLAIN)}
    assert states == {"platform": OK, "processor": OK, "driver": NOTHING}


@pytest.mark.parametrize(
    ("machine", "name", "text"),
    [
        (replace(PLAIN, processor=Processor("Old", ())), "processor", "slow without avx2"),
        (replace(PLAIN, driver="550.54.15"), "driver", "it offers no device"),
        (
            replace(PLAIN, driver="550.54.15", gpus=Gpus(problem="unknown error (CUDA error 999)")),
            "driver",
            "NVIDIA 550.54.15 does not answer: unknown error (CUDA error 999)",
        ),
    ],
)
def test_what_slows_a_machine_is_a_warning(machine: Machine, name: str, text: str) -> None:
    check = next(check for check in check_machine(machine) if check.name == name)
    assert check.state == WARNING
    assert text in check.text


@pytest.mark.parametrize(
    ("found", "machine", "state", "text", "cure"),
    [
        (Probe("tensorrt", "10.3", "Orin"), ORIN, OK, "10.3 on Orin", None),
        (ABSENT, WORKSTATION, NOTHING, "is not installed", 'run: pip install "unibrain-rt[tensorrt]"'),
        (ABSENT, PLAIN, NOTHING, "is not installed, and there is no NVIDIA GPU", None),
        (
            ABSENT,
            ORIN,
            NOTHING,
            "is not installed",
            "TensorRT comes with JetPack, not from pip: sudo apt install python3-libnvinfer, and make the "
            "environment with python3 -m venv --system-site-packages",
        ),
        (
            replace(ABSENT, engine="tensorrt-rtx"),
            ORIN,
            NOTHING,
            "is not installed",
            "not for a Jetson: use tensorrt",
        ),
        (
            replace(ABSENT, version="9.0", problem="is too old"),
            WORKSTATION,
            WARNING,
            "9.0: is too old",
            ABSENT.advice,
        ),
        (Probe("tensorrt-rtx", "1.7", problem="no GPU"), PLAIN, NOTHING, "1.7: no GPU", None),
        (
            Probe("onnxruntime", problem="is not installed", advice="run: pip"),
            PLAIN,
            NOTHING,
            "is not installed",
            "run: pip",
        ),
    ],
)
def test_an_engine_and_its_cure(
    found: Probe, machine: Machine, state: str, text: str, cure: str | None
) -> None:
    check = check_engine(found, machine)
    assert (check.name, check.state, check.text, check.cure) == (found.engine, state, text, cure)


def test_two_onnxruntimes_are_a_problem() -> None:
    assert not list(check_onnxruntimes({}))
    assert not list(check_onnxruntimes({"onnxruntime": "1.32.0"}))
    (check,) = check_onnxruntimes({"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"})
    assert check.state == PROBLEM
    assert check.text == "onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1 overwrite each other's files"
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in (check.cure or "")


def test_what_auto_takes() -> None:
    passed_over = (ABSENT, Probe("cuda", "1.31", problem="no plans"))
    chosen = Choice("onnxruntime", "cpu", passed_over=passed_over)
    assert check_choice(chosen, Gpus()).text == "onnxruntime on cpu; passed over cuda (no plans)"
    idle = check_choice(chosen, WORKSTATION.gpus)
    assert (idle.state, idle.text) == (
        WARNING,
        "onnxruntime on cpu; passed over cuda (no plans); the GPU is not used",
    )
    assert check_choice(Choice("tensorrt", "RTX"), WORKSTATION.gpus).state == OK
    told = check_choice(Choice("onnxruntime", "cpu", variable="onnxruntime"), WORKSTATION.gpus)
    assert (told.state, told.text) == (OK, "onnxruntime on cpu, because UNIBRAIN_RT_ENGINE says so")
    nothing = check_choice(Choice(None, problem="no engine works here"), Gpus())
    assert (nothing.state, nothing.cure) == (PROBLEM, 'run: pip install "unibrain-rt[cpu]"')


def test_memory_is_compared_with_what_a_decode_needs() -> None:
    needed = DecodeMemory(
        {"large": 11 * GB, "small": 4 * GB},
        {"large": GB, "small": 2 * GB},
        buffers_bytes=GB,
        heads_bytes=2 * GB,
    )
    host, device = check_memory(needed, replace(WORKSTATION, memory=Memory(64 * GB, 32 * GB)))
    assert (host.name, host.state) == ("memory", OK)
    assert host.text.startswith(
        "32 GB free; a decode needs 21 GB, with --low-memory 15 GB (weights, activations"
    )
    assert (device.name, device.state) == ("memory of gpu 0", WARNING)
    assert device.text.startswith(
        "20 GB free; a decode needs 21 GB, with --low-memory 13 GB (weights, activations"
    )
    (low,) = check_memory(needed, PLAIN)
    assert (low.state, low.cure) == (WARNING, "decode with --low-memory, or close other programs")
    (little,) = check_memory(needed, replace(PLAIN, memory=Memory(8 * GB, 4 * GB)))
    assert little.state == WARNING
    assert "--precision fp16" in (little.cure or "")
    assert len(list(check_memory(needed, ORIN))) == 1, "a Jetson's memory is one"
    assert not list(check_memory(needed, replace(PLAIN, memory=None)))


def test_the_cache_of_plans_is_looked_at(tmp_path: Path) -> None:
    key = PlanKey("tensorrt", "unet", {"unet.onnx": "a"}, {})
    PlanCache(tmp_path / "plans").build(key, lambda path: path.write_bytes(b"1234") and None)
    check, facts = check_cache(tmp_path / "plans")
    assert facts is not None
    assert (facts["plans"], facts["size_bytes"], facts["writable"]) == (1, 4, True)
    assert str(tmp_path / "plans") in check.text
    _, facts = check_cache(tmp_path / "not yet" / "there")
    assert facts is not None
    assert facts["writable"]
    assert not (tmp_path / "not yet").exists(), "looking makes nothing"


def test_a_cache_that_cannot_be_used_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        check, _ = check_cache(folder)
        assert check.state == WARNING
        assert "--cache" in f"{check.text}{check.cure}"


def test_it_is_well_where_an_engine_works_and_the_bundle_is_whole() -> None:
    well = Diagnosis(PLAIN, (ABSENT, Probe("onnxruntime", "1.32.0", "cpu")), Choice("onnxruntime"), (), None)
    assert well.ok
    assert not replace(well, engines=(ABSENT,)).ok
    assert not replace(well, bundle_ok=False).ok

"""Whether ONNX Runtime for NVIDIA GPUs can be used: what is missing is named, with what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import metadata

import pytest

from unibrain_rt.engines import EngineError, create_engine, onnxruntime_cuda, probe
from unibrain_rt.engines.catalogue import ENGINE_VARIABLE
from unibrain_rt.engines.onnxruntime_cuda import installation
from unibrain_rt.engines.onnxruntime_cuda.trial import Failure


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretends that these distributions are installed, with this device and these providers, and how a trial ends."""

    def pretend(
        *names: str,
        device: str | None = None,
        providers: tuple[str, ...] = (),
        failure: Failure | None = None,
    ) -> None:
        monkeypatch.setattr(installation, "onnxruntimes", lambda: dict.fromkeys(names, "1.31.1"))
        monkeypatch.setattr(installation, "device_name", lambda driver: device)
        library = type(sys)("onnxruntime")
        library.get_available_providers = lambda: [*providers]  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "onnxruntime", library)
        monkeypatch.setattr(installation, "failure", lambda tried: failure if tried is library else None)

    return pretend


@pytest.mark.parametrize(
    ("names", "device", "providers", "problem", "advice"),
    [
        ((), None, (), "onnxruntime-gpu is not installed", 'pip install "unibrain-rt[cuda]"'),
        (("onnxruntime",), None, (), "onnxruntime-gpu is not installed", "pip uninstall -y onnxruntime"),
        (("onnxruntime", "onnxruntime-gpu"), "H200", (), "both installed", "pip uninstall -y onnxruntime"),
        (("onnxruntime-gpu",), None, (), "no NVIDIA driver", "install NVIDIA's driver"),
        (("onnxruntime-gpu",), "H200", ("CPUExecutionProvider",), "no CUDA provider", "pip uninstall"),
    ],
)
def test_what_is_missing_is_named(
    installed: Callable[..., None],
    names: tuple[str, ...],
    device: str | None,
    providers: tuple[str, ...],
    problem: str,
    advice: str,
) -> None:
    installed(*names, device=device, providers=providers)
    found = probe("cuda")
    assert not found.usable
    assert problem in str(found.problem)
    assert advice in str(found.advice)
    with pytest.raises(EngineError) as caught:
        create_engine("cuda")
    assert "\n" not in str(caught.value)


def test_all_that_is_needed_is_enough(installed: Callable[..., None]) -> None:
    installed("onnxruntime-gpu", device="NVIDIA H200", providers=("CUDAExecutionProvider",))
    found = probe("cuda")
    assert found.usable
    assert found.device == "NVIDIA H200"


def test_what_a_trial_finds_is_a_problem(installed: Callable[..., None]) -> None:
    failure = Failure("does not run here (cuDNN is unavailable)", "run: pip install cuDNN")
    installed("onnxruntime-gpu", device="H200", providers=("CUDAExecutionProvider",), failure=failure)
    found = probe("cuda")
    assert not found.usable
    assert (found.version, found.device) == ("1.31.1", "H200")
    assert str(found) == f"cuda: {failure.problem}; {failure.advice}"
    with pytest.raises(EngineError, match=r"^engine cuda: does not run here \(cuDNN is unavailable\)"):
        create_engine("cuda")


def test_a_library_that_breaks_while_it_loads_is_a_problem(
    installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed("onnxruntime-gpu", device="H200")

    def get_available_providers() -> list[str]:
        raise OSError("libonnxruntime.so: file too short\nand more")

    monkeypatch.setattr(sys.modules["onnxruntime"], "get_available_providers", get_available_providers)
    assert probe("cuda").problem == "does not load (libonnxruntime.so: file too short)"


def test_auto_goes_on_where_the_engine_cannot_be_made(
    installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a library changes between the probe and the making, or a probe does not see all."""
    pytest.importorskip("openvino")

    def create(settings: object) -> None:
        raise EngineError("CUDA failure 700: an illegal memory access")

    monkeypatch.delenv(ENGINE_VARIABLE)
    monkeypatch.setattr(onnxruntime_cuda, "create", create)
    installed("onnxruntime-gpu", device="H200", providers=("CUDAExecutionProvider",))
    engine = create_engine()
    assert engine.name == "openvino"
    passed_over = {str(found) for found in engine.passed_over}
    assert "cuda: CUDA failure 700: an illegal memory access" in passed_over
    with pytest.raises(EngineError, match="^CUDA failure 700"):
        create_engine("cuda")


def test_both_distributions_of_onnxruntime_are_seen() -> None:
    def installed(name: str) -> str:
        if name != "onnxruntime-gpu":
            raise metadata.PackageNotFoundError(name)
        return "1.31.1"

    assert installation.onnxruntimes(installed) == {"onnxruntime-gpu": "1.31.1"}
    assert installation.onnxruntimes(lambda name: "1") == {"onnxruntime": "1", "onnxruntime-gpu": "1"}

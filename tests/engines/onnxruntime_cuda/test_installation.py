"""Whether ONNX Runtime for NVIDIA GPUs can be used: what is missing is named, with what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from unibrain_rt.engines import EngineError, create_engine, probe
from unibrain_rt.engines.onnxruntime_cuda import installation


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretends that these distributions are installed, with this device and these providers."""

    def pretend(*names: str, device: str | None = None, providers: tuple[str, ...] = ()) -> None:
        monkeypatch.setattr(installation, "_version", lambda name: "1.31.1" if name in names else None)
        monkeypatch.setattr(installation, "device_name", lambda: device)
        library = type(sys)("onnxruntime")
        library.get_available_providers = lambda: [*providers]  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "onnxruntime", library)

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

"""The small run that tells whether ONNX Runtime works on the GPU."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from unibrain_rt.engines.onnxruntime_cuda.trial import GRAPH, failure

real = importlib.import_module("onnxruntime")
PROVIDER = "CUDAExecutionProvider"
ARENA = "/src/bfc_arena.cc:360 void* AllocateRawInternal(size_t) Failed to allocate memory for requested buffer of size 1"


class Library:
    """onnxruntime as the trial sees it: ``raises`` is what goes wrong, and where."""

    def __init__(
        self,
        raises: tuple[str, str] | None = None,
        says: str | None = None,
        providers: tuple[str, ...] = (PROVIDER,),
    ) -> None:
        self.tried = 0
        library = self

        def fail(where: str) -> None:
            if raises is not None and raises[0] == where:
                raise RuntimeError(raises[1])

        class OrtValue:
            @staticmethod
            def ortvalue_from_numpy(array: Any, device: str, number: int) -> None:
                library.tried += 1
                fail("allocating")

        class InferenceSession:
            def __init__(self, model: str, **options: Any) -> None:
                fail("loading")

            def get_providers(self) -> list[str]:
                return [*providers, "CPUExecutionProvider"]

            def run(self, outputs: None, inputs: Any) -> None:
                fail("running")

        self.OrtValue, self.InferenceSession, self.SessionOptions = (
            OrtValue,
            InferenceSession,
            real.SessionOptions,
        )
        self.preload_dlls = lambda: print(says) if says else None

    def set_default_logger_severity(self, severity: int) -> None:
        assert severity == 4


def test_the_trial_is_a_model_that_any_provider_runs() -> None:
    image, weights = np.ones((1, 8, 8, 8), np.float32) / 100, np.ones((8, 8, 3, 3), np.float32)
    session = real.InferenceSession(str(GRAPH), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"image": image, "weights": weights})
    np.testing.assert_allclose(result, np.full((1, 8, 6, 6), np.exp(0.72)), rtol=1e-5)


def test_the_trial_is_sound_onnx() -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(GRAPH)
    onnx.checker.check_model(model, full_check=True)
    assert [size.dim_value for size in model.graph.output[0].type.tensor_type.shape.dim] == [1, 8, 6, 6]


def test_what_works_is_tried_once() -> None:
    library = Library()
    assert failure(library) is None
    assert failure(library) is None
    assert library.tried == 1


UPGRADE = 'run: pip install --upgrade "onnxruntime-gpu[cuda,cudnn]"'


@pytest.mark.parametrize(
    ("library", "problem", "advice"),
    [
        (Library(("running", "cuDNN is unavailable")), "does not run here (cuDNN is unavailable)", UPGRADE),
        (Library(("allocating", ARENA)), "the device is out of memory", "close other programs that use it"),
        (Library(providers=()), "does not run here (its CUDA provider does not load)", UPGRADE),
        (
            Library(
                ("allocating", "/src/provider_bridge_ort.cc:2465 Info& GetProviderInfo_CUDA() CUDA Provider not available"),
                says="Failed to load libcublas.so.13: cannot open shared object file\nPlease follow",
            ),
            "does not run here (cannot open shared object file)",
            UPGRADE,
        ),
        *(
            (
                Library((where, "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=0")),
                "does not run here (CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version)",
                "update NVIDIA's driver",
            )
            for where in ("allocating", "loading")
        ),
        (
            Library(("running", "CUDA failure 209: no kernel image is available for execution on the device ; GPU=0 ;")),
            "does not run here (CUDA failure 209: no kernel image is available for execution on the device)",
            "this onnxruntime-gpu was not built for this GPU: use another engine",
        ),
    ],
)  # fmt: skip
def test_what_fails_is_told_with_what_to_do(
    library: Library, problem: str, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = failure(library)
    assert found is not None
    assert (found.problem, found.advice) == (problem, advice)
    assert capsys.readouterr() == ("", "")

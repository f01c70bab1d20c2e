"""What ONNX Runtime says, and what is made of it."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("onnxruntime")

from unibrain_rt.engines import EngineError
from unibrain_rt.engines.onnxruntime_cuda.provider import OUT_OF_MEMORY, prepare, provider, reason, reported

SOURCE = "/onnxruntime_src/onnxruntime/core"
CALL = "std::conditional_t<THRW, void, Status> onnxruntime::CudaCall(ERRTYPE, const char*) [with ERRTYPE = cudaError]"
ARENA = f"{SOURCE}/framework/bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool)"
NODE = "Non-zero status code returned while running Conv node. Name:'' Status Message:"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (f"{ARENA} Failed to allocate memory for requested buffer of size 400000000\n", OUT_OF_MEMORY),
        (
            f"{SOURCE}/providers/cuda/cuda_call.cc:154 {CALL} CUDA failure 2: out of memory ; GPU=0 ; hostname=vm ; ",
            OUT_OF_MEMORY,
        ),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; expr=cublasCreate(&cublas_handle_); ", OUT_OF_MEMORY),
        (
            f"{SOURCE}/cuda_call.cc:154 {CALL} {SOURCE}/cuda_call.cc:146 {CALL} CUDA failure 35: CUDA driver version is "
            "insufficient for CUDA runtime version ; GPU=0 ; hostname=vm ; expr=cudaSetDevice(0);",
            "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version",
        ),
        (
            f"[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : {NODE} {SOURCE}/cuda_kernel.h:296 static cudnnContext* "
            "onnxruntime::cuda::CudaKernel::RequireCudnnHandle(cudnnHandle_t) [ONNXRuntimeError] : 9 : "
            "NOT_IMPLEMENTED : cuDNN is unavailable: dlopen failed for libcudnn.so\n",
            "cuDNN is unavailable: dlopen failed for libcudnn.so",
        ),
        ("plain words\nand more", "plain words"),
        ("", "Exception"),
    ],
)  # fmt: skip
def test_an_exception_is_one_line_of_what_matters(said: str, told: str) -> None:
    assert reason(RuntimeError(said)) == told


def test_what_is_raised_becomes_an_error_of_ours() -> None:
    with (
        pytest.raises(EngineError, match=r"^graph walk: onnxruntime failed \(bad\)$"),
        reported("graph walk"),
    ):
        raise ValueError("bad\nworse")
    with pytest.raises(EngineError) as caught, reported("graph walk"):
        raise RuntimeError(f"{ARENA} Failed to allocate memory")
    assert str(caught.value) == f"graph walk: {OUT_OF_MEMORY}"


@pytest.mark.parametrize("ours", [EngineError("as it is"), MemoryError()])
def test_what_has_a_line_already_is_left_alone(ours: Exception) -> None:
    with pytest.raises(type(ours)) as caught, reported("graph walk"):
        raise ours
    assert caught.value is ours


def test_the_library_is_silenced_and_its_complaints_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    def preload_dlls() -> None:
        warnings.warn("a plug-in", stacklevel=1)
        print("Failed to load libcublas.so.13: libcublas.so.13: cannot open shared object file")
        print("Please follow https://onnxruntime.ai")

    said: list[int] = []
    library: Any = SimpleNamespace(set_default_logger_severity=said.append, preload_dlls=preload_dlls)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prepare(library) == ["libcublas.so.13: cannot open shared object file"]
    assert said == [4]
    del library.preload_dlls  # as of a version that does not have it
    assert prepare(library) == []
    assert capsys.readouterr() == ("", "")


def test_options_are_texts_and_fusion_is_for_measuring() -> None:
    for flags in ({}, {"half": True}, {"half": True, "fuse_conv_bias": True}):
        name, options = provider(graphs=True, **flags)
        assert name == "CUDAExecutionProvider"
        assert all(isinstance(value, str) for value in options.values())
        assert options["use_tf32"] == str(int(flags.get("half", False)))
        assert options["fuse_conv_bias"] == str(int(flags.get("fuse_conv_bias", False)))

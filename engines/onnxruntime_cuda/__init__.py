"""ONNX Runtime on an NVIDIA GPU: buffers on the device, and every step a captured CUDA graph that is replayed."""

from __future__ import annotations

from unibrain_rt.engines.onnxruntime_cuda.cuda_engine import GRAPHS_VARIABLE, CudaEngine, create
from unibrain_rt.engines.onnxruntime_cuda.cuda_session import CudaSession
from unibrain_rt.engines.onnxruntime_cuda.installation import probe

__all__ = ["GRAPHS_VARIABLE", "CudaEngine", "CudaSession", "create", "probe"]

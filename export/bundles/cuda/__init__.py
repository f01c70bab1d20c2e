"""Graphs as ONNX Runtime's CUDA provider runs them fastest: `flavour.cuda_flavour`."""

from __future__ import annotations

from unibrain_rt.export.bundles.cuda.flavour import CUDA, cuda_flavour

__all__ = ["CUDA", "cuda_flavour"]

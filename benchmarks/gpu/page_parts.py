"""What both pages of results say alike: what a variant is called, and which card it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LABELS = {
    "torch eager": "our torch modules, eager, fp16",
    "torch, CUDA graphs": "our torch modules, eager, captured as CUDA graphs, fp16",
    "torch.compile": "our torch modules, torch.compile, fp16",
    "torch fp32": "our torch modules, eager, fp32",
    "cuda": "**`cuda`, its own graphs, captured**",
    "cuda, no graphs": "`cuda`, its own graphs, not captured",
    "cuda, plain": "`cuda`, the graphs for every engine, captured",
    "cuda, plain, no graphs": "`cuda`, the graphs for every engine, not captured",
    "cuda, fuse_conv_bias": "`cuda` with `fuse_conv_bias`",
    "cuda, flash attention": "`cuda` without cuDNN's attention",
}


def card(device: Mapping[str, Any]) -> str:
    known = {
        "driver": device.get("driver"),
        "CUDA": device.get("cuda"),
        "cuDNN": device.get("cudnn"),
        "torch": device.get("torch"),
    }
    return (
        f"{device.get('name', 'unknown device')}; "
        + ", ".join(f"{k} {v}" for k, v in known.items() if v)
        + "."
    )

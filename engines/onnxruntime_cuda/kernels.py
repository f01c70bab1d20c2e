"""Which operators the GPU runs as one kernel, and which of those that a graph was made for are missing.

Attention is exported as one node whose body is in the file, and layer normalisation as one standard node; ONNX Runtime
has kernels of both for every type that we compute in. Without one the body is run instead: right, and slower, by how
much depends on the sizes. So opening says it in a line and goes on, and it is an error where speed is what was asked
for: in ``unibrain-rt build``, in the benchmark and in the tests. GELU and the rest that ONNX Runtime puts together by
itself are counted and asked of nobody: which of them a version fuses is for that version to choose.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from unibrain_rt.engines.onnx_file import read_onnx
from unibrain_rt.engines.onnxruntime_cuda.device import PROVIDER

_ATTENTION = frozenset({"Attention", "MultiHeadAttention"})
_LAYER_NORMALIZATION = frozenset({"EmbedLayerNormalization", "LayerNormalization", "SkipLayerNormalization"})
FUSED = (
    _ATTENTION
    | _LAYER_NORMALIZATION
    | {
        *("BiasGelu", "FastGelu", "FusedConv", "FusedMatMul", "Gelu", "GroupNorm", "NhwcConv", "QuickGelu"),
        "SkipGroupNorm",
    }
)
"""Operators that stand for several, where kernels of that name are run."""
REQUIRED = {
    "MultiHeadAttention": ("attention nodes", _ATTENTION),
    "LayerNormalization": ("layer normalisations", _LAYER_NORMALIZATION),
}
"""By operator in the file: what it is called in a sentence, and the kernels that run it."""


def kernels_in(profile: Path) -> Counter[str]:
    """How many nodes of each operator in `FUSED` the provider ran, by ONNX Runtime's profile of one run."""
    events = json.loads(profile.read_text(encoding="utf-8"))
    nodes = {
        (event["name"], event["args"]["op_name"])
        for event in events
        if event.get("cat") == "Node" and event["args"].get("provider") == PROVIDER
    }
    return Counter(operator for _, operator in nodes if operator in FUSED)


def shortfall(path: Path, kernels: Mapping[str, int]) -> str | None:
    """Which nodes of the graph's file have no kernel, as a sentence; None where all have one that need one.

    Raises:
        EngineError: the file is damaged.
    """
    promised = Counter(node.op_type for node in read_onnx(path).graph.nodes)
    found = {
        operator: sum(kernels.get(name, 0) for name in names) for operator, (_, names) in REQUIRED.items()
    }
    short = [
        f"{found[operator]} of {promised[operator]} {title}"
        for operator, (title, _) in REQUIRED.items()
        if found[operator] < promised[operator]
    ]
    return f"only {' and '.join(short)} have a kernel" if short else None

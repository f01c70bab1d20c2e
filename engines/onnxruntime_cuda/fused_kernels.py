"""Which operators the GPU runs as one kernel, and which of those that a graph was made for are missing.

Attention is exported as one node whose body is in the file, and layer normalisation as one standard node; ONNX Runtime
has kernels of both for every type that we compute in. Without one the body is run instead: right, and slower, by how
much depends on the sizes. So a decode goes on without a word, and ``unibrain-rt doctor`` and ``build`` ask
`CudaEngine.check`. GELU and the rest that ONNX Runtime puts together by itself are counted, and no graph has to have
them: a version chooses which of them it fuses.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from unibrain_rt.engines.onnxruntime_cuda.provider import PROVIDER

_ATTENTION = frozenset({"Attention", "MultiHeadAttention"})
_LAYER_NORMALIZATION = frozenset({"EmbedLayerNormalization", "LayerNormalization", "SkipLayerNormalization"})
FUSED = (
    _ATTENTION
    | _LAYER_NORMALIZATION
    | {
        *(
            "BiasAdd",
            "BiasGelu",
            "BiasSplitGelu",
            "FastGelu",
            "FusedConv",
            "FusedMatMul",
            "Gelu",
            "GroupNorm",
        ),
        *("NhwcConv", "QuickGelu", "SkipGroupNorm"),
    }
)
"""Operators that stand for several, where kernels of that name are run."""
REQUIRED = {"attention nodes": _ATTENTION, "layer normalisations": _LAYER_NORMALIZATION}
"""By what they are called in a sentence: operators that a file may hold, and the kernels that run them, be it as others
of their kind. A flavour's other operators need no counting: without their kernels it cannot be loaded."""


def kernels_in(profile: Path) -> Counter[str]:
    """How many nodes of each operator in `FUSED` the provider ran, by ONNX Runtime's profile of one run."""
    events = json.loads(profile.read_text(encoding="utf-8"))
    nodes = {
        (event["name"], event["args"]["op_name"])
        for event in events
        if event.get("cat") == "Node" and event["args"].get("provider") == PROVIDER
    }
    return Counter(operator for _, operator in nodes if operator in FUSED)


def shortfall(promised: Mapping[str, int], kernels: Mapping[str, int]) -> str | None:
    """Which nodes of a graph have no kernel, as a sentence; None where all have one that need one.

    Args:
        promised: how many nodes of each operator the graph has.
        kernels: how many of each were run by a kernel, as `kernels_in` tells.
    """
    short = []
    for title, names in REQUIRED.items():
        run, wanted = (sum(counts.get(name, 0) for name in names) for counts in (kernels, promised))
        if run < wanted:
            short.append(f"{run} of {wanted} {title}")
    return f"only {' and '.join(short)} have a kernel" if short else None

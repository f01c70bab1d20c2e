"""Whether a graph convolves in half precision.

ONNX Runtime has one switch, ``use_tf32``, for all of a session. Off, fp32 products are exact, and cuDNN is denied every
engine that uses tensor cores, those for fp16 too, which are 10 to 20 times as fast. On, fp32 products are rounded to
the 11 bits that fp16 has, with fp32's range.

So it is on where convolutions are in fp16, and nowhere else: fp32 graphs stay what they promise, and in graphs without
convolutions it would only cost precision, because fp16 matrix products use tensor cores either way. Where such a graph
also has products in fp32, to escape fp16's range, they keep the range and lose no bits that their neighbours had.
"""

from __future__ import annotations

from pathlib import Path

from unibrain_rt.engines.onnx_file import read_onnx

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "FusedConv", "NhwcConv", "NhwcFusedConv"})


def convolves_in_half(path: Path) -> bool:
    """Whether a convolution's weights in the graph's file are fp16.

    Raises:
        EngineError: the file is damaged.
    """
    graph = read_onnx(path).graph
    types = {value.name: value.dtype for value in (*graph.values, *graph.inputs)}
    types.update((weights.name, weights.dtype) for weights in graph.initializers)
    return any(
        types.get(node.inputs[1]) == "float16" for node in graph.walk() if node.op_type in _CONVOLUTIONS
    )

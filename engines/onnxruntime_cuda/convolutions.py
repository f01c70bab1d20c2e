"""What ONNX Runtime is told of a graph's convolutions, by the costs of the graph.

**Half precision.** ONNX Runtime has one switch, ``use_tf32``, for all of a session. Off, fp32 products are exact, and
cuDNN is denied every engine that uses tensor cores, those for fp16 too, which are 10 to 20 times as fast. On, fp32
products are rounded to the 11 bits that fp16 has, with fp32's range.

So it is on where convolutions are in fp16, and nowhere else: fp32 graphs stay what they promise, and in graphs without
convolutions it would only cost precision, because fp16 matrix products use tensor cores either way. Where such a graph
also has products in fp32, to escape fp16's range, they keep the range and lose no bits that their neighbours had.

**Biases.** With ``fuse_conv_bias`` cuDNN adds them within the convolution, which saves a launch and the way to memory
and back. It is sound where all convolutions are NHWC; of NCHW ones ONNX Runtime (1.31, too) has cuDNN add the output's
own memory as well, which it clears for the first run alone, so that later runs and replays add what lies there.
"""

from __future__ import annotations

from unibrain_rt.engines.graph_costs import GraphCosts

_CHANNELS_LAST = "NhwcConv"
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "FusedConv", _CHANNELS_LAST, "NhwcFusedConv"})
_HALF_BYTES = 2


def convolves_in_half(costs: GraphCosts | None) -> bool:
    """Whether a graph of these costs has convolutions in fp16. One of unknown costs stays exact."""
    if costs is None or costs.bytes_per_number != _HALF_BYTES:
        return False
    return not _CONVOLUTIONS.isdisjoint(costs.operators)


def adds_biases(costs: GraphCosts | None) -> bool:
    """Whether the convolutions of a graph of these costs may add their biases: there are some, and all are NHWC."""
    return costs is not None and _CONVOLUTIONS & costs.operators.keys() == {_CHANNELS_LAST}

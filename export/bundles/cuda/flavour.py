"""The flavour of a graph for the engine ``cuda``: half as many kernels, and half of what they read and write.

It is made of the fp32 model by its patterns, so that a bundle can be converted without its checkpoint. The nodes it
puts in are contrib operators of ONNX Runtime; what each means is in the file, as a function of standard operators
(`meanings`), so that it stays a graph that anything can run.
"""

from __future__ import annotations

import onnx_ir as ir

from unibrain_rt.export.bundles.cuda.attention import fuse_attention
from unibrain_rt.export.bundles.cuda.caching import cache_all_layers
from unibrain_rt.export.bundles.cuda.channels_last import put_channels_last
from unibrain_rt.export.bundles.cuda.gated import fuse_gates
from unibrain_rt.export.bundles.cuda.gelu import fuse_tanh_gelus
from unibrain_rt.export.bundles.cuda.graph_edit import Editor, sizes
from unibrain_rt.export.bundles.cuda.group_norms import fuse_group_norms
from unibrain_rt.export.bundles.cuda.meanings import define_meanings
from unibrain_rt.export.bundles.cuda.mixing import mix_biases_once
from unibrain_rt.export.bundles.cuda.modulation import join_modulations
from unibrain_rt.export.bundles.cuda.sampler import read_coefficients_once
from unibrain_rt.export.bundles.cuda.sums import add_biases_with_residuals, add_in_norms
from unibrain_rt.export.bundles.cuda.tidying import drop_needless_views
from unibrain_rt.export.bundles.precision import FP32_OPERATORS, set_precision

CUDA = "cuda"
_SUMMED_IN_FP32 = frozenset({"Softmax", "LayerNormalization"})
"""Operators whose CUDA kernels sum in fp32 whatever they read and write, so that they need no casts."""


def cuda_flavour(model: ir.Model) -> ir.Model:
    """The fp16 flavour of an fp32 model, which stays as it is."""
    flavour = model.clone()
    fuse(flavour)
    set_precision(flavour, "fp16", in_fp32=FP32_OPERATORS - _SUMMED_IN_FP32)
    return flavour


def fuse(model: ir.Model) -> None:
    """Rewrite an fp32 model in place; it stays fp32. One whose sizes are not all known is left as it is."""
    if not all(sizes(value) is not None for node in model.graph for value in node.outputs if value.name):
        return
    editor = Editor(model.graph)
    drop_needless_views(editor)
    for rewrite in (
        fuse_attention,
        cache_all_layers,
        fuse_gates,
        fuse_tanh_gelus,
        fuse_group_norms,
        put_channels_last,
        join_modulations,
        mix_biases_once,
        add_in_norms,
        add_biases_with_residuals,
        read_coefficients_once,
    ):
        rewrite(editor)
        drop_needless_views(editor)
    define_meanings(model)

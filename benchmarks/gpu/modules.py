"""The torch modules of a decode, with random weights that are the same in every process on the same device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from unibrain_rt.export import graphs
from unibrain_rt.export.config import Architecture
from unibrain_rt.export.models.autokl import build_autokl
from unibrain_rt.export.models.optimus import OptimusDecoder, OptimusStep
from unibrain_rt.export.models.unet import FourFlowUNet

MODULES: dict[str, Callable[[Architecture], nn.Module]] = {
    "unet": lambda sizes: FourFlowUNet(sizes.unet),
    "autokl": lambda sizes: build_autokl(sizes.autokl),
    "optimus": lambda sizes: OptimusDecoder(sizes.optimus),
}
"""By name, what holds the parameters of a decode; `hollow` names parameters ``<name>.<key>``."""
_SEED = 1
_SPREAD = 0.05
"""Of biases and of norms' scales: enough that one which is forgotten, or added twice, shows."""


def random_modules(sizes: Architecture, device: str) -> dict[str, nn.Module]:
    """Every module of `MODULES` in half precision, drawn so that activations stay sane.

    Norms scale by about 1, biases are about 0, everything else is N(0, 1 / fan-in).
    """
    generator = torch.Generator(device).manual_seed(_SEED)
    modules = {}
    for name, build in MODULES.items():
        with init_empty_weights(include_buffers=False):
            module = build(sizes)
        for key, parameter in list(module.named_parameters()):
            owner, _, leaf = key.rpartition(".")
            drawn = _drawn(key, module.get_submodule(owner), tuple(parameter.shape), generator)
            module.get_submodule(owner)._parameters[leaf] = nn.Parameter(drawn, requires_grad=False)
        modules[name] = module.to(device).eval()
    return modules


def graph_modules(modules: Mapping[str, nn.Module], sizes: Architecture, slots: int) -> dict[str, nn.Module]:
    """The modules of the graphs that a decode runs, by graph, on the parameters of ``modules``."""
    unet: Any = modules["unet"]
    vae: Any = modules["autokl"]
    optimus: Any = modules["optimus"]
    return {
        "unet_context": graphs.UNetContext(unet),
        "unet_time": graphs.UNetTime(unet),
        "unet_image_step": graphs.UNetStep(unet, "image"),
        "unet_text_step": graphs.UNetStep(unet, "text"),
        "autokl_decode": graphs.autokl_decode(vae, sizes).module,
        "optimus_decode": OptimusStep(optimus, slots),
    }


def _drawn(key: str, owner: nn.Module, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator, device=generator.device)
    norm = "Norm" in type(owner).__name__
    if key.endswith(".bias"):
        return (_SPREAD * noise).half()
    if norm:
        return (1 + _SPREAD * noise).half()
    # GPT-2 keeps its weights as (in, out).
    fan_in = shape[0] if type(owner).__name__ == "Conv1D" else math.prod(shape[1:])
    return (noise / math.sqrt(fan_in)).half()

"""The torch modules of a decode, with random weights that are the same in every process on the same device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from unibrain_rt.export.bundles import graphs
from unibrain_rt.export.bundles.architecture import Architecture
from unibrain_rt.export.bundles.models.autokl import build_autokl
from unibrain_rt.export.bundles.models.optimus import OptimusDecoder, OptimusStep
from unibrain_rt.export.bundles.models.unet import FourFlowUNet

MODULES: dict[str, Callable[[Architecture], nn.Module]] = {
    "unet": lambda sizes: FourFlowUNet(sizes.unet),
    "autokl": lambda sizes: build_autokl(sizes.autokl),
    "optimus": lambda sizes: OptimusDecoder(sizes.optimus),
}
"""By name, what holds the parameters of a decode; `hollow` names parameters ``<name>.<key>``."""
_SEED = 1
_SPREAD = 0.05
"""Of biases and of norms' scales: enough that one which is forgotten, or added twice, shows."""


def built(
    name: str, sizes: Architecture, made: Callable[[str, nn.Module, tuple[int, ...]], Tensor]
) -> nn.Module:
    """A module of `MODULES` that never had other parameters than ``made`` gives of their keys, owners and shapes."""
    with init_empty_weights(include_buffers=False):
        module = MODULES[name](sizes)
    for key, parameter in list(module.named_parameters()):
        path, _, leaf = key.rpartition(".")
        owner = module.get_submodule(path)
        new = made(key, owner, tuple(parameter.shape))
        owner._parameters[leaf] = nn.Parameter(new, requires_grad=False)
    return module.eval()


def random_modules(sizes: Architecture, device: str) -> dict[str, nn.Module]:
    """Every module of `MODULES` in half precision, drawn so that activations stay sane.

    Norms scale by about 1, biases are about 0, everything else is N(0, 1 / fan-in).
    """
    generator = torch.Generator(device).manual_seed(_SEED)
    draw = partial(_drawn, generator)
    return {name: built(name, sizes, draw).to(device) for name in MODULES}


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


def _drawn(generator: torch.Generator, key: str, owner: nn.Module, shape: tuple[int, ...]) -> Tensor:
    noise = torch.randn(shape, generator=generator, device=generator.device)
    if key.endswith(".bias"):
        return (_SPREAD * noise).half()
    if "Norm" in type(owner).__name__:
        return (1 + _SPREAD * noise).half()
    # GPT-2 keeps its weights as (in, out).
    fan_in = shape[0] if type(owner).__name__ == "Conv1D" else math.prod(shape[1:])
    return (noise / math.sqrt(fan_in)).half()

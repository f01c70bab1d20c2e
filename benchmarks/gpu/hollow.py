"""Graphs of any size without a checkpoint: files that say of every weight which parameter of which module it is.

The modules are built without memory. Every parameter is one number, its tag, seen in the parameter's shape; so what
the exporter stores, cut, transposed or as it was, tells by its value whose it is. The graphs come out as an export
makes them, a few MB at any size, beside sparse files that hold no numbers yet: `filling` writes those, where there is
a device to draw them on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from unibrain_rt.benchmarks.gpu.modules import built
from unibrain_rt.export.bundles import graphs
from unibrain_rt.export.bundles.architecture import Architecture
from unibrain_rt.export.bundles.graphs import Graph
from unibrain_rt.export.bundles.trace import trace
from unibrain_rt.export.bundles.writer import caption_slots

Tags = dict[float, tuple[str, tuple[int, ...]]]
"""By tag, the name and the shape of a parameter."""
_FIRST_TAG = 4_000_000
"""Tags are whole numbers from here on: exact in fp32, and nothing that a graph computes with."""
_LARGE = 60_000
"""In half precision tags become the largest number there is; masks are infinite."""
_VIEW = re.compile(r"(?:_from_(\d+))?(?:_transposed_10)?$")
_ALIGNMENT = 4096


@dataclass(frozen=True)
class Part:
    """Where the numbers of an initializer are: rows ``start`` to ``stop`` of a parameter, ``transposed`` or not."""

    parameter: str
    start: int
    stop: int
    transposed: bool


@dataclass(frozen=True)
class Term:
    """A part of a parameter, added or taken away."""

    part: Part
    sign: int = 1


@dataclass(frozen=True)
class HollowTensor:
    """An initializer's place in a file of weights, and whose sum it is: mostly of one term."""

    offset: int
    dtype: str
    shape: tuple[int, ...]
    terms: tuple[Term, ...]


class HollowFile:
    """A file of weights without the weights: equal sums in equal types have one place."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0
        self.places: dict[tuple[tuple[Term, ...], str], HollowTensor] = {}

    def place(self, terms: tuple[Term, ...], dtype: str, shape: tuple[int, ...]) -> HollowTensor:
        """Where that sum lies, in that type."""
        key = (terms, dtype)
        if key not in self.places:
            offset = -(-self.size // _ALIGNMENT) * _ALIGNMENT
            self.places[key] = HollowTensor(offset, dtype, shape, terms)
            self.size = offset + prod(shape) * np.dtype(dtype).itemsize
        return self.places[key]

    def close(self) -> dict[str, Any]:
        """Make the sparse file; what `filling` has to know of it."""
        with self.path.open("wb") as file:
            file.truncate(self.size)
        return {"bytes": self.size, "tensors": [asdict(one) for one in self.places.values()]}


def decode_graphs(sizes: Architecture) -> Iterator[tuple[Graph, Tags]]:
    """Every graph of a decode, and by tag the name and shape of each parameter of its modules."""
    tags: Tags = {}
    unet = _tagged("unet", sizes, tags)
    yield graphs.unet_context(unet, sizes), tags
    yield graphs.unet_time(unet), tags
    yield graphs.unet_step(unet, sizes, "image"), tags
    yield graphs.unet_step(unet, sizes, "text"), tags
    yield graphs.autokl_decode(_tagged("autokl", sizes, tags), sizes), tags
    optimus = _tagged("optimus", sizes, tags)
    yield graphs.optimus_decode(optimus, sizes.optimus.latent_size, caption_slots(sizes)), tags


def hollow(graph: Graph, tags: Tags) -> tuple[ir.Model, dict[str, Part]]:
    """The graph in fp32 as an export traces it, and which part of which parameter its initializers are.

    Raises ValueError: an initializer was computed of parameters, and is not one.
    """
    model = trace(graph)
    parts = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None, "initializers hold tensors"
        if tensor.dtype != ir.DataType.FLOAT or not tensor.size:
            continue
        first = float(np.asarray(tensor.numpy()).reshape(-1)[0])
        if first in tags:
            parts[name] = _part(value, *tags[first])
        elif abs(first) >= _FIRST_TAG / 2 and np.isfinite(first) and abs(first) < 1e30:
            raise ValueError(f"{graph.name}: {name} is computed of parameters")
    return model, parts


def save_hollow(model: ir.Model, parts: Mapping[str, Part], path: Path, weights: HollowFile) -> None:
    """Write a model made of one that `hollow` gave, in whatever precision or flavour, its weights in ``weights``.

    Raises ValueError: an initializer was computed of parameters in a way that is not known here.
    """
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None, "initializers hold tensors"
        terms = _terms(name.removesuffix("_half"), parts)
        if terms is None:
            numbers = np.asarray(tensor.numpy())
            if (
                numbers.dtype.kind == "f"
                and numbers.size
                and np.abs(numbers[np.isfinite(numbers)]).max(initial=0) > _LARGE
            ):
                raise ValueError(f"{path.name}: {name} is computed of parameters")
            continue
        dtype = str(tensor.dtype.numpy())
        shape = tuple(int(size) for size in tensor.shape.numpy())
        stored = weights.place(terms, dtype, shape)
        length = prod(shape) * np.dtype(dtype).itemsize
        value.const_value = ir.ExternalTensor(
            weights.path.name,
            stored.offset,
            length,
            tensor.dtype,
            shape=ir.Shape(shape),
            name=name,
            base_dir="",
        )
    ir.save(model, path)


def _terms(name: str, parts: Mapping[str, Part]) -> tuple[Term, ...] | None:
    """Whose sum an initializer is, by its name; the names of sums are those of `export.bundles.cuda`."""
    if name in parts:
        return (Term(parts[name]),)
    if name.endswith("_flat"):
        return _terms(name.removesuffix("_flat"), parts)
    if name.endswith("_to_image"):
        text = name.removesuffix("_to_image")
        image, other = (_terms(one, parts) for one in (text.replace("unet.text.", "unet.image."), text))
        return (
            None
            if image is None or other is None
            else (*image, *(Term(term.part, -term.sign) for term in other))
        )
    first, plus, second = name.partition("_plus_")
    if not plus:
        return None
    one, two = _terms(first, parts), _terms(second, parts)
    return None if one is None or two is None else one + two


def _tagged(name: str, sizes: Architecture, tags: Tags) -> Any:
    """A module whose parameters are their tags, which are added to ``tags``; its buffers are real."""

    def tag(key: str, _: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
        number = float(_FIRST_TAG + len(tags))
        tags[number] = (f"{name}.{key}", shape)
        return torch.full((), number).expand(shape)

    return built(name, sizes, tag)


def _part(value: ir.Value, parameter: str, whole: tuple[int, ...]) -> Part:
    assert value.name is not None, "initializers are registered by name"
    assert value.const_value is not None, "initializers hold tensors"
    shape = tuple(int(size) for size in value.const_value.shape.numpy())
    match = _VIEW.search(value.name)
    assert match is not None, "the pattern may be empty"
    start = int(match[1] or 0)
    if len(whole) != 2 or len(shape) != 2:
        rows = shape[0] if len(whole) == 1 and match[1] else whole[0]
        return Part(parameter, start, start + rows, False)
    # A matrix in the exporter's own constants has lost its name; MatMul takes (in, out), torch keeps (out, in).
    used_by = {use.node.op_type for use in value.uses()}
    transposed = "_transposed_10" in match[0] or (value.name.startswith("val_") and used_by == {"MatMul"})
    rows = shape[1] if transposed else shape[0]
    if (shape[0] if transposed else shape[1]) != whole[1] or start + rows > whole[0]:
        raise ValueError(f"{value.name} {shape} is no part of {parameter} {whole}")
    return Part(parameter, start, start + rows, transposed)

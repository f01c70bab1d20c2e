"""What pictures are compared by: feature networks in ONNX files, and the bundle's own CLIP.

A network lies in two files: the graph, and beside it a JSON file that says what the graph takes, what its
features are and where its weights come from. `extractors` writes both; nothing here needs torch, and the graph
runs through an engine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unibrain_rt.bundle import Bundle, sha256_of
from unibrain_rt.engines import Engine, GraphSpec, TensorSpec
from unibrain_rt.errors import InputError, input_error
from unibrain_rt.export.subjects.datasets.dataset import resized
from unibrain_rt.export.subjects.encoders import BATCH, Encoder, clip_input

Float = NDArray[np.float32]
Measure = Literal["identification", "distance"]
Layout = Literal["NCHW", "NHWC"]
Resampling = Literal["bilinear", "bicubic"]
SCHEMA_VERSION = 1
INPUT, OUTPUT = "pixels", "features"
_LARGEST_DESCRIPTION = 2**20
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_ADVICE = "make it with unibrain-rt export-features"


@dataclass(frozen=True)
class FeatureFile:
    """What the JSON file beside a feature network says.

    Pictures are resized to ``side`` with Pillow, scaled to [0, 1], and normalised by ``mean`` and ``std`` of red, green
    and blue.
    """

    name: str
    measure: Measure
    graph: Path
    sha256: str
    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    shape: tuple[int, ...]
    """Of the features of one picture."""
    resampling: Resampling = "bilinear"
    layout: Layout = "NCHW"
    input: str = INPUT
    output: str = OUTPUT
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> FeatureFile:
        """Read the JSON file ``path`` and compare the graph beside it with its SHA-256.

        Raises:
            InputError: either is missing, damaged or not of this form.
        """
        value = _json(path)
        if value.get("schema_version") != SCHEMA_VERSION:
            problem = f"schema version {value.get('schema_version')}, but this release reads {SCHEMA_VERSION}"
            raise input_error(path, f"{problem}: {_ADVICE} anew")
        try:
            graph, taken, given = value["graph"], value["input"], value["output"]
            file = cls(
                name=_text(value["name"]),
                measure=_one_of(value["measure"], get_args(Measure)),
                graph=path.parent / _file_name(graph["file"]),
                sha256=_text(graph["sha256"]),
                side=_whole(taken["side"]),
                mean=_colours(taken["mean"]),
                std=_colours(taken["std"]),
                shape=tuple(_whole(size) for size in given["shape"]),
                resampling=_one_of(taken["resampling"], get_args(Resampling)),
                layout=_one_of(taken["layout"], get_args(Layout)),
                input=_text(taken["tensor"]),
                output=_text(given["tensor"]),
                provenance=dict(value["provenance"]),
            )
        except KeyError as error:
            raise input_error(path, f"{error.args[0]} is missing: {_ADVICE}") from error
        except (TypeError, ValueError) as error:
            raise input_error(path, f"describes no feature network ({error}): {_ADVICE}") from error
        if not all(file.std):
            raise input_error(path, f"std must not be 0: {_ADVICE}")
        if not file.graph.is_file():
            raise input_error(file.graph, f"no such file, but {path.name} names it: copy both files")
        if sha256_of(file.graph) != file.sha256:
            raise input_error(file.graph, f"not the file that {path.name} tells of: {_ADVICE}, or copy both")
        return file

    def record(self) -> dict[str, Any]:
        """For JSON: what `load` reads."""
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "measure": self.measure,
            "graph": {"file": self.graph.name, "sha256": self.sha256},
            "input": {
                "tensor": self.input,
                "side": self.side,
                "layout": self.layout,
                "resampling": self.resampling,
                "mean": list(self.mean),
                "std": list(self.std),
            },
            "output": {"tensor": self.output, "shape": list(self.shape)},
            "provenance": dict(self.provenance),
        }

    def spec(self) -> GraphSpec:
        """The graph as an engine opens it."""
        sides = (3, self.side, self.side) if self.layout == "NCHW" else (self.side, self.side, 3)
        return GraphSpec(
            self.name,
            self.graph,
            (TensorSpec(self.input, "float32", ("N", *sides)),),
            (TensorSpec(self.output, "float32", ("N", *self.shape)),),
        )

    def pixels(self, images: NDArray[np.uint8]) -> Float:
        """Pictures (N, H, W, 3) as the graph takes them."""
        size = (self.side, self.side)
        if images.shape[1:3] != size:
            whole = (Image.fromarray(np.ascontiguousarray(image)) for image in images)
            images = np.stack(
                [np.asarray(image.resize(size, _RESAMPLING[self.resampling])) for image in whole]
            )
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        values = (images.astype(np.float32) / np.float32(255) - mean) / std
        return values.transpose(0, 3, 1, 2) if self.layout == "NCHW" else values


@dataclass(frozen=True)
class Extractor:
    """Pictures (N, H, W, 3) uint8 → features (N, D)."""

    name: str
    measure: Measure
    """What features are compared by."""
    provenance: Mapping[str, Any]
    """Where the weights come from."""
    width: int
    """D"""
    of_batch: Callable[[NDArray[np.uint8]], Float]
    """Features (n, D) of at most `BATCH` pictures."""

    def features(self, images: NDArray[np.uint8]) -> Float:
        """Features (N, D), a batch at a time."""
        features = np.empty((len(images), self.width), np.float32)
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            features[part] = self.of_batch(images[part])
        return features


def network_extractor(file: FeatureFile, engine: Engine) -> Extractor:
    """A feature network, open on an engine. Raises `EngineError` if the graph does not fit its description."""
    encoder, width = Encoder(file.spec(), engine), math.prod(file.shape)
    return Extractor(
        file.name,
        file.measure,
        file.provenance,
        width,
        lambda images: encoder(file.pixels(images)).reshape(-1, width),
    )


def clip_extractor(bundle: Bundle, engine: Engine) -> Extractor:
    """The bundle's own CLIP: the pooled token, of length 1, of its image context (N, L, D).

    It guides the decoder: no judge by itself.
    """
    encoder = Encoder(bundle.graph("clip_image"), engine)
    return Extractor(
        "CLIP",
        "identification",
        {"bundle": bundle.name, "fingerprint": bundle.fingerprint()},
        encoder.shape[-1],
        lambda images: encoder(clip_input(resized(images, encoder.size)))[:, 0],
    )


def open_extractors(bundle: Bundle, files: Sequence[Path], engine: Engine) -> list[Extractor]:
    """The bundle's CLIP and the networks that ``files`` describe.

    Raises:
        InputError: a file is damaged, or two networks have one name.
    """
    extractors = [clip_extractor(bundle, engine)]
    for path in files:
        file = FeatureFile.load(path)
        if file.name in {other.name for other in extractors}:
            raise input_error(path, f"a second network called {file.name}: give each once, or rename one")
        extractors.append(network_extractor(file, engine))
    return extractors


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_DESCRIPTION:
            raise input_error(path, f"too large for a description of a feature network: {_ADVICE}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise input_error(path, f"cannot be read ({error.strerror}): {_ADVICE}") from error
    except (ValueError, RecursionError) as error:
        raise input_error(path, f"not valid JSON ({error}): {_ADVICE}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: describes no feature network (not an object): {_ADVICE}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError(f"{value!r} is no text")
    return value


def _file_name(value: Any) -> str:
    if Path(_text(value)).name != value:
        raise ValueError(f"{value!r} is no file beside it")
    return str(value)


def _one_of(value: Any, known: tuple[Any, ...]) -> Any:
    if value not in known:
        raise ValueError(f"{value!r} is not one of {', '.join(known)}")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 2**20:
        raise ValueError(f"{value!r} is no size")
    return value


def _colours(value: Any) -> tuple[float, float, float]:
    red, green, blue = (float(part) for part in value)
    if not all(map(math.isfinite, (red, green, blue))):
        raise ValueError(f"{value!r} is not finite")
    return red, green, blue

"""What pictures are compared by: feature networks in ONNX files, and the bundle's own CLIP.

A network lies in two files: the graph, and beside it a JSON file that says what the graph takes, what its
features are and where its weights come from. `extractors` writes both; nothing here needs torch, and the graph
runs through an engine.
"""

from __future__ import annotations

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
from unibrain_rt.json_file import Fields

Float = NDArray[np.float32]
Measure = Literal["identification", "distance"]
Layout = Literal["NCHW", "NHWC"]
Resampling = Literal["bilinear", "bicubic"]
SCHEMA_VERSION = 1
INPUT, OUTPUT = "pixels", "features"
_LARGEST_SIZE = 2**20
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
        described = Fields.load(path, _complaint, largest_bytes=_LARGEST_DESCRIPTION)
        if (version := described.raw().get("schema_version")) != SCHEMA_VERSION:
            problem = f"schema version {version}, but this release reads {SCHEMA_VERSION}"
            raise input_error(path, f"{problem}: {_ADVICE} anew")
        graph, taken, given = (described.object(name) for name in ("graph", "input", "output"))
        if Path(beside := graph.text("file")).name != beside:
            raise graph.wrong("file", "the name of a file beside it", repr(beside))
        red, green, blue = taken.numbers("mean", 3)
        spreads = taken.numbers("std", 3)
        file = cls(
            name=described.text("name"),
            measure=described.one_of("measure", get_args(Measure)),
            graph=path.parent / beside,
            sha256=graph.text("sha256"),
            side=taken.whole("side", _LARGEST_SIZE),
            mean=(red, green, blue),
            std=(spreads[0], spreads[1], spreads[2]),
            shape=given.wholes("shape", _LARGEST_SIZE),
            resampling=taken.one_of("resampling", get_args(Resampling)),
            layout=taken.one_of("layout", get_args(Layout)),
            input=taken.text("tensor"),
            output=given.text("tensor"),
            provenance=described.take("provenance", dict),
        )
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


def _complaint(where: str, problem: str) -> InputError:
    return input_error(where, f"{problem}: {_ADVICE}")

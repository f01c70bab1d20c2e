"""An implementation of some of a decode's work, as it is measured beside others."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from unibrain_rt.benchmarks.inputs import Float
from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import Engine, create_engine
from unibrain_rt.engines.openvino import PRECISION_VARIABLE

if TYPE_CHECKING:
    from torch import nn

    from unibrain_rt.export.bundles.checkpoint import Checkpoint

Work = Literal["image", "text", "caption", "autokl"]
WORKS: tuple[Work, ...] = ("image", "text", "caption", "autokl")
"""What peers are measured at: a guided step of a flow, a whole caption from its latent, a picture from its latent."""


@dataclass(frozen=True)
class Source:
    """Where a peer's weights are: a checkpoint for torch and diffusers, for an engine a bundle made of it.

    ``flow`` is whose step is run, or another of `WORKS`.
    """

    flow: Work
    threads: int
    checkpoint: Path | None = None
    config: Path | None = None
    bundle: Path | None = None


class Peer(ABC):
    """One implementation, loaded once. ``load`` ends with everything ready for the first step."""

    variants: ClassVar[tuple[str, ...]]
    precision: ClassVar[str] = "float32"
    """What torch computes in, by torch's name."""
    compiled: ClassVar[bool] = False
    """Whether torch's modules go through ``torch.compile``."""

    def __init__(self, source: Source) -> None:
        self.source = source

    @abstractmethod
    def load(self) -> None:
        """Take the weights into memory of its own."""

    @abstractmethod
    def step(self, variant: str) -> None:
        """Run one step."""

    @abstractmethod
    def output(self) -> Float:
        """The next latent that the last step gave."""


class EnginePeer(Peer):
    """Graphs of a bundle in an engine."""

    engine: ClassVar[str] = "onnxruntime"
    openvino_precision: ClassVar[str | None] = None
    """What OpenVINO computes in; by default what is native to the processor."""

    def open_bundle(self) -> tuple[Bundle, Engine]:
        """Raises EngineError: the engine cannot be used here, or not in this precision."""
        assert self.source.bundle is not None
        if self.openvino_precision is not None:
            os.environ[PRECISION_VARIABLE] = self.openvino_precision
        return Bundle.open(self.source.bundle, verify=False), create_engine(self.engine, self.source.threads)


def opened(source: Source) -> Checkpoint:
    """The checkpoint that a source names."""
    from unibrain_rt.export.bundles.checkpoint import open_checkpoint

    assert source.checkpoint is not None
    return open_checkpoint(source.checkpoint, source.config)


def take(module: nn.Module, wanted: Callable[[str], bool]) -> None:
    """Copy parameters out of their mapped file, whose pages the kernel may drop while a peer sleeps."""
    for name, parameter in module.named_parameters():
        if wanted(name):
            parameter.data = parameter.data.clone()

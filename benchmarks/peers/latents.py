"""What turns latents into a caption and a picture, in the implementations that are measured side by side.

A caption is `TOKENS` tokens, whichever they are: with random weights GPT-2 never ends a sentence. The reference
computes all tokens anew for each next one (``recompute``); the engines and our torch module keep keys and values
(``cached``).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from unibrain_rt.benchmarks.inputs import Float
from unibrain_rt.benchmarks.peers.peer import EnginePeer, Peer, opened, take
from unibrain_rt.loops import likeliest_tokens
from unibrain_rt.samplers import seeded_noise

TOKENS = 30
"""The reference's most."""
START = 1
_CAPTION_STREAM, _PICTURE_STREAM = 20, 21


class EngineLatentPeer(EnginePeer):
    """A bundle's graph in an engine, driven as the decoder drives it."""

    graph: ClassVar[str]

    def load(self) -> None:
        bundle, self._engine = self.open_bundle()
        self._session = self._engine.open(bundle.graph(self.graph))


class EngineCaptionPeer(EngineLatentPeer):
    """GPT-2 in an engine."""

    variants: ClassVar[tuple[str, ...]] = ("cached",)
    graph: ClassVar[str] = "optimus_decode"

    def load(self) -> None:
        super().load()
        slots = self._session.graph.tensor("key_cache").sized(1)[2]
        self._caption = likeliest_tokens(
            self._engine, self._session, START, end=None, at_most=min(TOKENS, slots)
        )

    def step(self, variant: str) -> None:
        session = self._session
        session.write("latent", seeded_noise(0, _CAPTION_STREAM, session.graph.tensor("latent").sized(1)))
        self._tokens = [START, *self._caption.run()]

    def output(self) -> Float:
        return np.array(self._tokens, np.float32)


class EnginePicturePeer(EngineLatentPeer):
    """AutoKL in an engine."""

    variants: ClassVar[tuple[str, ...]] = ("whole",)
    graph: ClassVar[str] = "autokl_decode"

    def step(self, variant: str) -> None:
        shape = self._session.graph.tensor("latent").sized(1)
        self._session.write("latent", seeded_noise(0, _PICTURE_STREAM, shape))
        self._session.run()

    def output(self) -> Float:
        return self._session.read("image")


class TorchCaptionPeer(Peer):
    """Optimus' GPT-2 in torch: as the reference runs it, and with a cache."""

    variants: ClassVar[tuple[str, ...]] = ("recompute", "cached")

    def load(self) -> None:
        import torch

        from unibrain_rt.export.bundles.checkpoint import load_optimus_decoder
        from unibrain_rt.export.bundles.models.optimus import OptimusStep

        torch.set_num_threads(self.source.threads)
        checkpoint = opened(self.source)
        self._dtype = getattr(torch, self.precision)
        decoder = load_optimus_decoder(checkpoint, self._dtype)
        take(decoder, lambda key: True)
        sizes = decoder.sizes
        self._count = min(TOKENS, int(sizes.n_positions) - 1)
        self._cache = (sizes.n_layer, sizes.n_head, self._count, sizes.n_embd // sizes.n_head)
        step = OptimusStep(decoder, self._count)
        # What is recomputed has another length each time: a shape that is compiled for all of them.
        self._decoder: Any = torch.compile(decoder, dynamic=True) if self.compiled else decoder
        self._step: Any = torch.compile(step) if self.compiled else step
        size = checkpoint.architecture.optimus.latent_size
        self._latent = torch.from_numpy(seeded_noise(0, _CAPTION_STREAM, (1, size))).to(self._dtype)

    def step(self, variant: str) -> None:
        import torch

        with torch.inference_mode():
            self._tokens = self._recompute() if variant == "recompute" else self._cached()

    def output(self) -> Float:
        return np.array(self._tokens, np.float32)

    def _recompute(self) -> list[int]:
        import torch

        tokens = [START]
        for _ in range(self._count):
            logits = self._decoder(self._latent, torch.tensor([tokens]))
            tokens.append(int(logits[0, -1].argmax()))
        return tokens

    def _cached(self) -> list[int]:
        import torch

        keys, values = (
            torch.zeros(self._cache, dtype=self._dtype),
            torch.zeros(self._cache, dtype=self._dtype),
        )
        position, token = torch.ones(1, dtype=torch.int64), torch.full((1,), START)
        tokens = [START]
        for _ in range(self._count):
            _, keys, values, position, token = self._step(self._latent, token, position, keys, values)
            tokens.append(int(token))
        return tokens


class TorchPicturePeer(Peer):
    """AutoKL in torch, which is diffusers' own module."""

    variants: ClassVar[tuple[str, ...]] = ("whole",)

    def load(self) -> None:
        import torch

        from unibrain_rt.export.bundles.checkpoint import load_autokl
        from unibrain_rt.export.bundles.graphs import autokl_decode

        torch.set_num_threads(self.source.threads)
        checkpoint = opened(self.source)
        vae = load_autokl(checkpoint, getattr(torch, self.precision))
        take(vae, lambda key: True)
        graph = autokl_decode(vae, checkpoint.architecture)
        self._module: Any = torch.compile(graph.module) if self.compiled else graph.module
        shape = tuple(graph.example["latent"].shape)
        latent = torch.from_numpy(seeded_noise(0, _PICTURE_STREAM, shape))
        self._latent = latent.to(getattr(torch, self.precision))

    def step(self, variant: str) -> None:
        import torch

        with torch.inference_mode():
            self._image = self._module(self._latent)

    def output(self) -> Float:
        return np.asarray(self._image.float().numpy())

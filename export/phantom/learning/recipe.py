"""Training the phantom from scratch: vocabularies, scenes, models, and a checkpoint in the published layout.

The result is a folder that ``unibrain-rt export`` reads like any published checkpoint. Every stage can be
stopped and started again; those that do not depend on each other, AutoKL, CLIP and Optimus, may run in three
processes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unibrain_rt.export.bundles.architecture import Architecture
from unibrain_rt.export.bundles.models.autokl import published_key as autokl_key
from unibrain_rt.export.bundles.models.optimus import decoder_key, encoder_key
from unibrain_rt.export.phantom.learning.autoencoder import AutoKLLearner
from unibrain_rt.export.phantom.learning.language import CLIPLearner, OptimusLearner
from unibrain_rt.export.phantom.learning.loop import Stage, train
from unibrain_rt.export.phantom.learning.unet_learner import (
    SPREAD,
    TEXT_SPREAD,
    Latents,
    UNetLearner,
    encode_text,
)
from unibrain_rt.export.phantom.learning.world import World
from unibrain_rt.export.phantom.phrases import captions
from unibrain_rt.export.phantom.scenes import scenes
from unibrain_rt.export.phantom.small_architecture import phantom_architecture
from unibrain_rt.export.phantom.tokenizers import write_tokenizers

Report = Callable[[str, int, int, float], None]
CHECKPOINT = "vd-four-flow-v1-0.safetensors"


@dataclass(frozen=True)
class Recipe:
    """How much is learned, in steps. These are the shipped phantom's."""

    scenes: int = 16384
    autokl_steps: int = 2000
    sharpening_steps: int = 900
    colouring_steps: int = 2000
    refining_steps: int = 1600
    clip_steps: int = 1600
    optimus_steps: int = 2000
    naming_steps: int = 1200
    unet_steps: int = 2895
    text_steps: int = 1600
    seed: int = 0


class Run:
    """A training in ``folder``. Each method learns one model, or loads what was learned of it before."""

    def __init__(self, folder: Path, recipe: Recipe, report: Report) -> None:
        self.folder, self.recipe, self._report = folder, recipe, report

    @cached_property
    def sizes(self) -> Architecture:
        """All sizes; the scale factor of AutoKL's latents is not known yet."""
        prepare(self.folder)
        return phantom_architecture(self.folder / "tokenizers")

    @cached_property
    def world(self) -> World:
        return World.cached(
            self.folder, self.recipe.scenes, self.recipe.seed, self.sizes, self.folder / "tokenizers"
        )

    def autokl(self) -> AutoKLLearner:
        """The image autoencoder."""
        recipe = self.recipe
        torch.manual_seed(recipe.seed)
        learner = AutoKLLearner(self.sizes, self.world)
        for name, loss, steps, learning_rate, average, seed in (
            ("autokl", learner.loss, recipe.autokl_steps, 1.5e-3, 0.99, 0),
            ("sharpening", learner.sharpening_loss, recipe.sharpening_steps, 1.2e-3, 0.99, 4),
            ("colouring", learner.colouring_loss, recipe.colouring_steps, 1.5e-3, 0.99, 5),
            ("refining", learner.colouring_loss, recipe.refining_steps, 1e-3, 0.995, 9),
        ):
            self._train(Stage(name, learner.module, loss, steps, learning_rate, average=average), seed)
        return learner

    def clip(self) -> CLIPLearner:
        torch.manual_seed(self.recipe.seed)
        clip = CLIPLearner(self.sizes, self.world)
        steps = self.recipe.clip_steps
        self._train(Stage("clip", clip, clip.loss, steps, 1e-3, weight_decay=0.02, average=0.99), 1)
        return clip

    def optimus(self) -> OptimusLearner:
        torch.manual_seed(self.recipe.seed)
        optimus = OptimusLearner(self.sizes, self.world)
        self._train(Stage("optimus", optimus, optimus.loss, self.recipe.optimus_steps, 1e-3, average=0.99), 2)
        optimus.turn()  # so that the looks of colours come where the latent holds least
        naming = Stage("naming", optimus, optimus.colour_loss, self.recipe.naming_steps, 1e-3, average=0.99)
        self._train(naming, 6)
        return optimus

    def unet(self) -> tuple[UNetLearner, Architecture, AutoKLLearner, CLIPLearner]:
        """The four-flow UNet's image flows, on the latents of AutoKL and the contexts of CLIP, which come along.

        The sizes that are given, too, have AutoKL's scale factor.
        """
        autokl, clip = self.autokl(), self.clip()
        scale_factor = SPREAD / autokl.latent_std()
        architecture = replace(self.sizes, autokl=replace(self.sizes.autokl, scale_factor=scale_factor))
        latents = Latents.cached(
            self.folder / f"latents_{self.recipe.scenes}_{self.recipe.seed}.safetensors",
            lambda: Latents.encode(self.world, architecture, autokl.module, clip, scale_factor),
        )
        torch.manual_seed(self.recipe.seed)
        unet = UNetLearner(architecture, latents)
        self._train(
            Stage(
                "unet",
                unet.module,
                unet.image_loss,
                self.recipe.unet_steps,
                1.5e-3,
                average=0.998,
                parameters=unet.image_parameters(),
            ),
            3,
        )
        return unet, architecture, autokl, clip

    def checkpoint(self) -> None:
        """Learn everything and write ``vd-four-flow-v1-0.safetensors``, ``config.json`` and ``tokenizers/``.

        The text flow's own blocks are learned last, on Optimus' latents, which are scaled to ``TEXT_SPREAD``.
        """
        optimus = self.optimus()
        unet, architecture, autokl, clip = self.unet()
        optimus.spread(TEXT_SPREAD)
        unet.latents = replace(unet.latents, text=encode_text(self.world, optimus))
        self._train(
            Stage(
                "text",
                unet.module,
                unet.text_loss,
                self.recipe.text_steps,
                1.5e-3,
                average=0.998,
                parameters=unet.text_parameters(),
            ),
            8,
        )
        config = json.dumps(architecture.to_mapping(), indent=1)
        (self.folder / "config.json").write_text(config, encoding="utf-8")
        levels = len(architecture.autokl.channel_mult)
        tensors = {
            **_renamed(unet.module, lambda key: f"diffuser.{key}"),
            **_renamed(autokl.module, lambda key: f"vae.image.{autokl_key(key, levels)}"),
            **_renamed(clip.image, lambda key: f"ctx.image.model.{key}"),
            **_renamed(clip.text, lambda key: f"ctx.text.model.{key}"),
            **_renamed(optimus.encoder, lambda key: f"vae.text.encoder.{encoder_key(key)}"),
            **_renamed(optimus.decoder, lambda key: f"vae.text.decoder.{decoder_key(key)}"),
        }
        save_file(tensors, self.folder / CHECKPOINT)

    def _train(self, stage: Stage, seed: int) -> None:
        train(stage, self.folder, self.recipe.seed + seed, self._report)


def prepare(folder: Path) -> None:
    """Write the vocabularies, which fix the sizes of the models; all of them or none."""
    if (folder / "tokenizers").is_dir():
        return
    sample = [caption for scene in scenes("train", 6000, 1) for caption in captions(scene)]
    partial = folder / f".tokenizers.{os.getpid()}"
    write_tokenizers(partial, sample)
    try:
        partial.rename(folder / "tokenizers")
    except OSError:  # a stage that runs beside this one was first, with the same
        shutil.rmtree(partial)


def _renamed(module: nn.Module, rename: Callable[[str], str]) -> dict[str, Tensor]:
    return {rename(key): value.detach().contiguous() for key, value in module.state_dict().items()}

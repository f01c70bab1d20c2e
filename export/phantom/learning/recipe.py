"""Training the phantom from scratch: vocabularies, scenes, models, and a checkpoint in the published layout.

The result is a folder that ``unibrain-rt export`` reads like any published checkpoint. Every stage can be
stopped and started again; those that do not depend on each other, ``autokl`` and ``language``, may run in two
processes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
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
    caption_steps: int = 1600
    seed: int = 0


def train_autokl(folder: Path, recipe: Recipe, report: Report) -> AutoKLLearner:
    """Learn (or load, if learned) the image autoencoder."""
    torch.manual_seed(recipe.seed)
    learner = AutoKLLearner(_architecture(folder), _world(folder, recipe))
    module = learner.module
    train(
        Stage("autokl", module, learner.loss, recipe.autokl_steps, 1.5e-3, average=0.99),
        folder,
        recipe.seed,
        report,
    )
    sharpening = Stage(
        "sharpening", module, learner.sharpening_loss, recipe.sharpening_steps, 1.2e-3, average=0.99
    )
    train(sharpening, folder, recipe.seed + 4, report)
    colouring = Stage(
        "colouring", module, learner.colouring_loss, recipe.colouring_steps, 1.5e-3, average=0.99
    )
    train(colouring, folder, recipe.seed + 5, report)
    refining = Stage("refining", module, learner.colouring_loss, recipe.refining_steps, 1e-3, average=0.995)
    train(refining, folder, recipe.seed + 9, report)
    return learner


def train_clip(folder: Path, recipe: Recipe, report: Report) -> CLIPLearner:
    """Learn (or load) CLIP."""
    torch.manual_seed(recipe.seed)
    clip = CLIPLearner(_architecture(folder), _world(folder, recipe))
    stage = Stage("clip", clip, clip.loss, recipe.clip_steps, 1e-3, weight_decay=0.02, average=0.99)
    train(stage, folder, recipe.seed + 1, report)
    return clip


def train_optimus(folder: Path, recipe: Recipe, report: Report) -> OptimusLearner:
    """Learn (or load) Optimus."""
    torch.manual_seed(recipe.seed)
    optimus = OptimusLearner(_architecture(folder), _world(folder, recipe))
    telling = Stage("optimus", optimus, optimus.loss, recipe.optimus_steps, 1e-3, average=0.99)
    train(telling, folder, recipe.seed + 2, report)
    optimus.turn()  # so that the looks of colours come where the latent holds least
    naming = Stage("naming", optimus, optimus.colour_loss, recipe.naming_steps, 1e-3, average=0.99)
    train(naming, folder, recipe.seed + 6, report)
    return optimus


def train_unet(folder: Path, recipe: Recipe, report: Report) -> tuple[UNetLearner, Architecture, CLIPLearner]:
    """Learn (or load) the four-flow UNet's image flows, on the latents of AutoKL and the contexts of CLIP.

    Also gives the final sizes and CLIP.
    """
    autokl = train_autokl(folder, recipe, report)
    clip = train_clip(folder, recipe, report)
    scale_factor = SPREAD / autokl.latent_std()
    architecture = _architecture(folder)
    architecture = replace(architecture, autokl=replace(architecture.autokl, scale_factor=scale_factor))
    world = _world(folder, recipe)
    latents = Latents.cached(
        folder / f"latents_{recipe.scenes}_{recipe.seed}.safetensors",
        lambda: Latents.encode(world, architecture, autokl.module, clip, scale_factor),
    )
    torch.manual_seed(recipe.seed)
    unet = UNetLearner(architecture, latents)
    stage = Stage(
        "unet",
        unet.module,
        unet.loss,
        recipe.unet_steps,
        1.5e-3,
        average=0.998,
        parameters=unet.parameters(),
    )
    train(stage, folder, recipe.seed + 3, report)
    return unet, architecture, clip


def train_captions(
    unet: UNetLearner, optimus: OptimusLearner, folder: Path, recipe: Recipe, report: Report
) -> None:
    """The text flow's own blocks, on Optimus' latents, which are scaled to ``TEXT_SPREAD``."""
    optimus.spread(TEXT_SPREAD)
    unet.latents = replace(unet.latents, text=encode_text(_world(folder, recipe), optimus))
    stage = Stage(
        "captions",
        unet.module,
        unet.caption_loss,
        recipe.caption_steps,
        1.5e-3,
        average=0.998,
        parameters=unet.caption_parameters(),
    )
    train(stage, folder, recipe.seed + 8, report)


def train_phantom(folder: Path, recipe: Recipe, report: Report) -> None:
    """Learn everything and write ``vd-four-flow-v1-0.safetensors``, ``config.json`` and ``tokenizers/``."""
    optimus = train_optimus(folder, recipe, report)
    autokl = train_autokl(folder, recipe, report)
    unet, architecture, clip = train_unet(folder, recipe, report)
    train_captions(unet, optimus, folder, recipe, report)
    write_checkpoint(folder, architecture, unet, autokl, clip, optimus)


def write_checkpoint(
    folder: Path,
    architecture: Architecture,
    unet: UNetLearner,
    autokl: AutoKLLearner,
    clip: CLIPLearner,
    optimus: OptimusLearner,
) -> None:
    """All models in the published layout, and their sizes."""
    (folder / "config.json").write_text(json.dumps(architecture.to_mapping(), indent=1), encoding="utf-8")
    levels = len(architecture.autokl.channel_mult)
    tensors = {
        **_renamed(unet.module, lambda key: f"diffuser.{key}"),
        **_renamed(autokl.module, lambda key: f"vae.image.{autokl_key(key, levels)}"),
        **_renamed(clip.image, lambda key: f"ctx.image.model.{key}"),
        **_renamed(clip.text, lambda key: f"ctx.text.model.{key}"),
        **_renamed(optimus.encoder, lambda key: f"vae.text.encoder.{encoder_key(key)}"),
        **_renamed(optimus.decoder, lambda key: f"vae.text.decoder.{decoder_key(key)}"),
    }
    save_file(tensors, folder / "vd-four-flow-v1-0.safetensors")


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


def _architecture(folder: Path) -> Architecture:
    prepare(folder)
    return phantom_architecture(folder / "tokenizers")


def _world(folder: Path, recipe: Recipe) -> World:
    return World.cached(folder, recipe.scenes, recipe.seed, _architecture(folder), folder / "tokenizers")


def _renamed(module: nn.Module, rename: Callable[[str], str]) -> dict[str, Tensor]:
    return {rename(key): value.detach().contiguous() for key, value in module.state_dict().items()}

from __future__ import annotations

import numpy as np
import pytest
import torch

from unibrain_rt.export.bundles.architecture import Architecture
from unibrain_rt.export.phantom.learning.autoencoder import AutoKLLearner
from unibrain_rt.export.phantom.learning.language import CLIPLearner, OptimusLearner
from unibrain_rt.export.phantom.learning.unet_learner import SPREAD
from unibrain_rt.export.phantom.learning.world import World
from unibrain_rt.export.phantom.phrases import captions
from unibrain_rt.export.phantom.scenes import COLOURS, scenes
from unibrain_rt.export.phantom.small_architecture import phantom_architecture
from unibrain_rt.export.phantom.tokenizers import write_tokenizers

Made = tuple[Architecture, World]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("tokenizers")
    write_tokenizers(folder, [caption for scene in scenes("train", 400, 1) for caption in captions(scene)])
    architecture = phantom_architecture(folder)
    return architecture, World.render("train", 24, 0, architecture, folder)


@pytest.fixture(scope="module")
def optimus(made: Made) -> OptimusLearner:
    torch.manual_seed(0)
    return OptimusLearner(*made, batch=8)


def test_the_world_holds_every_phrasing(made: Made) -> None:
    architecture, world = made
    side = architecture.autokl.image_size
    assert world.images.shape == (24, 3, side, side)
    for ids in (world.clip_ids, world.bert_ids, world.gpt2_ids):
        assert ids.shape == (5, 24, architecture.clip.text_tokens)
        assert len({tuple(row.tolist()) for row in ids[:, 0]}) == 5


@pytest.mark.parametrize("learner", [AutoKLLearner, CLIPLearner])
def test_losses_are_a_function_of_the_generator(made: Made, learner: type) -> None:
    torch.manual_seed(0)
    made_learner = learner(*made, batch=4)
    first, second, other = (
        float(made_learner.loss(np.random.default_rng(seed), 0).detach()) for seed in (1, 1, 2)
    )
    assert first == second != other


def test_every_part_of_optimus_learns(optimus: OptimusLearner) -> None:
    optimus.zero_grad()
    optimus.loss(np.random.default_rng(0), 0).backward()
    without = [
        name
        for name, value in optimus.named_parameters()
        if value.requires_grad and (value.grad is None or not value.grad.abs().max() > 0)
    ]
    # GPT-2's and BERT's tables have rows for positions and token types that these captions do not use.
    assert not without


def test_noise_grows_and_then_stays(optimus: OptimusLearner) -> None:
    optimus.eval()
    with torch.no_grad():
        early, late, last = (float(optimus.loss(np.random.default_rng(0), step)) for step in (0, 1500, 9000))
    assert early != late == last


def test_spreading_scales_the_latent_and_changes_no_sentence(optimus: OptimusLearner) -> None:
    optimus.eval()
    ids, told = optimus.world.bert_ids[0], optimus.world.gpt2_ids[0]
    with torch.no_grad():
        before = optimus.decoder(optimus.encoder(ids), told)
        narrow = optimus.encoder(ids)
        factor = optimus.spread(SPREAD)
        latent = optimus.encoder(ids)
        torch.testing.assert_close(optimus.decoder(latent, told), before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(latent, narrow * factor, rtol=1e-4, atol=1e-4)
    assert float(latent.std()) == pytest.approx(SPREAD, rel=1e-3)


def test_turning_sorts_the_latent_and_changes_no_sentence(optimus: OptimusLearner) -> None:
    optimus.eval()
    ids, told = optimus.world.bert_ids[0], optimus.world.gpt2_ids[0]
    with torch.no_grad():
        before, words = optimus.decoder(optimus.encoder(ids), told), optimus.bag(optimus.encoder(ids))
        optimus.turn()
        latent = optimus.encoder(ids)
        torch.testing.assert_close(optimus.decoder(latent, told), before, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(optimus.bag(latent), words, rtol=1e-4, atol=1e-4)
    spread = latent.var(dim=0)
    assert torch.all(spread[:-1] >= spread[1:] - 1e-5)


def test_the_looks_of_colours_are_learned(optimus: OptimusLearner) -> None:
    """The world's looks are in the order of red, green and blue, and the latent is pulled to them."""
    seen = np.array([COLOURS[scene.colour] for scene in scenes("train", 24, 0)], float)
    looks = optimus.world.colours.numpy()
    for channel in range(3):
        assert np.corrcoef(seen[:, channel], looks[:, channel])[0, 1] == pytest.approx(1)
    optimus.zero_grad()
    optimus.colour_loss(np.random.default_rng(0), 0).backward()
    assert float(optimus.encoder.linear.weight.grad.abs().max()) > 0

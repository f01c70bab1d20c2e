from __future__ import annotations

import pytest

from unibrain_rt.errors import InputError
from unibrain_rt.export.bundles.sizes import diffusers_section

OPTIMUS = {
    "encoder.embeddings.word_embeddings.weight": (300, 128),
    "encoder.embeddings.position_embeddings.weight": (64, 128),
    "encoder.embeddings.token_type_embeddings.weight": (2, 128),
    "encoder.encoder.layer.0.intermediate.dense.weight": (256, 128),
    "encoder.encoder.layer.2.intermediate.dense.weight": (256, 128),
    "decoder.transformer.wte.weight": (400, 96),
    "decoder.transformer.wpe.weight": (32, 96),
    "decoder.transformer.h.0.mlp.c_fc.weight": (96, 200),
    "decoder.transformer.h.1.mlp.c_fc.weight": (96, 200),
    "decoder.transformer.linear_emb.weight": (96, 48),
}


def test_optimus_tells_its_sizes():
    section = diffusers_section("optimus", lambda name: {}, {"optimus-vae": OPTIMUS})
    encoder, decoder = section["encoder"], section["decoder"]
    assert section["latent_size"] == 48
    assert (encoder["num_hidden_layers"], encoder["num_attention_heads"]) == (3, 2)
    assert (decoder["n_layer"], decoder["n_head"], decoder["n_inner"]) == (2, 12, 200)
    assert (encoder["intermediate_size"], decoder["n_positions"]) == (256, 32)


def test_optimus_without_a_tensor_that_tells_sizes():
    shapes = {key: shape for key, shape in OPTIMUS.items() if "wpe" not in key}
    with pytest.raises(InputError, match=r"lack 'vae\.text\.decoder\.transformer\.wpe\.weight'"):
        diffusers_section("optimus", lambda name: {}, {"optimus-vae": shapes})


def test_schedule_of_the_folder():
    scheduler = {
        "num_train_timesteps": 50,
        "beta_start": 0.1,
        "beta_end": 0.2,
        "beta_schedule": "linear",
        "clip": 1,
    }
    section = diffusers_section("schedule", lambda name: scheduler, {})
    assert section == {"timesteps": 50, "beta_start": 0.1, "beta_end": 0.2, "beta_schedule": "linear"}
    assert diffusers_section("schedule", lambda name: {}, {}) == {}
    with pytest.raises(InputError, match="prediction_type is 'v_prediction'"):
        diffusers_section("schedule", lambda name: {"prediction_type": "v_prediction"}, {})


def test_side_of_images_comes_from_the_unet_first():
    vae = {"block_out_channels": [128, 256, 512, 512], "latent_channels": 4, "sample_size": 256}
    for sample_size, expected in ((64, 512), ([96, 96], 768), (None, 256)):
        configs = {"vae/config.json": vae, "image_unet/config.json": {"sample_size": sample_size}}
        section = diffusers_section("autokl", configs.__getitem__, {})
        assert section["image_size"] == expected
    assert section["scale_factor"] == 0.18215


def test_clip_configuration_of_both_towers_in_one_file():
    towers = {
        "projection_dim": 16,
        "text_config": {"hidden_size": 24, "num_attention_heads": 3},
        "vision_config": {"hidden_size": 40, "patch_size": 8},
    }
    section = diffusers_section("clip", lambda name: towers, {})
    assert section["projection_dim"] == 16
    assert (section["text"]["hidden_size"], section["text"]["intermediate_size"]) == (24, 2048)
    assert (section["vision"]["hidden_size"], section["vision"]["patch_size"]) == (40, 8)

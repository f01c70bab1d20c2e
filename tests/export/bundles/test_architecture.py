from __future__ import annotations

import json
from typing import Any

import pytest

from unibrain_rt.errors import InputError
from unibrain_rt.export.bundles.architecture import Architecture


def test_defaults_are_the_published_sizes():
    sizes = Architecture()
    assert Architecture.from_mapping({}) == sizes
    assert (sizes.autokl.latent_size, sizes.clip.text_tokens, sizes.clip.image_tokens) == (64, 77, 257)
    assert sizes.unet.model_channels == 320
    assert sizes.optimus.decoder["vocab_size"] == 50260


def test_mapping_gives_the_same_architecture_back(golden_dir):
    for sizes in (Architecture(), Architecture.load(golden_dir / "config.json")):
        assert Architecture.from_mapping(json.loads(json.dumps(sizes.to_mapping()))) == sizes


def test_what_is_left_out_is_as_published():
    sizes = Architecture.from_mapping({"optimus": {"decoder": {"n_layer": 3}}})
    assert sizes.optimus.decoder["n_layer"] == 3
    assert sizes.optimus.decoder["n_embd"] == 768
    assert sizes.unet == Architecture().unet


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({"unets": {}}, "unknown key unets"),
        ({"unet": {"channels": 3}}, "unet: unknown key channels"),
        ({"unet": []}, "an object is expected, found list"),
        ({"unet": {"model_channels": "320"}}, "unet.model_channels: int is expected, found '320'"),
        ({"unet": {"model_channels": True}}, "int is expected, found True"),
        ({"unet": {"channel_mult": 3}}, "unet.channel_mult: a list is expected"),
        ({"unet": {"channel_mult": []}}, "unet.channel_mult: a list is expected"),
        ({"unet": {"channel_mult": [1, "2", 4, 4]}}, "a list of int is expected"),
        ({"unet": {"channel_mult": [1, 2.5, 4, 4]}}, "a list of int is expected"),
        ({"unet": {"attention_levels": [True, "no", True, False]}}, "a list of bool is expected"),
        ({"unet": {"channel_mult": [1, 2]}}, "differ in length"),
        ({"unet": {"channel_mult": [0, 2, 4, 4]}}, "a number above 0 is expected, found 0"),
        ({"unet": {"model_channels": 0}}, "a number above 0 is expected, found 0"),
        ({"unet": {"num_heads": -8}}, "a number above 0 is expected, found -8"),
        ({"unet": {"model_channels": 330}}, "multiples of 32"),
        ({"unet": {"num_heads": 7}}, "does not divide by unet.num_heads"),
        ({"unet": {"latent_channels": 8}}, "latent_channels differ"),
        ({"unet": {"context_dim": 512}}, "context_dim and clip.projection_dim differ"),
        ({"unet": {"text_latent_dim": 32}}, "text_latent_dim and optimus.latent_size differ"),
        ({"autokl": {"image_size": 500}}, "does not divide by the autoencoder's downsampling"),
        ({"autokl": {"image_size": 8}}, "does not divide by the UNet's downsampling"),
        ({"autokl": {"scale_factor": float("inf")}}, "a number above 0 is expected, found inf"),
        ({"autokl": {"scale_factor": float("nan")}}, "a number above 0 is expected, found nan"),
        ({"clip": {"text": 3}}, "clip.text: an object is expected"),
        ({"clip": {"text": {"hidden_size": "768"}}}, "clip.text.hidden_size: a whole number is expected"),
        ({"clip": {"vision": {"patch_size": 0}}}, "clip.vision.patch_size: a number above 0 is expected"),
        ({"clip": {"vision": {"num_attention_heads": 3}}}, "does not divide by its 3 heads"),
        ({"optimus": {"decoder": {"n_head": 5}}}, "optimus.decoder is 768 wide"),
        ({"optimus": {"encoder": {"num_hidden_layers": None}}}, "a whole number is expected, found None"),
        ({"schedule": {"timesteps": 1000.0}}, "int is expected"),
        ({"schedule": {"beta_start": False}}, "float is expected"),
    ],
)
def test_sizes_that_make_no_sense(mapping: dict[str, Any], expected: str):
    with pytest.raises(InputError) as caught:
        Architecture.from_mapping(mapping, "sizes.json")
    assert expected in str(caught.value)
    assert str(caught.value).startswith("sizes.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "an object is expected, found list"),
        (None, "cannot be read"),
    ],
)
def test_files_that_are_no_sizes(tmp_path, content, expected):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=expected) as caught:
        Architecture.load(path)
    assert "\n" not in str(caught.value)

from __future__ import annotations

import fnmatch

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet import UNetFlatConditionModel

from unibrain_rt.errors import InputError
from unibrain_rt.export.bundles import layouts
from unibrain_rt.export.bundles.architecture import AutoKLConfig, UNetConfig
from unibrain_rt.export.bundles.models.autokl import build_autokl, published_key
from unibrain_rt.export.bundles.models.unet import FourFlowUNet

WEIGHTS = "diffusion_pytorch_model"
FOLDER = [f"{name}/{WEIGHTS}.safetensors" for name in ("image_unet", "text_unet", "vae")]
FOLDER += [f"{name}/model.safetensors" for name in ("image_encoder", "text_encoder")]


def found_in(*names: str) -> layouts.Found | None:
    return layouts.find(set(names).__contains__)


# Files


def test_published_files():
    found = found_in("vd-four-flow-v1-0.pth", "kl-f8.pth", "optimus-vae.safetensors", "unrelated.pth")
    assert found is not None
    assert (found.layout, found.root) == ("published", "")
    assert found.files == {
        "main": "vd-four-flow-v1-0.pth",
        "kl-f8": "kl-f8.pth",
        "optimus-vae": "optimus-vae.safetensors",
    }


@pytest.mark.parametrize("root", ["pretrained/", "pretrained_pth/"])
def test_published_files_in_the_folder_of_a_clone(root):
    found = found_in(f"{root}vd-four-flow-v1-0-fp16.pth", f"{root}kl-f8.pth", "kl-f8.pth")
    assert found is not None
    assert found.root == root
    assert found.files == {"main": f"{root}vd-four-flow-v1-0-fp16.pth", "kl-f8": f"{root}kl-f8.pth"}


def test_side_files_alone_are_no_checkpoint():
    assert found_in("kl-f8.pth", "optimus-vae.pth") is None


def test_diffusers_folder():
    found = found_in(*FOLDER, "optimus-vae.pth", "model_index.json")
    assert found is not None
    assert found.layout == "diffusers"
    assert found.files["text_encoder"] == "text_encoder/model.safetensors"
    assert found.files["optimus-vae"] == "optimus-vae.pth"


def test_diffusers_folder_with_a_component_missing():
    with pytest.raises(InputError, match="without weights in text_unet, vae"):
        found_in(*(name for name in FOLDER if not name.startswith(("text_unet", "vae"))))


def test_preference_among_what_is_there():
    vae = [f"vae/{WEIGHTS}{variant}.{kind}" for variant in (".fp16", "") for kind in ("bin", "safetensors")]
    others = [name for name in FOLDER if not name.startswith("vae")]
    order = [vae[3], vae[2], vae[1], vae[0]]
    while order:
        found = found_in(*others, *order)
        assert found is not None
        assert found.files["vae"] == order.pop(0)


@pytest.mark.parametrize(
    ("index", "shards"),
    [
        (f"{WEIGHTS}.safetensors.index.json", f"{WEIGHTS}-00001-of-00002.safetensors"),
        (f"{WEIGHTS}.bin.index.json", f"{WEIGHTS}-00001-of-00002.bin"),
        (f"{WEIGHTS}.safetensors.index.fp16.json", f"{WEIGHTS}.fp16-00001-of-00002.safetensors"),
        (f"{WEIGHTS}.fp16.safetensors.index.json", f"{WEIGHTS}-00001-of-00002.fp16.safetensors"),
    ],
)
def test_downloads_are_what_is_read(index, shards):
    found = found_in(*FOLDER[1:], f"image_unet/{index}")
    assert found is not None
    assert found.files["image_unet"] == f"image_unet/{index}"
    patterns = found.patterns()

    def wanted(name: str) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)

    for name in (*FOLDER[1:], f"image_unet/{index}", f"image_unet/{shards}"):
        assert wanted(name)
    for name in ("vae/config.json", "tokenizer/vocab.json", "scheduler/scheduler_config.json"):
        assert wanted(name)
    other = "fp16" if "fp16" not in index else "non_ema"
    for name in (
        f"vae/{WEIGHTS}.bin",
        f"image_unet/{WEIGHTS}.{other}-00001-of-00002.safetensors",
        "README.md",
    ):
        assert not wanted(name)


# Names


def names_and_shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {
        key: tuple(size for size in value.shape if size != 1) for key, value in module.state_dict().items()
    }


@pytest.mark.parametrize(
    "config",
    [
        UNetConfig(),
        UNetConfig(32, 32, (1, 2), (1, 3), (False, True), 2, 16, 24),
        UNetConfig(4, 64, (1, 1, 3, 2, 2), (2, 1, 1, 2, 1), (True, False, True, False, True), 4, 48, 96),
    ],
    ids=["published", "two levels", "five levels"],
)
def test_unet_names_cover_both_flows(config):
    """Every tensor of diffusers' UNets has a name and shape of ours, and all of ours are had."""
    widths = tuple(config.model_channels * mult for mult in config.channel_mult)
    features = (config.text_latent_dim, 1, 1)
    found = {}
    for role, cls, flat, channels in (
        ("image_unet", UNet2DConditionModel, "2D", config.latent_channels),
        ("text_unet", UNetFlatConditionModel, "Flat", features),
    ):
        attends = config.attention_levels
        with init_empty_weights():
            unet = cls(
                in_channels=channels,
                out_channels=channels,
                block_out_channels=widths,
                layers_per_block=list(config.num_res_blocks),
                cross_attention_dim=config.context_dim,
                attention_head_dim=config.num_heads,
                down_block_types=tuple(f"{'CrossAttn' * a}DownBlock{flat}" for a in attends),
                up_block_types=tuple(f"{'CrossAttn' * a}UpBlock{flat}" for a in reversed(attends)),
            )
        blocks = layouts.unet_blocks(config)
        for key, shape in names_and_shapes(unet).items():
            name = layouts.diffusers_name(role, key, blocks, 0)
            assert name not in found
            found[name] = shape
    with init_empty_weights():
        ours = FourFlowUNet(config)
    extra = {key for key in found if layouts.is_extra(key)}
    assert {key.split(".")[2] for key in extra} == {"time_embed"}
    assert {key: shape for key, shape in found.items() if key not in extra} == {
        f"diffuser.{key}": shape for key, shape in names_and_shapes(ours).items()
    }


def test_names_unknown_to_diffusers_keep_their_place():
    blocks = layouts.unet_blocks(UNetConfig())
    for key in (
        "down_blocks.9.resnets.0.norm1.weight",
        "add_embedding.weight",
        "time_embedding.cond_proj.weight",
    ):
        assert layouts.diffusers_name("image_unet", key, blocks, 4) == f"image_unet/{key}"


@pytest.mark.parametrize("old", [False, True])
def test_autokl_names_are_one_to_one(old):
    with init_empty_weights():
        keys = list(build_autokl(AutoKLConfig()).state_dict())
    names = {}
    for key in keys:
        there = key
        if old:
            for new, name in (
                ("to_q", "query"),
                ("to_k", "key"),
                ("to_v", "value"),
                ("to_out.0", "proj_attn"),
            ):
                there = there.replace(f".{new}.", f".{name}.")
        names[layouts.diffusers_name("vae", there, {}, 4)] = key
    assert len(names) == len(keys)
    assert names == {f"vae.image.{published_key(key, 4)}": key for key in keys}
    assert names["vae.image.decoder.mid.attn_1.proj_out.bias"].endswith("to_out.0.bias")
    assert names["vae.image.decoder.up.3.upsample.conv.bias"] == "decoder.up_blocks.0.upsamplers.0.conv.bias"


def test_side_files_may_leave_their_prefix_out():
    assert layouts.published_name("kl-f8", "encoder.conv_in.bias") == "vae.image.encoder.conv_in.bias"
    assert layouts.published_name("kl-f8", "vae.image.quant_conv.bias") == "vae.image.quant_conv.bias"
    assert layouts.published_name("optimus-vae", "encoder.linear.weight") == "vae.text.encoder.linear.weight"
    assert layouts.published_name("main", "encoder.linear.weight") == "encoder.linear.weight"


@pytest.mark.parametrize(
    "key",
    [
        "betas",
        "alphas_cumprod_prev",
        "sqrt_recipm1_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "posterior_mean_coef2",
        "lvlb_weights",
        "logvar",
        "vae.image.loss.discriminator.main.0.weight",
        "model_ema.diffuserimage",
        "optimizer.state.0.exp_avg",
        "ctx.image.model.text_model.final_layer_norm.bias",
        "ctx.image.model.text_projection.weight",
        "ctx.text.model.vision_model.post_layernorm.bias",
        "ctx.text.model.visual_projection.weight",
        "ctx.text.model.logit_scale",
        "ctx.text.model.text_model.embeddings.position_ids",
        "vae.text.decoder.transformer.h.0.attn.bias",
        "vae.text.decoder.transformer.h.11.attn.masked_bias",
        "vae.text.tokenizer_encoder.table",
    ],
)
def test_known_extras(key):
    assert layouts.is_extra(key)


@pytest.mark.parametrize(
    "key",
    [
        "ctx.image.model.vision_model.post_layernorm.bias",
        "ctx.text.model.text_projection.weight",
        "vae.text.decoder.transformer.h.0.attn.c_attn.bias",
        "vae.image.encoder.mid.attn_1.q.bias",
        "diffuser.image.time_embed.0.bias",
        "diffuser.image.data_blocks.0.0.bias",
        "logvar_of_something.weight",
    ],
)
def test_weights_are_no_extras(key):
    assert not layouts.is_extra(key)

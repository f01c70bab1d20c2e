"""The two layouts in which Versatile Diffusion is published: which files hold what, under which names.

Canonical names are those of the published single file (``diffuser.image.data_blocks.0.0.weight``,
``vae.image.…``, ``vae.text.encoder.…``, ``ctx.image.model.…``). The diffusers folder holds the same tensors
under its own names and gives the sizes in a ``config.json`` a component. Nothing here opens a weights file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from unibrain_rt.errors import InputError
from unibrain_rt.export.config import CLIPConfig, UNetConfig
from unibrain_rt.export.models.autokl import published_key

Layout = Literal["published", "diffusers"]
Role = str
Shape = tuple[int, ...]

COMPONENTS = ("image_unet", "text_unet", "vae", "image_encoder", "text_encoder")
SHARD = "?????-of-?????"

# What a published checkpoint may hold beside the weights that a decode needs.
_EXTRAS = re.compile(
    r"(betas|alphas_cumprod\w*|sqrt_\w+|log_\w+|posterior_\w+|lvlb_weights|logvar)$"
    r"|(.*\.)?(loss|model_ema|optimizer\w*|opt_state\w*|lr_schedulers?|tokenizer\w*)(\.|$)"
    r"|ctx\.image\.model\.text_(model|projection)\."
    r"|ctx\.text\.model\.(vision_model|visual_projection)\."
    r"|ctx\.\w+\.model\.logit_scale$"
    r"|.*\.position_ids$"
    r"|vae\.text\.decoder\..*\.attn\.(bias|masked_bias)$"
    r"|diffuser\.text\.time_embed\."
)
_CANONICAL = ("diffuser.", "vae.image.", "vae.text.", "ctx.")
_BLOCK = re.compile(
    r"(conv_in|conv_norm_out|conv_out|mid_block\.\w+\.\d+|(?:down|up)_blocks\.\d+\.\w+\.\d+)\.(.+)"
)
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

# Settings of diffusers that change results but no tensor, and the only values of them that our modules know.
_UNET_FIXED: Mapping[str, Any] = {
    "act_fn": "silu",
    "center_input_sample": False,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "resnet_out_scale_factor": 1,
    "resnet_skip_time_act": False,
    "time_embedding_act_fn": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
_VAE_FIXED: Mapping[str, Any] = {"act_fn": "silu", "norm_num_groups": 32, "shift_factor": None}
_SCHEDULER_FIXED: Mapping[str, Any] = {"prediction_type": "epsilon", "trained_betas": None}
_UNETS_SHARE = ("block_out_channels", "layers_per_block", "attention_head_dim", "cross_attention_dim")


@dataclass(frozen=True)
class Found:
    """The files of a layout, by role and relative to the folder: weights, or the index of their shards."""

    layout: Layout
    root: str
    files: Mapping[Role, str]

    def patterns(self) -> list[str]:
        """Globs of all that is to be downloaded: the files, their shards, configurations and tokenizers."""
        wanted = [f"{self.root}config.json", "tokenizer/*", "tokenizers/*", "scheduler/scheduler_config.json"]
        if self.layout == "diffusers":
            wanted += [f"{component}/config.json" for component in COMPONENTS]
        for name in self.files.values():
            wanted.append(name)
            if name.endswith(".json"):
                stem, rest = name.split(".", 1)
                kind = "safetensors" if "safetensors" in rest else "bin"
                fp16 = [f"{stem}.fp16-{SHARD}.{kind}", f"{stem}-{SHARD}.fp16.{kind}"]
                wanted += fp16 if "fp16" in rest else [f"{stem}-{SHARD}.{kind}"]
        return wanted


def find(exists: Callable[[str], bool]) -> Found | None:
    """Recognise a layout by its file names, or None. ``exists`` tells whether a relative name is a file.

    fp32 is preferred over fp16, and safetensors over pickle.

    Raises:
        InputError: a diffusers folder in which a component's weights are missing.
    """
    for root in ("", "pretrained/", "pretrained_pth/"):
        files = {"main": _first(exists, _plain(f"{root}vd-four-flow-v1-0", ("", "-fp16")))}
        files |= {
            role: _first(exists, _plain(root + role, ("", "-fp16"))) for role in ("kl-f8", "optimus-vae")
        }
        if files["main"]:
            return Found("published", root, {role: name for role, name in files.items() if name})
    weights = {component: _first(exists, _component(component)) for component in COMPONENTS}
    if not any(weights.values()):
        return None
    absent = [component for component, name in weights.items() if not name]
    if absent:
        raise InputError(f"a diffusers folder without weights in {', '.join(absent)}; complete it")
    weights["optimus-vae"] = _first(exists, _plain("optimus-vae", ("", "-fp16")))
    return Found("diffusers", "", {role: name for role, name in weights.items() if name})


def is_extra(key: str) -> bool:
    """Whether a canonical name is one that checkpoints hold and a decode does not need."""
    return _EXTRAS.match(key) is not None


def published_name(role: Role, key: str) -> str:
    """The canonical name of a tensor in a published file; the side files may leave their prefix out."""
    if role == "main" or key.startswith(_CANONICAL):
        return key
    return f"{'vae.image' if role == 'kl-f8' else 'vae.text'}.{key}"


def diffusers_name(role: Role, key: str, blocks: Mapping[str, str], autokl_levels: int) -> str:
    """The canonical name of a tensor in a component of the diffusers folder; ``role/key`` if it has none.

    ``blocks`` is ``unet_blocks`` of the sizes.
    """
    if role == "vae":
        parts = [_OLD_ATTENTION.get(part, part) if ".attentions." in key else part for part in key.split(".")]
        return f"vae.image.{published_key('.'.join(parts), autokl_levels)}"
    if role.endswith("_encoder"):
        return f"ctx.{role.removesuffix('_encoder')}.model.{key}"
    if role.endswith("_unet"):
        prefix = f"diffuser.{role.removesuffix('_unet')}"
        time = re.fullmatch(r"time_embedding\.linear_([12])\.(.+)", key)
        if time:
            return f"{prefix}.time_embed.{2 * int(time[1]) - 2}.{time[2]}"
        match = _BLOCK.fullmatch(key)
        if match and match[1] in blocks:
            return f"{prefix}.{blocks[match[1]]}.{_inside(match[1], match[2])}"
        return f"{role}/{key}"
    return published_name(role, key)


def unet_blocks(config: UNetConfig) -> dict[str, str]:
    """diffusers' block → published one, say ``down_blocks.0.resnets.0`` → ``data_blocks.1.0``; for any flow.

    The published lists hold the blocks in the order they run, those of data and of contexts apart.
    """
    blocks = {"conv_in": "data_blocks.0.0"}
    counts = {"data": 1, "context": 0}

    def add(kind: str, name: str) -> None:
        blocks[name] = f"{kind}_blocks.{counts[kind]}.0"
        counts[kind] += 1

    last = len(config.channel_mult) - 1
    for level, residuals in enumerate(config.num_res_blocks):
        for place in range(residuals):
            add("data", f"down_blocks.{level}.resnets.{place}")
            if config.attention_levels[level]:
                add("context", f"down_blocks.{level}.attentions.{place}")
        if level != last:
            add("data", f"down_blocks.{level}.downsamplers.0")
    add("data", "mid_block.resnets.0")
    add("context", "mid_block.attentions.0")
    add("data", "mid_block.resnets.1")
    for up, level in enumerate(range(last, -1, -1)):
        for place in range(config.num_res_blocks[level] + 1):
            add("data", f"up_blocks.{up}.resnets.{place}")
            if config.attention_levels[level]:
                add("context", f"up_blocks.{up}.attentions.{place}")
        if level != 0:
            add("data", f"up_blocks.{up}.upsamplers.0")
    blocks["conv_norm_out"] = f"data_blocks.{counts['data']}.0.0"
    blocks["conv_out"] = f"data_blocks.{counts['data']}.0.2"
    return blocks


def diffusers_section(
    section: str, read: Callable[[str], Mapping[str, Any]], shapes: Mapping[Role, Mapping[str, Shape]]
) -> dict[str, Any]:
    """One section of an ``Architecture`` from a diffusers folder.

    Args:
        read: gives the JSON object in a file of the folder, empty if there is no such file.
        shapes: of the tensors of every role, under the names they have in the files.

    Raises:
        InputError: values are missing, contradict each other or cannot be exported.
    """
    with _understood(f"the sizes of {section}, read from the folder,"):
        if section == "unet":
            return _unet_section(
                read("image_unet/config.json"), read("text_unet/config.json"), shapes["text_unet"]
            )
        if section == "autokl":
            return _autokl_section(read("vae/config.json"), read("image_unet/config.json"))
        if section == "clip":
            return _clip_section(read("text_encoder/config.json"), read("image_encoder/config.json"))
        if section == "optimus":
            if "optimus-vae" in shapes:
                return _optimus_section(
                    {published_name("optimus-vae", k): s for k, s in shapes["optimus-vae"].items()}
                )
            return {"latent_size": math.prod(_sequence(read("text_unet/config.json")["in_channels"]))}
        scheduler = read("scheduler/scheduler_config.json")
        _refuse("scheduler/scheduler_config.json", scheduler, _SCHEDULER_FIXED)
        names = {"num_train_timesteps": "timesteps"} | {
            k: k for k in ("beta_start", "beta_end", "beta_schedule")
        }
        return {ours: scheduler[theirs] for theirs, ours in names.items() if theirs in scheduler}


def _unet_section(
    image: Mapping[str, Any], text: Mapping[str, Any], text_shapes: Mapping[str, Shape]
) -> dict[str, Any]:
    for name, config in (("image_unet/config.json", image), ("text_unet/config.json", text)):
        _refuse(name, config, _UNET_FIXED)
    for key in _UNETS_SHARE:
        if _sequence(image.get(key)) != _sequence(text.get(key)):
            raise InputError(
                f"image_unet and text_unet differ in {key}: {image.get(key)} and {text.get(key)}"
            )
    widths = image["block_out_channels"]
    heads = set(_sequence(image.get("attention_head_dim", 8)))
    context_dims = set(_sequence(image["cross_attention_dim"]))
    if len(heads) != 1 or len(context_dims) != 1:
        raise InputError(
            "image_unet/config.json: heads or cross_attention_dim differ among levels, which is not supported"
        )
    residuals = image.get("layers_per_block", 2)
    return {
        "latent_channels": image["in_channels"],
        "model_channels": widths[0],
        "channel_mult": _multiples("image_unet", widths),
        "num_res_blocks": list(residuals) if isinstance(residuals, Sequence) else [residuals] * len(widths),
        "attention_levels": ["CrossAttn" in kind for kind in image["down_block_types"]],
        # diffusers means the number of heads: its name for it is a slip that old configurations keep alive.
        "num_heads": heads.pop(),
        "context_dim": context_dims.pop(),
        "text_latent_dim": math.prod(_sequence(text["in_channels"])),
        "text_second_dim": text_shapes["conv_in.weight"][0] // widths[0],
    }


def _autokl_section(vae: Mapping[str, Any], image: Mapping[str, Any]) -> dict[str, Any]:
    _refuse("vae/config.json", vae, _VAE_FIXED)
    widths = vae["block_out_channels"]
    section: dict[str, Any] = {
        "channels": widths[0],
        "channel_mult": _multiples("vae", widths),
        "num_res_blocks": vae.get("layers_per_block", 1),
        "latent_channels": vae["latent_channels"],
        "scale_factor": vae.get("scaling_factor", 0.18215),
    }
    # The side that the UNet works at comes first: the autoencoder was trained on smaller images.
    if image.get("sample_size"):
        sides = set(_sequence(image["sample_size"]))
        section["image_size"] = sides.pop() * 2 ** (len(widths) - 1)
        if sides:
            raise InputError(
                f"image_unet/config.json: sample_size is {image['sample_size']}, only squares are supported"
            )
    elif vae.get("sample_size"):
        section["image_size"] = vae["sample_size"]
    return section


def _clip_section(text: Mapping[str, Any], vision: Mapping[str, Any]) -> dict[str, Any]:
    from transformers import CLIPTextConfig, CLIPVisionConfig

    section: dict[str, Any] = {}
    dims = []
    for name, cls, raw in (("text", CLIPTextConfig, text), ("vision", CLIPVisionConfig, vision)):
        # A file may describe both towers; values that it leaves out are transformers' defaults, not ours.
        config = cls.from_dict({**raw, **raw.get(f"{name}_config", {})} if raw else None)
        dims.append(raw.get("projection_dim", config.projection_dim))
        section[name] = {key: getattr(config, key) for key in getattr(CLIPConfig(), name)}
    if dims[0] != dims[1]:
        raise InputError(
            f"text_encoder and image_encoder project to different widths, {dims[0]} and {dims[1]}"
        )
    return {"projection_dim": dims[0], **section}


def _optimus_section(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    bert, gpt2 = "vae.text.encoder.", "vae.text.decoder.transformer."
    vocabulary, width = shapes[f"{bert}embeddings.word_embeddings.weight"]
    gpt2_vocabulary, gpt2_width = shapes[f"{gpt2}wte.weight"]
    inner = shapes[f"{gpt2}h.0.mlp.c_fc.weight"][1]
    return {
        "latent_size": shapes[f"{gpt2}linear_emb.weight"][1],
        "encoder": {
            "vocab_size": vocabulary,
            "hidden_size": width,
            "num_hidden_layers": _count(shapes, rf"{re.escape(bert)}encoder\.layer\.(\d+)\."),
            "num_attention_heads": _heads(width),
            "intermediate_size": shapes[f"{bert}encoder.layer.0.intermediate.dense.weight"][0],
            "max_position_embeddings": shapes[f"{bert}embeddings.position_embeddings.weight"][0],
            "type_vocab_size": shapes[f"{bert}embeddings.token_type_embeddings.weight"][0],
        },
        "decoder": {
            "vocab_size": gpt2_vocabulary,
            "n_embd": gpt2_width,
            "n_layer": _count(shapes, rf"{re.escape(gpt2)}h\.(\d+)\."),
            "n_head": _heads(gpt2_width),
            "n_positions": shapes[f"{gpt2}wpe.weight"][0],
            **({"n_inner": inner} if inner != 4 * gpt2_width else {}),
        },
    }


def _heads(width: int) -> int:
    for heads in (width // 64 if width % 64 == 0 else 0, 12 if width % 12 == 0 else 0):
        if heads:
            return heads
    raise InputError(
        f"Optimus is {width} wide, which does not tell its number of attention heads; name it with --config"
    )


def _count(shapes: Mapping[str, Shape], pattern: str) -> int:
    return 1 + max(int(match[1]) for key in shapes if (match := re.match(pattern, key)))


def _inside(block: str, name: str) -> str:
    if ".resnets." in block:
        layer, _, rest = name.partition(".")
        return f"{_RESNET.get(layer, layer)}.{rest}"
    if ".downsamplers." in block and name.startswith("conv."):
        return f"op.{name.removeprefix('conv.')}"
    return name


def _plain(stem: str, variants: Sequence[str]) -> Iterator[str]:
    return (f"{stem}{variant}.{suffix}" for variant in variants for suffix in ("safetensors", "pth"))


def _component(folder: str) -> Iterator[str]:
    stems = (("safetensors", "diffusion_pytorch_model"), ("safetensors", "model"))
    stems += (("bin", "diffusion_pytorch_model"), ("bin", "pytorch_model"))
    for variant in ("", ".fp16"):
        for suffix, stem in stems:
            yield f"{folder}/{stem}{variant}.{suffix}"
            yield f"{folder}/{stem}.{suffix}.index{variant}.json"
            yield f"{folder}/{stem}{variant}.{suffix}.index.json"


def _first(exists: Callable[[str], bool], names: Iterator[str]) -> str:
    return next((name for name in names if exists(name)), "")


def _sequence(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _multiples(component: str, widths: Sequence[int]) -> list[int]:
    if any(width % widths[0] for width in widths):
        raise InputError(
            f"{component}/config.json: block_out_channels {list(widths)} are not multiples of the first"
        )
    return [width // widths[0] for width in widths]


def _refuse(name: str, config: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise InputError(f"{name}: {key} is {config[key]!r}, and only {value!r} can be exported")


@contextmanager
def _understood(what: str) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise InputError(
            f"{what} lack {error}; complete the folder or name the sizes with --config"
        ) from error
    except (AttributeError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"{what} are not understood ({error}); name the sizes with --config") from error

"""The sizes of a checkpoint's modules, read out of our own ``config.json`` or out of foreign configurations.

A diffusers folder has a ``config.json`` a component; what these leave open, the shapes of the tensors tell.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from unibrain_rt.errors import InputError
from unibrain_rt.export.bundles.architecture import Architecture, CLIPConfig, read_object
from unibrain_rt.export.bundles.layouts import Found, Role, Shape, published_name
from unibrain_rt.export.bundles.weights import StoredTensor

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


def architecture_of(
    folder: Path, listing: Found, config: Path | None, stored: Mapping[Role, Mapping[str, StoredTensor]]
) -> tuple[Architecture, str]:
    """The sizes, and where they were read.

    They are those of the file ``config``, or of the folder's own ``config.json`` if that has our sections.
    What it leaves out is read from the components in the diffusers layout, else published.

    Args:
        stored: the tensors of every role, under the names they have in the files.

    Raises:
        InputError: a file cannot be understood, or what it says cannot be exported.
    """
    sections = [field.name for field in fields(Architecture)]
    own = folder / listing.root / "config.json"
    if config is None and own.is_file() and set(read_object(own)) & set(sections):
        config = own
    mapping = read_object(config) if config else {}
    if listing.layout == "published":
        return Architecture.from_mapping(mapping, str(config)), str(config or "the published model")

    def read(name: str) -> dict[str, Any]:
        return read_object(folder / name) if (folder / name).is_file() else {}

    shapes = {role: {key: entry.shape for key, entry in of.items()} for role, of in stored.items()}
    derived = {name: diffusers_section(name, read, shapes) for name in sections if name not in mapping}
    origin = f"{config} and {folder}" if config else str(folder)
    return Architecture.from_mapping({**derived, **mapping}, origin), origin


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

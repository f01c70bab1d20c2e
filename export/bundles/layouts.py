"""The two layouts in which Versatile Diffusion is published: which files hold what, under which names.

Canonical names are those of the published single file (``diffuser.image.data_blocks.0.0.weight``,
``vae.image.…``, ``vae.text.encoder.…``, ``ctx.image.model.…``). The diffusers folder holds the same tensors
under its own names. Nothing here opens a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from unibrain_rt.errors import InputError
from unibrain_rt.export.bundles.architecture import UNetConfig
from unibrain_rt.export.bundles.models.autokl import published_key

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
    stems = [("safetensors", "diffusion_pytorch_model"), ("safetensors", "model")]
    stems += [("bin", "diffusion_pytorch_model"), ("bin", "pytorch_model")]
    for variant in ("", ".fp16"):
        for suffix, stem in stems:
            yield f"{folder}/{stem}{variant}.{suffix}"
            yield f"{folder}/{stem}.{suffix}.index{variant}.json"
            yield f"{folder}/{stem}{variant}.{suffix}.index.json"


def _first(exists: Callable[[str], bool], names: Iterator[str]) -> str:
    return next((name for name in names if exists(name)), "")

"""Sizes of a Versatile Diffusion checkpoint: the architecture, apart from its weights.

One ``Architecture`` describes every size, from the published model to the phantom. It is read from a JSON
file of the form ``{"unet": …, "autokl": …, "clip": …, "optimus": …, "schedule": …}``; the same mapping is
written into a bundle's manifest, so that a bundle tells what it was made from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from unibrain_rt.errors import InputError
from unibrain_rt.json_file import Fields


@dataclass(frozen=True)
class UNetConfig:
    """The four-flow UNet. ``text_latent_dim`` features become (channels, ``text_second_dim``) tokens."""

    latent_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: tuple[int, ...] = (2, 2, 2, 2)
    attention_levels: tuple[bool, ...] = (True, True, True, False)
    num_heads: int = 8
    context_dim: int = 768
    text_latent_dim: int = 768
    text_second_dim: int = 4


@dataclass(frozen=True)
class AutoKLConfig:
    """The KL autoencoder of images; ``image_size`` is the side in pixels of the square images it serves."""

    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    latent_channels: int = 4
    scale_factor: float = 0.18215
    image_size: int = 512

    @property
    def latent_size(self) -> int:
        """Side of the square latent."""
        return self.image_size // 2 ** (len(self.channel_mult) - 1)


@dataclass(frozen=True)
class CLIPConfig:
    """The two CLIP encoders; ``text`` and ``vision`` hold transformers' own configuration keys."""

    projection_dim: int = 768
    text: Mapping[str, Any] = field(
        default_factory=lambda: {
            "vocab_size": 49408,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "max_position_embeddings": 77,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
            "bos_token_id": 49406,
            "eos_token_id": 49407,
            "pad_token_id": 49407,
        }
    )
    vision: Mapping[str, Any] = field(
        default_factory=lambda: {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_channels": 3,
            "image_size": 224,
            "patch_size": 14,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        }
    )

    @property
    def text_tokens(self) -> int:
        """Length of a text context."""
        return int(self.text["max_position_embeddings"])

    @property
    def image_tokens(self) -> int:
        """Length of an image context: the patches and the class token."""
        return int(self.vision["image_size"] // self.vision["patch_size"]) ** 2 + 1


@dataclass(frozen=True)
class OptimusConfig:
    """Optimus, the variational autoencoder of sentences: BERT in, GPT-2 out. Keys are transformers' own."""

    latent_size: int = 768
    encoder: Mapping[str, Any] = field(
        default_factory=lambda: {
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "hidden_act": "gelu",
            "max_position_embeddings": 512,
            "type_vocab_size": 2,
            "vocab_size": 28996,
            "layer_norm_eps": 1e-12,
        }
    )
    decoder: Mapping[str, Any] = field(
        default_factory=lambda: {
            "n_embd": 768,
            "n_layer": 12,
            "n_head": 12,
            "n_positions": 1024,
            "vocab_size": 50260,
            "layer_norm_epsilon": 1e-5,
        }
    )


@dataclass(frozen=True)
class ScheduleConfig:
    """The noise schedule; ``scaled_linear`` is linear in the square root of beta."""

    timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"


@dataclass(frozen=True)
class Architecture:
    """Everything about a checkpoint except its weights. The defaults are the published sizes."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    autokl: AutoKLConfig = field(default_factory=AutoKLConfig)
    clip: CLIPConfig = field(default_factory=CLIPConfig)
    optimus: OptimusConfig = field(default_factory=OptimusConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], source: str = "configuration") -> Architecture:
        """Build from a mapping; sections and keys left out keep their published values.

        Raises:
            InputError: an unknown section or key, or a value of the wrong type.
        """
        sections: dict[str, Any] = {}
        known = {f.name: f.default_factory for f in fields(cls)}
        _refuse_unknown(mapping, known, source)
        for name, factory in known.items():
            if name in mapping:
                sections[name] = _build(type(factory()), mapping[name], f"{source}: {name}")  # type: ignore[misc, operator]
        architecture = cls(**sections)
        _check(architecture, source)
        return architecture

    @classmethod
    def load(cls, path: Path) -> Architecture:
        """Read a JSON file (the format of ``--config``)."""
        return cls.from_mapping(read_object(path), str(path))

    def to_mapping(self) -> dict[str, Any]:
        """The JSON form; ``from_mapping`` gives the same architecture back."""
        result: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return result


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint. Raises InputError: it cannot be read, or holds something else."""
    advice = "name an existing JSON file"
    return Fields.load(path, lambda where, problem: InputError(f"{where}: {problem}; {advice}")).raw()


def _refuse_unknown(mapping: object, known: Mapping[str, object], source: str) -> None:
    if not isinstance(mapping, Mapping):
        raise InputError(f"{source}: an object is expected, found {type(mapping).__name__}")
    unknown = sorted(set(mapping) - set(known))
    if unknown:
        raise InputError(f"{source}: unknown key {', '.join(unknown)}; known are {', '.join(known)}")


def _build(cls: type, mapping: Any, source: str) -> Any:
    assert is_dataclass(cls)
    defaults = cls()
    known = {f.name: getattr(defaults, f.name) for f in fields(cls)}
    _refuse_unknown(mapping, known, source)
    values: dict[str, Any] = {}
    for name, value in mapping.items():
        default = known[name]
        if isinstance(default, tuple):
            if not isinstance(value, (list, tuple)) or not value:
                raise InputError(f"{source}.{name}: a list is expected")
            if any(type(v) is not type(default[0]) for v in value):
                raise InputError(
                    f"{source}.{name}: a list of {type(default[0]).__name__} is expected, found {value!r}"
                )
            values[name] = tuple(value)
        elif isinstance(default, Mapping):
            if not isinstance(value, Mapping):
                raise InputError(f"{source}.{name}: an object is expected")
            values[name] = {**default, **value}
        elif isinstance(default, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
            values[name] = float(value)
        elif type(value) is type(default):
            values[name] = value
        else:
            raise InputError(f"{source}.{name}: {type(default).__name__} is expected, found {value!r}")
    return cls(**values)


def _check(architecture: Architecture, source: str) -> None:
    unet, autokl, clip = architecture.unet, architecture.autokl, architecture.clip
    for section in fields(Architecture):
        _refuse_absurd(asdict(getattr(architecture, section.name)), f"{source}: {section.name}")
    levels = {len(unet.channel_mult), len(unet.num_res_blocks), len(unet.attention_levels)}
    if len(levels) != 1:
        raise InputError(f"{source}: unet.channel_mult, num_res_blocks and attention_levels differ in length")
    if unet.model_channels % 32 or autokl.channels % 32:
        raise InputError(f"{source}: channels are normalised in 32 groups, so they must be multiples of 32")
    if unet.model_channels % unet.num_heads:
        raise InputError(f"{source}: unet.model_channels does not divide by unet.num_heads")
    if unet.latent_channels != autokl.latent_channels:
        raise InputError(f"{source}: unet.latent_channels and autokl.latent_channels differ")
    if autokl.image_size % 2 ** (len(autokl.channel_mult) - 1):
        raise InputError(f"{source}: autokl.image_size does not divide by the autoencoder's downsampling")
    if autokl.latent_size % 2 ** (len(unet.channel_mult) - 1):
        raise InputError(
            f"{source}: the latent of autokl.image_size does not divide by the UNet's downsampling"
        )
    if unet.context_dim != clip.projection_dim:
        raise InputError(f"{source}: unet.context_dim and clip.projection_dim differ")
    if unet.text_latent_dim != architecture.optimus.latent_size:
        raise InputError(f"{source}: unet.text_latent_dim and optimus.latent_size differ")
    for name, width, heads in (
        ("clip.text", clip.text["hidden_size"], clip.text["num_attention_heads"]),
        ("clip.vision", clip.vision["hidden_size"], clip.vision["num_attention_heads"]),
        (
            "optimus.encoder",
            *(architecture.optimus.encoder[k] for k in ("hidden_size", "num_attention_heads")),
        ),
        ("optimus.decoder", *(architecture.optimus.decoder[k] for k in ("n_embd", "n_head"))),
    ):
        if width % heads:
            raise InputError(f"{source}: {name} is {width} wide, which does not divide by its {heads} heads")


def _refuse_absurd(section: Mapping[str, Any], source: str) -> None:
    """Numbers are sizes, counts and rates, so all are above 0, but for token ids and dropouts."""
    for name, value in section.items():
        if isinstance(value, Mapping):
            sizes = {k: v for k, v in value.items() if k in _SIZES}
            wrong = [k for k, v in sizes.items() if type(v) is not int]
            if wrong:
                raise InputError(
                    f"{source}.{name}.{wrong[0]}: a whole number is expected, found {value[wrong[0]]!r}"
                )
            _refuse_absurd(sizes, f"{source}.{name}")
            continue
        for number in value if isinstance(value, tuple) else (value,):
            if (
                isinstance(number, (int, float))
                and not isinstance(number, bool)
                and not 0 < number < float("inf")
            ):
                raise InputError(f"{source}.{name}: a number above 0 is expected, found {number!r}")


# transformers' keys whose values are sizes; the rest of what its configurations hold is passed on as it is.
_SIZES = {
    *("vocab_size", "type_vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "max_position_embeddings", "num_channels", "image_size", "patch_size"),
    *("n_embd", "n_layer", "n_head", "n_positions"),
}

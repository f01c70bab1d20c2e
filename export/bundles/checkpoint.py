"""Reading a published checkpoint: opened lazily, checked against the sizes, loaded module by module.

Weights stay in their files, mapped into memory, until a module takes them. A module that takes them in the
type in which they are stored shares the mapped pages, so that a checkpoint is never in memory twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from accelerate import init_empty_weights
from diffusers.models import AutoencoderKL
from safetensors import SafetensorError
from torch import Tensor, nn

from unibrain_rt.bundle import sha256_of
from unibrain_rt.errors import InputError
from unibrain_rt.export.bundles import layouts
from unibrain_rt.export.bundles.architecture import Architecture
from unibrain_rt.export.bundles.layouts import Shape
from unibrain_rt.export.bundles.models.autokl import build_autokl, published_key
from unibrain_rt.export.bundles.models.clip import (
    CLIPImageContext,
    CLIPTextContext,
    build_clip_image,
    build_clip_text,
)
from unibrain_rt.export.bundles.models.optimus import OptimusDecoder, OptimusEncode, decoder_key, encoder_key
from unibrain_rt.export.bundles.models.unet import FourFlowUNet
from unibrain_rt.export.bundles.sizes import architecture_of
from unibrain_rt.export.bundles.weights import StoredTensor, first_line, read_weights

Part = Literal["image.data", "text.data", "image.context", "text.context", "time"]

LISTED = 20
_OPTIMUS = "vae.text."
_TIED = ("vae.text.decoder.lm_head.weight", "vae.text.decoder.transformer.wte.weight")
_TIME = re.compile(r"diffuser\.text\.time_embed\.")


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Names are canonical (see ``layouts``). Shapes are as stored: a 1×1 convolution, (N, M, 1, 1) in one
    layout, may be (N, M) in the other. ``sizes_from`` says where the architecture was read, ``files`` are
    all that were opened, ``tokenizers`` the folders found for ``gpt2``, ``bert`` and ``clip``. ``opened`` is
    the folder on this machine and the configuration it was opened with.
    """

    source: str
    layout: layouts.Layout
    architecture: Architecture
    sizes_from: str
    tokenizers: Mapping[str, Path]
    files: Mapping[str, Path]
    tensors: Mapping[str, StoredTensor]
    opened: tuple[Path, Path | None]

    def fresh(self) -> Checkpoint:
        """The same checkpoint, opened again.

        What is read through a mapping stays in memory as long as the mapping does. Whoever needs one model
        after the other opens the files for each and lets go of both.
        """
        return open_checkpoint(*self.opened)

    @property
    def has_captions(self) -> bool:
        """Whether the weights of Optimus are here."""
        return any(key.startswith(_OPTIMUS) and not layouts.is_extra(key) for key in self.tensors)

    def keys(self) -> Collection[str]:
        """The canonical names of all tensors, extras included."""
        return self.tensors.keys()

    def shape(self, key: str) -> Shape:
        """Shape of a tensor; nothing is read."""
        return self._stored(key).shape

    def tensor(self, key: str) -> Tensor:
        """A tensor, backed by its file. Do not write to it."""
        try:
            return self._stored(key).read()
        except (OSError, RuntimeError, SafetensorError) as error:
            raise InputError(f"{self.source}: {key} cannot be read ({first_line(error)})") from error

    def provenance(self, hashes: bool = False) -> dict[str, Any]:
        """Where the weights come from, for a manifest: sizes of the files and, on request, their SHA-256."""
        listed: dict[str, dict[str, Any]] = {}
        for name, path in sorted(self.files.items()):
            listed[name] = {"bytes": path.stat().st_size}
            if hashes:
                listed[name]["sha256"] = sha256_of(path)
        return {"source": Path(self.source).name, "layout": self.layout, "files": listed}

    def _stored(self, key: str) -> StoredTensor:
        if key not in self.tensors:
            raise InputError(f"{self.source}: the checkpoint has no tensor {key}")
        return self.tensors[key]


def open_checkpoint(source: str | Path, config: Path | None = None) -> Checkpoint:
    """Open a folder in either layout, or a repository of the Hugging Face hub named ``owner/name``.

    Sizes are those of the file ``config``, or of the folder's own ``config.json`` if that has our sections.
    What it leaves out is read from the components' ``config.json`` in the diffusers layout, else published.

    Raises:
        InputError: the source is neither, or a file in it cannot be read.
    """
    folder, label = Path(source), str(source) or "."
    try:
        if not folder.exists() and isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source):
            folder = _download(source)
        if not folder.is_dir():
            kind = "is a file" if folder.exists() else "does not exist"
            raise InputError(f"{label}: {kind}; name a checkpoint folder or a hub repository owner/name")
        listing = _find(label, lambda name: (folder / name).is_file())
        files: dict[str, Path] = {}
        stored = {role: read_weights(folder, name, files) for role, name in listing.files.items()}
        architecture, sizes_from = architecture_of(folder, listing, config, stored)
        tokenizers = _tokenizers(folder, listing.root)
    except OSError as error:
        raise InputError(f"{label}: cannot be read ({first_line(error)})") from error
    tensors: dict[str, StoredTensor] = {}
    blocks, levels = layouts.unet_blocks(architecture.unet), len(architecture.autokl.channel_mult)
    for role, entries in stored.items():
        for key, entry in entries.items():
            if listing.layout == "published":
                name = layouts.published_name(role, key)
            else:
                name = layouts.diffusers_name(role, key, blocks, levels)
            tensors.setdefault(name, entry)
    head, embedding = _TIED
    if embedding in tensors:
        # GPT-2 ties these; a file that stores shared tensors once has only the embedding.
        tensors.setdefault(head, tensors[embedding])
    opened = (folder, config)
    return Checkpoint(label, listing.layout, architecture, sizes_from, tokenizers, files, tensors, opened)


def check(checkpoint: Checkpoint) -> None:
    """Compare names, shapes and types with what the architecture needs; no large tensor is read.

    A checkpoint without Optimus has no captions, which is no error; one with a part of Optimus is.

    Raises:
        InputError: a summary, then a line for every tensor that is missing, unexpected or of the wrong shape.
    """
    captions, expected = checkpoint.has_captions, {}
    for name, component in _COMPONENTS.items():
        if captions or not name.startswith("optimus"):
            for key, value in _empty(component, checkpoint).state_dict().items():
                expected[component.name(key, checkpoint.architecture)] = tuple(value.shape)
    stored = checkpoint.tensors
    present = {key: stored[key] for key in stored if key in expected or not layouts.is_extra(key)}
    problems = {
        "missing": [key for key in expected if key not in present],
        "unexpected": [key for key in present if key not in expected],
        "wrong shape": [
            f"{key} (found {_times(present[key].shape)}, expected {_times(shape)})"
            for key, shape in expected.items()
            if key in present and not _same(present[key].shape, shape)
        ],
        "wrong type": [
            f"{key} (found {entry.dtype}, expected floating point)"
            for key, entry in present.items()
            if key in expected and not entry.dtype.is_floating_point
        ],
        "not as in the image flow": [
            key for key in stored if _TIME.match(key) and not _shares_time(checkpoint, key)
        ],
    }
    if any(problems.values()):
        raise InputError("\n".join(_listed(checkpoint, problems, len(expected))))


def load_unet(
    checkpoint: Checkpoint, dtype: torch.dtype, parts: Collection[Part] = get_args(Part)
) -> FourFlowUNet:
    """The four-flow UNet; what belongs to a part that is not named stays without weights, on the meta device.

    ``time`` is the time embedding and its projections in the residual blocks of both flows; ``image.data``
    and ``text.data`` are the rest of a flow's blocks; ``image.context`` and ``text.context`` are a context's
    transformers. A step takes the data of its flow and both contexts.
    """
    return cast(FourFlowUNet, _load(checkpoint, "unet", dtype, lambda key: unet_part(key) in parts))


def load_autokl(checkpoint: Checkpoint, dtype: torch.dtype) -> AutoencoderKL:
    """The image autoencoder."""
    return cast(AutoencoderKL, _load(checkpoint, "autokl", dtype))


def load_clip_image(checkpoint: Checkpoint, dtype: torch.dtype) -> CLIPImageContext:
    """CLIP's image tower."""
    return cast(CLIPImageContext, _load(checkpoint, "clip_image", dtype))


def load_clip_text(checkpoint: Checkpoint, dtype: torch.dtype) -> CLIPTextContext:
    """CLIP's text tower."""
    return cast(CLIPTextContext, _load(checkpoint, "clip_text", dtype))


def load_optimus_encoder(checkpoint: Checkpoint, dtype: torch.dtype) -> OptimusEncode:
    """Optimus' BERT."""
    return cast(OptimusEncode, _load(checkpoint, "optimus_encoder", dtype))


def load_optimus_decoder(checkpoint: Checkpoint, dtype: torch.dtype) -> OptimusDecoder:
    """Optimus' GPT-2."""
    return cast(OptimusDecoder, _load(checkpoint, "optimus_decoder", dtype))


def unet_part(key: str) -> Part:
    """The part that a parameter of ``FourFlowUNet`` belongs to."""
    flow, kind, _ = key.split(".", 2)
    if kind == "time_embed" or ".emb_layers." in key:
        return "time"
    return cast(Part, f"{flow}.{kind.removesuffix('_blocks')}")


@dataclass(frozen=True)
class _Component:
    """How a module is built, and the canonical name of one of its parameters."""

    build: Callable[[Architecture], nn.Module]
    name: Callable[[str, Architecture], str]


_COMPONENTS = {
    "unet": _Component(lambda a: FourFlowUNet(a.unet), lambda key, a: f"diffuser.{key}"),
    "autokl": _Component(
        lambda a: build_autokl(a.autokl),
        lambda key, a: f"vae.image.{published_key(key, len(a.autokl.channel_mult))}",
    ),
    "clip_image": _Component(lambda a: build_clip_image(a.clip), lambda key, a: f"ctx.image.model.{key}"),
    "clip_text": _Component(lambda a: build_clip_text(a.clip), lambda key, a: f"ctx.text.model.{key}"),
    "optimus_encoder": _Component(
        lambda a: OptimusEncode(a.optimus), lambda key, a: f"vae.text.encoder.{encoder_key(key)}"
    ),
    "optimus_decoder": _Component(
        lambda a: OptimusDecoder(a.optimus), lambda key, a: f"vae.text.decoder.{decoder_key(key)}"
    ),
}


def _empty(component: _Component, checkpoint: Checkpoint) -> nn.Module:
    """The module with its parameters on the meta device; its buffers, which no checkpoint holds, are real."""
    try:
        with init_empty_weights(include_buffers=False):
            return component.build(checkpoint.architecture)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"no model can be built of the sizes from {checkpoint.sizes_from} ({first_line(error)})"
        ) from error


def _load(
    checkpoint: Checkpoint, name: str, dtype: torch.dtype, wanted: Callable[[str], bool] = lambda key: True
) -> nn.Module:
    component = _COMPONENTS[name]
    module = _empty(component, checkpoint)
    state: dict[str, Tensor] = {}
    for key, parameter in module.state_dict().items():
        if wanted(key):
            full = component.name(key, checkpoint.architecture)
            if not _same(checkpoint.shape(full), tuple(parameter.shape)):
                raise InputError(
                    f"{checkpoint.source}: {full} does not have the shape {_times(parameter.shape)}"
                )
            state[key] = checkpoint.tensor(full).reshape(parameter.shape).to(dtype)
    module.load_state_dict(state, strict=False, assign=True)
    return module.eval().requires_grad_(False)


def _find(source: str, exists: Callable[[str], bool]) -> layouts.Found:
    try:
        listing = layouts.find(exists)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    if listing is None:
        raise InputError(
            f"{source}: no checkpoint in it; expected is vd-four-flow-v1-0[-fp16].pth or .safetensors, "
            f"or a diffusers folder with {', '.join(layouts.COMPONENTS)}"
        )
    return listing


def _download(name: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    try:
        listed = set(HfApi().list_repo_files(name))
    except (OSError, ValueError) as error:
        try:
            # Without a network, what an earlier download left in the cache serves as well.
            return Path(snapshot_download(name, local_files_only=True))
        except (OSError, ValueError):
            kind = type(error).__name__
            raise InputError(f"{name}: no folder here, and the hub does not give it ({kind})") from error
    patterns = _find(name, listed.__contains__).patterns()
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        kind = type(error).__name__
        raise InputError(f"{name}: the download failed ({kind}); run again to go on with it") from error


def _tokenizers(folder: Path, root: str) -> dict[str, Path]:
    places = {name: [f"tokenizers/{name}", f"{root}tokenizers/{name}"] for name in ("gpt2", "bert", "clip")}
    places["clip"].append("tokenizer")
    folders = {
        name: [folder / place for place in each if (folder / place).is_dir()] for name, each in places.items()
    }
    return {name: paths[0] for name, paths in folders.items() if paths}


def _shares_time(checkpoint: Checkpoint, key: str) -> bool:
    """Both flows have one time embedding; the diffusers layout stores it twice, maybe in two precisions."""
    image = key.replace("diffuser.text.", "diffuser.image.")
    if image not in checkpoint.tensors or checkpoint.shape(image) != checkpoint.shape(key):
        return False
    one, other = checkpoint.tensor(image).float(), checkpoint.tensor(key).float()
    return bool((one - other).norm() <= 0.01 * one.norm())


def _listed(checkpoint: Checkpoint, problems: Mapping[str, list[str]], expected: int) -> Iterable[str]:
    counts = ", ".join(f"{len(items)} {kind}" for kind, items in problems.items() if items)
    hint = ""
    missing = {key.rsplit(".", 1)[0] for key in problems["missing"]}
    if len(problems["wrong shape"]) > expected // 10 or (problems["missing"] and problems["unexpected"]):
        hint = "; if the model has other sizes, name them with --config FILE"
    elif (
        missing and all(key.startswith("vae.image.") for key in missing) and checkpoint.layout == "published"
    ):
        hint = "; is kl-f8.pth beside the checkpoint?"
    yield f"{checkpoint.source}: the tensors do not fit the sizes of {checkpoint.sizes_from} ({counts}){hint}"
    for kind, items in problems.items():
        yield from (f"{kind}: {item}" for item in items[:LISTED])
        if len(items) > LISTED:
            yield f"{kind}: and {len(items) - LISTED} more"


def _same(shape: Iterable[int], expected: Iterable[int]) -> bool:
    return [size for size in shape if size != 1] == [size for size in expected if size != 1]


def _times(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape)) or "a scalar"

"""A checkpoint becomes a bundle: graphs exported, described and hashed, in one folder that appears whole."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from unibrain_rt import __version__
from unibrain_rt.bundle import CONSTANTS, SCHEMA_VERSION, UNCONDITIONAL
from unibrain_rt.export.bundles import checkpoint as checkpoints
from unibrain_rt.export.bundles import graphs
from unibrain_rt.export.bundles.architecture import Architecture
from unibrain_rt.export.bundles.bundle_folder import check_free, new_folder, write_manifest
from unibrain_rt.export.bundles.checkpoint import Checkpoint
from unibrain_rt.export.bundles.graph_folder import GRAPHS, GraphFolder
from unibrain_rt.export.bundles.graphs import Graph
from unibrain_rt.export.bundles.precision import Precision
from unibrain_rt.export.bundles.tokenization import clip_ids
from unibrain_rt.export.bundles.trace import trace
from unibrain_rt.export.subjects.pixels import clip_pixels
from unibrain_rt.presets import PRESETS

Report = Callable[[str, int, int], None]
CAPTION_TOKENS = 30
ENCODED_TOKENS = 64
_TOKENIZER_FILES = ("vocab.json", "merges.txt", "vocab.txt")


def write_bundle(
    checkpoint: Checkpoint,
    out: Path,
    *,
    precision: Precision = "fp32",
    name: str | None = None,
    overwrite: bool = False,
    report: Report | None = None,
) -> None:
    """Export every graph of ``checkpoint`` into the new folder ``out``.

    The folder appears whole or not at all: until the end, all is written to ``.<out>.partial`` beside it.

    Args:
        precision: of the graphs; ``fp32-half-weights`` computes in fp32 from weights stored in half.
        report: called with a graph's name, its number and how many there are, before it is exported.

    Raises:
        InputError: ``out`` exists, or the checkpoint's keys are not what its architecture needs.
    """
    check_free(out, overwrite=overwrite)
    checkpoints.check(checkpoint)
    with new_folder(out, overwrite=overwrite) as partial:
        records = _export_graphs(checkpoint, partial / GRAPHS, precision, report)
        save_file(_unconditional(checkpoint), partial / CONSTANTS)
        (partial / CONSTANTS).chmod(0o644)  # safetensors writes for the owner alone
        tokenizers = _copy_tokenizers(checkpoint, partial)
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "name": name or out.name,
            "precision": precision,
            "architecture": checkpoint.architecture.to_mapping(),
            "graphs": records,
            "presets": {key: preset.to_mapping() for key, preset in PRESETS.items()},
            "subjects": [],
            "tokenizers": tokenizers,
            "provenance": {"unibrain_rt": __version__, "torch": torch.__version__, **checkpoint.provenance()},
        }
        write_manifest(partial, manifest)


def caption_slots(sizes: Architecture) -> int:
    """How many tokens a caption's cache holds."""
    # The latent takes the first position.
    return min(CAPTION_TOKENS, int(sizes.optimus.decoder["n_positions"]) - 1)


def _export_graphs(
    checkpoint: Checkpoint, folder: Path, precision: Precision, report: Report | None
) -> dict[str, dict[str, Any]]:
    makers = _graph_makers(checkpoint)
    with GraphFolder(folder, precision) as written:
        for number, (name, make) in enumerate(makers.items(), start=1):
            if report is not None:
                report(name, number, len(makers))
            graph = make()
            written.add(trace(graph), graph.feedback)
            # The next graph's weights need the room of this one's.
            del graph
            gc.collect()
    return written.records


def _graph_makers(checkpoint: Checkpoint) -> dict[str, Callable[[], Graph]]:
    """By name, what builds each graph; building loads just the weights it needs."""
    sizes = checkpoint.architecture
    load = partial(_load, checkpoint)

    def unet(*parts: checkpoints.Part) -> Any:
        return load(checkpoints.load_unet, parts)

    makers: dict[str, Callable[[], Graph]] = {
        "unet_context": lambda: graphs.unet_context(unet("image.context", "text.context"), sizes),
        "unet_time": lambda: graphs.unet_time(unet("time")),
        "unet_image_step": lambda: graphs.unet_step(
            unet("image.data", "image.context", "text.context"), sizes, "image"
        ),
        "unet_text_step": lambda: graphs.unet_step(
            unet("text.data", "image.context", "text.context"), sizes, "text"
        ),
        "autokl_encode": lambda: graphs.autokl_encode(load(checkpoints.load_autokl), sizes),
        "autokl_decode": lambda: graphs.autokl_decode(load(checkpoints.load_autokl), sizes),
        "clip_image": lambda: graphs.clip_image(load(checkpoints.load_clip_image), sizes),
        "clip_text": lambda: graphs.clip_text(load(checkpoints.load_clip_text), sizes),
    }
    if checkpoint.has_captions:
        longest_in = int(sizes.optimus.encoder["max_position_embeddings"])
        makers["optimus_encode"] = lambda: graphs.optimus_encode(
            load(checkpoints.load_optimus_encoder), min(ENCODED_TOKENS, longest_in)
        )
        makers["optimus_decode"] = lambda: graphs.optimus_decode(
            load(checkpoints.load_optimus_decoder),
            sizes.optimus.latent_size,
            caption_slots(sizes),
        )
    return makers


def _load(checkpoint: Checkpoint, loader: Callable[..., Any], *arguments: Any) -> Any:
    """One model in fp32, from files opened for it alone: with the model go the pages that were read for it."""
    return loader(checkpoint.fresh(), torch.float32, *arguments)


def _unconditional(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """CLIP of a black image and of the empty caption, (1, L, D) each."""
    sizes = checkpoint.architecture.clip
    side = int(sizes.vision["image_size"])
    if "clip" in checkpoint.tokenizers:
        ids = torch.from_numpy(clip_ids(checkpoint.tokenizers["clip"], [""], sizes.text_tokens))
    else:
        # CLIP's vocabularies end with the start and the end token; it was trained on padding with the latter.
        start, end = sizes.text["vocab_size"] - 2, sizes.text["vocab_size"] - 1
        ids = torch.tensor([[start, *[end] * (sizes.text_tokens - 1)]])
    with torch.no_grad():
        image = _load(checkpoint, checkpoints.load_clip_image)(clip_pixels(torch.zeros(1, 3, side, side)))
        text = _load(checkpoint, checkpoints.load_clip_text)(ids)
    return dict(zip(UNCONDITIONAL, (image.contiguous(), text.contiguous()), strict=True))


def _copy_tokenizers(checkpoint: Checkpoint, partial: Path) -> dict[str, str]:
    copied = {}
    for name, folder in checkpoint.tokenizers.items():
        target = partial / "tokenizers" / name
        target.mkdir(parents=True)
        for file in _TOKENIZER_FILES:
            if (folder / file).is_file():
                shutil.copyfile(folder / file, target / file)
        copied[name] = f"tokenizers/{name}"
    return copied

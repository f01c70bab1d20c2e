"""The phantom's world as tensors: what every model learns from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from unibrain_rt.export.bundles.architecture import Architecture
from unibrain_rt.export.bundles.tokenization import bert_ids, clip_ids, gpt2_ids
from unibrain_rt.export.phantom.phrases import captions
from unibrain_rt.export.phantom.pictures import stimuli
from unibrain_rt.export.phantom.scenes import COLOURS, scenes
from unibrain_rt.files import whole_file


@dataclass(frozen=True)
class World:
    """Scenes as arrays: images (N, 3, S, S) uint8, and per caption phrasing the three kinds of token ids.

    ``colours`` (N, 3) float32 is how the colour that a caption names looks: red, green, blue over the palette,
    each of mean 0 and variance 1.
    """

    images: Tensor
    colours: Tensor
    clip_ids: Tensor
    bert_ids: Tensor
    gpt2_ids: Tensor

    @classmethod
    def render(cls, part: str, count: int, seed: int, architecture: Architecture, tokenizers: Path) -> World:
        """``count`` scenes of a split; token ids are (phrasings, N, L)."""
        chosen = scenes(part, count, seed)  # type: ignore[arg-type]
        images = (
            torch.from_numpy(stimuli(chosen, architecture.autokl.image_size)).permute(0, 3, 1, 2).contiguous()
        )
        texts = [list(phrasing) for phrasing in zip(*(captions(scene) for scene in chosen), strict=True)]
        length = architecture.clip.text_tokens

        def ids(encode: object, name: str) -> Tensor:
            rows = [encode(tokenizers / name, phrasing, length) for phrasing in texts]  # type: ignore[operator]
            return torch.from_numpy(np.stack(rows))

        palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32)
        looks = (palette - palette.mean(dim=0)) / palette.std(dim=0)
        colours = looks[[list(COLOURS).index(scene.colour) for scene in chosen]]
        return cls(images, colours, ids(clip_ids, "clip"), ids(bert_ids, "bert"), ids(gpt2_ids, "gpt2"))

    @classmethod
    def cached(
        cls, folder: Path, count: int, seed: int, architecture: Architecture, tokenizers: Path
    ) -> World:
        """The training split, rendered once and kept in ``folder``."""
        path = folder / f"world_{count}_{seed}.safetensors"
        if not path.is_file():
            world = cls.render("train", count, seed, architecture, tokenizers)
            with whole_file(path) as part:
                save_file(vars(world), part)
        return cls(**load_file(path))

    def __len__(self) -> int:
        return len(self.images)

    def image_batch(self, index: NDArray[np.int64]) -> Tensor:
        """Images in [0, 1]."""
        return self.images[torch.from_numpy(index)].float() / 255


def normal(rng: np.random.Generator, shape: torch.Size) -> Tensor:
    """Standard normal numbers, float32."""
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))

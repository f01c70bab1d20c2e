"""Captions to the encoders' token ids: transformers' tokenizers on a bundle's or checkpoint's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import BertTokenizer, CLIPTokenizer, GPT2Tokenizer

from unibrain_rt.errors import InputError


def clip_ids(folder: Path, captions: Sequence[str], length: int) -> NDArray[np.int64]:
    """(N, length) ids with start and end tokens, padded with the end token as CLIP ViT-L/14 was trained."""
    _require(folder, "vocab.json", "merges.txt")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token="<|endoftext|>"
    )
    return _pad(
        tokenizer(list(captions), padding="max_length", truncation=True, max_length=length)["input_ids"]
    )


def bert_ids(folder: Path, captions: Sequence[str], length: int) -> NDArray[np.int64]:
    """(N, length) ids between [CLS] and [SEP] of the lower-cased captions, padded with 0."""
    _require(folder, "vocab.txt")
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), do_lower_case=True)
    return _pad(
        tokenizer(list(captions), padding="max_length", truncation=True, max_length=length)["input_ids"]
    )


def gpt2_ids(folder: Path, captions: Sequence[str], length: int) -> NDArray[np.int64]:
    """(N, length) ids <BOS> caption <EOS>, padded with <PAD>; the three are numbered after the vocabulary."""
    _require(folder, "vocab.json", "merges.txt")
    tokenizer = GPT2Tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    pad, bos, eos = (len(tokenizer.get_vocab()) + offset for offset in range(3))
    if "<|endoftext|>" not in tokenizer.encoder:
        # transformers registers an end token of its own where the vocabulary has none; Optimus' come instead.
        pad, bos, eos = (len(tokenizer.encoder) + offset for offset in range(3))
    rows = []
    for caption in captions:
        ids = [bos, *tokenizer(caption)["input_ids"][: length - 2], eos]
        rows.append(ids + [pad] * (length - len(ids)))
    return _pad(rows)


def _pad(rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    return np.asarray(rows, dtype=np.int64)


def _require(folder: Path, *names: str) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder}: {' and '.join(missing)} missing; copy the published vocabulary there")

"""Captions to the encoders' token ids, with `tokenizers` on a bundle's or checkpoint's files.

They are the ids that transformers' CLIPTokenizer, BertTokenizer and GPT2Tokenizer give for the same files.
transformers itself is not used here: importing it brings torch along, which fitting a subject does not need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from unibrain_rt.errors import InputError, input_error

_CLIP_START, _CLIP_END = "<|startoftext|>", "<|endoftext|>"
#: CLIP's own division into words: contractions, letters, single digits, runs of anything else.
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def clip_ids(folder: Path, captions: Sequence[str], length: int) -> NDArray[np.int64]:
    """(N, length) ids with start and end tokens, padded with the end token as CLIP ViT-L/14 was trained."""
    tokenizer = Tokenizer(_bpe(folder, unk_token=_CLIP_END, end_of_word_suffix="</w>"))
    clean = normalizers.BertNormalizer(strip_accents=False, lowercase=True)
    tokenizer.normalizer = normalizers.Sequence([clean, normalizers.NFC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    start, end = _special(folder, tokenizer, _CLIP_START, _CLIP_END)
    return _rows(tokenizer, captions, length, start, end, pad=end)


def bert_ids(folder: Path, captions: Sequence[str], length: int) -> NDArray[np.int64]:
    """(N, length) ids between [CLS] and [SEP] of the lower-cased captions, padded with 0."""
    _require(folder, "vocab.txt")
    tokenizer = Tokenizer(_loaded(folder, models.WordPiece.from_file, "vocab.txt", unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    start, end, _ = _special(folder, tokenizer, "[CLS]", "[SEP]", "[UNK]")
    return _rows(tokenizer, captions, length, start, end, pad=0)


def gpt2_ids(folder: Path, captions: Sequence[str], length: int) -> NDArray[np.int64]:
    """(N, length) ids <BOS> caption <EOS>, padded with <PAD>; the three are numbered after the vocabulary."""
    tokenizer = Tokenizer(_bpe(folder))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pad, bos, eos = (tokenizer.get_vocab_size() + offset for offset in range(3))
    return _rows(tokenizer, captions, length, bos, eos, pad)


def _rows(
    tokenizer: Tokenizer, captions: Sequence[str], length: int, start: int, end: int, pad: int
) -> NDArray[np.int64]:
    rows = np.full((len(captions), length), pad, np.int64)
    for row, encoding in zip(rows, tokenizer.encode_batch(list(captions)), strict=True):
        ids = [start, *encoding.ids[: length - 2], end]
        row[: len(ids)] = ids
    return rows


def _bpe(folder: Path, **options: str) -> Any:
    _require(folder, "vocab.json", "merges.txt")
    return _loaded(folder, models.BPE.from_file, "vocab.json", "merges.txt", **options)


def _loaded(folder: Path, load: Callable[..., Any], *names: str, **options: str) -> Any:
    try:
        return load(*(str(folder / name) for name in names), **options)
    except Exception as error:  # tokenizers raises bare Exceptions
        problem = f"{' and '.join(names)} cannot be read ({str(error)[:80]})"
        raise input_error(folder, f"{problem}: copy the published vocabulary there") from error


def _special(folder: Path, tokenizer: Tokenizer, *tokens: str) -> list[int]:
    numbers = [tokenizer.token_to_id(token) for token in tokens]
    if missing := [token for token, place in zip(tokens, numbers, strict=True) if place is None]:
        raise input_error(
            folder, f"the vocabulary has no {' and '.join(missing)}: copy the published one there"
        )
    return numbers


def _require(folder: Path, *names: str) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder}: {' and '.join(missing)} missing; copy the published vocabulary there")

"""Captions: the choice of the next token, tokens to text, repetitions removed."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.errors import BundleError, InputError
from unibrain_rt.json_file import read_json

VOCABULARY = "vocab.json"
_END_OF_TEXT = "<|endoftext|>"  # GPT-2's own special token, the only one inside its vocabulary
_SENTENCE_GAP = re.compile(r"(?<=[.!?])\s+|\s*\n\s*")
_PUNCTUATION = ".!?,;:"


@dataclass(frozen=True)
class CaptionOptions:
    """How a caption is written; InputError if a value makes no sense."""

    temperature: float = 0.0  # 0 takes the likeliest token each time; the reference samples at 1
    top_p: float = 1.0  # the nucleus: the likeliest tokens that hold this much probability
    max_tokens: int = 30

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < math.inf:
            raise InputError(f"temperature must be a finite number of at least 0, not {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top-p must be above 0 and at most 1, not {self.top_p}")
        if isinstance(self.max_tokens, bool) or not isinstance(self.max_tokens, int) or self.max_tokens < 1:
            raise InputError(f"max tokens must be a whole number of at least 1, not {self.max_tokens!r}")


def greedy(logits: NDArray[np.floating]) -> int:
    """The likeliest token of ``logits`` (vocabulary,), the lowest of equals. Raises as ``sample`` does."""
    _check_logits(logits)
    return int(np.argmax(logits))


def sample(logits: NDArray[np.floating], temperature: float, top_p: float, rng: np.random.Generator) -> int:
    """A token drawn from the nucleus of ``logits`` (vocabulary,): arXiv 1904.09751.

    The nucleus is the smallest set of likeliest tokens that hold ``top_p`` of the probability at
    ``temperature``. Takes one uniform number from ``rng``, and none at temperature 0, which is ``greedy``.
    Temperature and top-p are those of a ``CaptionOptions``, which checked them. Raises BundleError if a
    logit is not finite.
    """
    if temperature == 0.0:
        return greedy(logits)
    _check_logits(logits)
    scaled = logits.astype(np.float64)
    with np.errstate(over="ignore"):  # at a tiny temperature all but the largest go to -inf, as they should
        weights = np.exp((scaled - scaled.max()) / temperature)
    order = np.argsort(-weights, kind="stable")
    cumulative = np.cumsum(weights[order])
    last = int(np.searchsorted(cumulative, top_p * cumulative[-1]))  # first place where top_p is reached
    chosen = int(np.searchsorted(cumulative, rng.random() * cumulative[last], side="right"))
    return int(order[min(chosen, last)])


@dataclass(frozen=True)
class Detokenizer:
    """GPT-2's byte-level vocabulary, backwards: token ids to text.

    Optimus appends three special tokens to the V of the vocabulary: PAD = V, BOS = V + 1, EOS = V + 2.
    """

    pieces: tuple[bytes, ...]  # what each of the V ids stands for; empty for <|endoftext|>

    @classmethod
    def load(cls, folder: str | Path) -> Detokenizer:
        """Read `VOCABULARY` (token to id) in ``folder``; BundleError if missing or no such vocabulary."""
        path = Path(folder) / VOCABULARY
        vocabulary = read_json(
            path,
            lambda where, problem: BundleError(f"{where}: {problem}; the bundle is incomplete or broken"),
        )
        if not isinstance(vocabulary, dict) or not vocabulary:
            raise BundleError(f"{path}: must map tokens to ids, not be {type(vocabulary).__name__} or empty")
        pieces: list[bytes | None] = [None] * len(vocabulary)
        byte_of = byte_alphabet()
        for token, index in vocabulary.items():
            if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(pieces):
                raise BundleError(f"{path}: token {token!r} has id {index!r}, not 0 to {len(pieces) - 1}")
            if pieces[index] is not None:
                raise BundleError(f"{path}: id {index} belongs to two tokens")
            try:
                pieces[index] = b"" if token == _END_OF_TEXT else bytes(byte_of[letter] for letter in token)
            except KeyError as error:
                raise BundleError(f"{path}: token {token!r} is not byte-level ({error.args[0]!r})") from None
        return cls(tuple(piece for piece in pieces if piece is not None))

    @property
    def pad(self) -> int:
        return len(self.pieces)

    @property
    def bos(self) -> int:
        return len(self.pieces) + 1

    @property
    def eos(self) -> int:
        return len(self.pieces) + 2

    def text(self, ids: Iterable[int]) -> str:
        """The text of ``ids`` without special tokens, bad UTF-8 as U+FFFD, all white space as single blanks.

        Raises BundleError for an id neither in the vocabulary nor special: model and vocabulary disagree.
        """
        written = []
        for index in map(operator.index, ids):
            if not 0 <= index <= self.eos:
                raise BundleError(f"token {index} is not in the vocabulary (0 to {self.eos})")
            if index < len(self.pieces):
                written.append(self.pieces[index])
        return " ".join(b"".join(written).decode("utf-8", errors="replace").split())


def remove_duplicates(text: str) -> str:
    """The caption without what it says twice, white space as single blanks; its own result it leaves alone.

    Words are equal whatever their case and the punctuation at their end.
    - A sentence ends at . ! ? before white space or the end (not inside "3.5 m"), and at a new line. A later
      sentence with the words of an earlier one goes. So does an unfinished last sentence that only begins an
      earlier one again: there the caption ran into its token limit.
    - Inside a sentence, two or more words that are repeated at once stay once ("a dog a dog on grass" becomes
      "a dog on grass"), and so does one word said three or more times in a row. A doubled word stays ("a very
      very tall tower"), as English has it.
    """
    while (shorter := _remove_once(text)) != text:  # what is left may meet a new neighbour
        text = shorter
    return text


def _remove_once(text: str) -> str:
    kept: dict[tuple[str, ...], str] = {}
    for sentence in _SENTENCE_GAP.split(text):
        words = _remove_runs(sentence.split())
        key = tuple(filter(None, map(_key, words)))
        if words and key not in kept:
            kept[key] = " ".join(words)
    if kept:
        last = list(kept)[-1]
        unfinished = kept[last][-1] not in ".!?"
        if unfinished and any(key != last and key[: len(last)] == last for key in kept):
            del kept[last]
    return " ".join(kept.values())


def _remove_runs(words: list[str]) -> list[str]:
    """``words`` with immediate repetitions reduced to one copy, the shortest repeated run first."""
    keys = [_key(word) or word for word in words]
    period = 1
    while 2 * period <= len(words):
        for start in range(len(words) - 2 * period + 1):
            copies = _copies(keys, start, period)
            if copies > (2 if period == 1 else 1):
                # From the first copy's last word up to the last copy's last word: what stays has the first
                # one's capital and the punctuation that belongs before what follows.
                cut = slice(start + period - 1, start + copies * period - 1)
                del words[cut], keys[cut]
                period = 0  # begin again with the shortest
                break
        period += 1
    return words


def _copies(keys: list[str], start: int, period: int) -> int:
    """How many times in a row the ``period`` keys at ``start`` are there."""
    copies = 1
    while keys[start : start + period] == keys[start + copies * period : start + (copies + 1) * period]:
        copies += 1
    return copies


def _key(word: str) -> str:
    """What makes two words the same: neither case nor the punctuation at the end counts."""
    return word.rstrip(_PUNCTUATION).casefold()


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte, backwards: character to byte.

    Bytes that print in Latin-1 stand for themselves; the rest (controls, blanks, the soft hyphen) take the
    code points from 256 on, in rising order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update((chr(256 + place), byte) for place, byte in enumerate(others))
    return alphabet


def _check_logits(logits: NDArray[np.floating]) -> None:
    if not np.isfinite(logits).all():
        raise BundleError("the caption decoder gave logits that are not finite; try another precision")

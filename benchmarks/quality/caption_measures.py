"""How like a stimulus' captions a decoded caption is: METEOR, ROUGE, BLEU by words, CLIP by meaning.

Words are lower-case runs of letters and digits, as rouge-score cuts them, for all three measures. Where a
stimulus has several captions, METEOR and ROUGE count the one that the decoded caption fits best and BLEU takes
n-grams of all of them, each as its library does for multiple references. None of it is ever downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from nltk.corpus import wordnet
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from nltk.translate.meteor_score import meteor_score
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize

from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import Engine
from unibrain_rt.errors import InputError
from unibrain_rt.export.bundles.tokenization import clip_ids
from unibrain_rt.export.subjects.encoders import Encoder

Float = NDArray[np.float64]
References = Sequence[Sequence[str]]
"""Captions of each stimulus, one at least."""
_ROUGE = {"ROUGE-1": "rouge1", "ROUGE-L": "rougeL"}


def words(text: str) -> list[str]:
    """The words of a caption."""
    tokens: list[str] = tokenize(text, None)
    return tokens


def has_synonyms() -> bool:
    """Whether NLTK finds WordNet on this machine, METEOR's list of synonyms. It is not downloaded."""
    try:
        wordnet.ensure_loaded()
    except LookupError:
        return False
    return True


def meteor(captions: Sequence[str], references: References, *, synonyms: bool | None = None) -> Float:
    """METEOR (N,) as NLTK computes it: Lavie and Agarwal 2007 with alpha 0.9, beta 3, gamma 0.5.

    Words are matched as they are, then by Porter stems, then by WordNet's synonyms.

    Args:
        synonyms: whether to match synonyms; by default if WordNet is installed. Without them fewer words match: say so
            wherever such a figure is shown.
    """
    lists = wordnet if (has_synonyms() if synonyms is None else synonyms) else _NoSynonyms()
    pairs = _paired(captions, references)
    return np.array([meteor_score(several, caption, wordnet=lists) for caption, several in pairs], np.float64)


def rouge(captions: Sequence[str], references: References) -> dict[str, Float]:
    """F1 of shared words (ROUGE-1) and of the longest common subsequence (ROUGE-L), (N,) each: Lin 2004.

    By rouge-score without its stemmer, that is, as in Google's own evaluations.
    """
    scorer = RougeScorer(list(_ROUGE.values()), use_stemmer=False)
    _check(captions, references)
    best = [
        scorer.score_multi(list(several), caption)
        for caption, several in zip(captions, references, strict=True)
    ]
    return {
        name: np.array([float(scores[key].fmeasure) for scores in best], np.float64)
        for name, key in _ROUGE.items()
    }


def bleu(captions: Sequence[str], references: References) -> Float:
    """BLEU-4 (N,) of single sentences: Papineni et al. 2002, by NLTK.

    The precisions of two to four words are smoothed by one match and one n-gram more (Lin and Och 2004), or every
    caption without four words in a row of a reference would score 0.
    """
    smoothing = SmoothingFunction().method2
    return np.array(
        [
            sentence_bleu(several, caption, smoothing_function=smoothing)
            for caption, several in _paired(captions, references)
        ],
        np.float64,
    )


class TextFeatures:
    """What the bundle's CLIP compares texts by: the projected end token, of length 1, (N, D)."""

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        """Raises `InputError` if the bundle has no vocabulary of CLIP."""
        if "clip" not in bundle.tokenizers:
            problem = "no tokenizers/clip; export the checkpoint with its vocabularies"
            raise InputError(f"{bundle.folder}: {problem}")
        self._vocabulary = bundle.tokenizers["clip"]
        self._encoder = Encoder(bundle.graph("clip_text"), engine)

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Features (N, D) of texts; those longer than CLIP reads are cut."""
        ids = clip_ids(self._vocabulary, texts, self._encoder.size)
        # The end token has the largest id; it fills up what is left, too, and argmax takes the first.
        pooled = self._encoder(ids)[np.arange(len(ids)), ids.argmax(axis=1)]
        return np.asarray(pooled, np.float32)

    def mean(self, references: References) -> NDArray[np.float32]:
        """Mean features (N, D) of each stimulus' captions."""
        counts = np.array([len(several) for several in references])
        each = self([caption for several in references for caption in several])
        sums = np.add.reduceat(each, np.cumsum(counts) - counts, axis=0)
        return np.asarray(sums / counts[:, None], np.float32)


class _NoSynonyms:
    """In WordNet's place: no word has any."""

    def synsets(self, word: str) -> list[object]:
        return []


def _paired(captions: Sequence[str], references: References) -> list[tuple[list[str], list[list[str]]]]:
    """The words of each caption, with those of its references."""
    _check(captions, references)
    return [
        (words(caption), [words(reference) for reference in several])
        for caption, several in zip(captions, references, strict=True)
    ]


def _check(captions: Sequence[str], references: References) -> None:
    if len(captions) != len(references):
        raise ValueError(f"{len(captions)} captions, but references for {len(references)}")
    if isinstance(references, str) or any(isinstance(several, str) or not several for several in references):
        raise ValueError("references are a list of captions for every stimulus, one at least")

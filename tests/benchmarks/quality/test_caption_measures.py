from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from unibrain_rt.benchmarks.quality import caption_measures as module
from unibrain_rt.benchmarks.quality.caption_measures import (
    TextFeatures,
    bleu,
    has_synonyms,
    meteor,
    rouge,
    words,
)
from unibrain_rt.benchmarks.quality.image_measures import two_way_identification
from unibrain_rt.bundle import Bundle
from unibrain_rt.engines import Engine
from unibrain_rt.errors import InputError
from unibrain_rt.export.phantom.phrases import captions
from unibrain_rt.export.phantom.scenes import Scene

SENTENCE = "a small red cup on the left by a wall"


def test_words_know_neither_case_nor_punctuation() -> None:
    assert words("A dog, two CATS; isn't 3-D.") == ["a", "dog", "two", "cats", "isn", "t", "3", "d"]


def test_equal_sentences() -> None:
    assert meteor([SENTENCE], [[SENTENCE]])[0] == pytest.approx(1.0, abs=1e-3)
    assert bleu([SENTENCE], [[SENTENCE]])[0] == pytest.approx(1.0)
    assert {name: values[0] for name, values in rouge([SENTENCE], [[SENTENCE]]).items()} == {
        "ROUGE-1": 1.0,
        "ROUGE-L": 1.0,
    }


def test_sentences_that_share_nothing() -> None:
    other = [["two dogs run"]]
    assert meteor([SENTENCE], other, synonyms=False)[0] == 0
    assert bleu([SENTENCE], other)[0] == 0
    assert max(values[0] for values in rouge([SENTENCE], other).values()) == 0
    assert meteor([""], other)[0] == bleu([""], other)[0] == rouge([""], other)["ROUGE-L"][0] == 0


def test_rouge_by_hand() -> None:
    # "the cat sat" has 3 words, the reference 6; shared: the, cat, sat. In order: all three.
    found = rouge(["the cat sat", "sat cat the"], [["the cat sat on a mat"]] * 2)
    np.testing.assert_allclose(found["ROUGE-1"], [2 * 1 * 0.5 / 1.5] * 2)
    # Backwards only one word at a time is in order: precision 1/3, recall 1/6.
    np.testing.assert_allclose(found["ROUGE-L"], [2 / 3, 2 * (1 / 3) * (1 / 6) / (1 / 3 + 1 / 6)])


def test_meteor_by_hand() -> None:
    # 4 of 4 words match 4 of 5, in two chunks: "a red", "in snow" around "cup".
    precision, recall, chunks, matches = 1.0, 4 / 5, 2, 4
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    expected = mean * (1 - 0.5 * (chunks / matches) ** 3)
    assert meteor(["a red in snow"], [["a red cup in snow"]], synonyms=False)[0] == pytest.approx(expected)


def test_meteor_matches_stems() -> None:
    stemmed = meteor(["running dogs"], [["runs dog"]], synonyms=False)[0]
    assert stemmed == pytest.approx(meteor(["runs dog"], [["runs dog"]], synonyms=False)[0])


def test_meteor_takes_synonyms_from_wordnet_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lemma:
        def name(self) -> str:
            return "truck"

    class Synset:
        def lemmas(self) -> list[Lemma]:
            return [Lemma()]

    class Installed:
        def ensure_loaded(self) -> None: ...

        def synsets(self, word: str) -> list[Synset]:
            return [Synset()] if word == "car" else []

    pair = ["a red car"], [["a red truck"]]
    without = meteor(*pair, synonyms=False)[0]
    monkeypatch.setattr(module, "wordnet", Installed())
    assert has_synonyms()
    assert meteor(*pair)[0] > without
    assert meteor(*pair, synonyms=False)[0] == without


def test_meteor_goes_without_a_missing_wordnet(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing:
        def ensure_loaded(self) -> None:
            raise LookupError("no wordnet")

    monkeypatch.setattr(module, "wordnet", Missing())
    assert not has_synonyms()
    assert meteor(["a car"], [["a car"]])[0] > 0.9


def test_bleu_by_hand() -> None:
    # Of 5 words 4 match, of 4 pairs 2 (+1 of +1), of 3 triples 1, of 2 quadruples none; as long as the reference.
    expected = math.exp((math.log(4 / 5) + math.log(3 / 5) + math.log(2 / 4) + math.log(1 / 3)) / 4)
    assert bleu(["a red cup in snow"], [["a red cup at snow"]])[0] == pytest.approx(expected)
    # Two words where three stand cost exp(1 - 3/2).
    short = bleu(["a red"], [["a red cup"]])[0]
    assert short == pytest.approx(math.exp(1 - 3 / 2) * (1 * 1 * (1 / 2) * (1 / 2)) ** 0.25)


def test_several_references_help_and_the_best_counts() -> None:
    best, poor = SENTENCE, "a dog on a beach"
    for measure in (
        meteor,
        bleu,
        lambda *pair: rouge(*pair)["ROUGE-1"],
        lambda *pair: rouge(*pair)["ROUGE-L"],
    ):
        both = measure([SENTENCE], [[poor, best]])[0]
        assert both == pytest.approx(measure([SENTENCE], [[best]])[0])
        assert both > measure([SENTENCE], [[poor]])[0]


def test_text_features_are_unit_vectors_that_tell_scenes_apart(
    bundle: Bundle, engine: Engine, shown: list[Scene]
) -> None:
    features = TextFeatures(bundle, engine)
    said = [captions(scene) for scene in shown]
    pooled = features([several[0] for several in said])
    np.testing.assert_allclose(np.linalg.norm(pooled, axis=1), 1.0, atol=1e-4)
    np.testing.assert_allclose(features.mean([[several[0]] * 3 for several in said]), pooled, atol=1e-5)
    decoded, references = (
        features([several[1] for several in said]),
        features.mean([several[2:] for several in said]),
    )
    assert two_way_identification(decoded, references).mean() > 0.85
    shuffled = np.random.default_rng(0).permutation(len(said))
    other = two_way_identification(decoded[shuffled], references)
    assert 0.3 < other.mean() < 0.7


def test_text_features_need_the_vocabulary(bundle: Bundle, engine: Engine) -> None:
    with pytest.raises(InputError, match="no tokenizers/clip"):
        TextFeatures(replace(bundle, tokenizers={}), engine)


@pytest.mark.parametrize(
    ("references", "problem"),
    [([], "1 captions, but references for 0"), ([[]], "one at least"), (["a"], "one at least")],
)
def test_refuses_references_that_do_not_pair(references: list, problem: str) -> None:
    for measure in (meteor, rouge, bleu):
        with pytest.raises(ValueError, match=problem):
            measure(["a"], references)

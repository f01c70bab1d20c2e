"""Captions: short, plain, and clear about kind and colour."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from unibrain_rt.export.phantom import phrases
from unibrain_rt.export.phantom.scenes import COLOURS, KINDS, Scene


def test_vocabulary_is_complete_and_small(sampled: list[Scene]) -> None:
    vocabulary = phrases.vocabulary()
    assert list(vocabulary) == sorted(set(vocabulary))
    assert len(vocabulary) < 120
    told = {word for scene in sampled for caption in phrases.captions(scene) for word in caption.split()}
    assert told == set(vocabulary)


def test_captions_are_several_short_and_deterministic(sampled: list[Scene]) -> None:
    for scene in sampled[:300]:
        told = phrases.captions(scene)
        assert told == phrases.captions(scene)
        assert len(set(told)) >= 3
        for caption in told:
            assert caption == caption.lower().strip()
            assert caption.replace(" ", "").isalpha()
            assert 4 <= len(caption.split()) <= 13


def test_captions_name_the_kind_and_the_colour_and_no_other(sampled: list[Scene]) -> None:
    for scene in sampled[:600]:
        for caption in phrases.captions(scene):
            words = set(caption.split())
            named = [kind for kind in KINDS if words & set(phrases.kind_words(kind))]
            assert named == [scene.kind]
            painted = [colour for colour in COLOURS if phrases.colour_word(colour) in words]
            assert painted == [scene.colour]


def test_kind_words_are_disjoint() -> None:
    for a, b in combinations(KINDS, 2):
        assert not set(phrases.kind_words(a)) & set(phrases.kind_words(b))


def test_unknown_kinds_and_colours_have_no_word() -> None:
    with pytest.raises(KeyError, match="dragon"):
        phrases.kind_words("dragon")
    with pytest.raises(KeyError, match="beige"):
        phrases.colour_word("beige")


def test_a_caption_reads_well(plain: Scene) -> None:
    assert phrases.captions(plain)[0] == "a large face with a red hat in the middle by a wall"
    fish = replace(plain, kind="fish", colour="orange", count=2, background="night")
    assert phrases.captions(fish)[1] == "there are two orange fish at night"
    assert phrases.captions(replace(fish, count=1))[1] == "there is an orange fish at night"


def test_what_a_caption_names_is_read_off_its_words(plain: Scene) -> None:
    for caption in phrases.captions(plain):
        assert phrases.kinds_named(caption) == {plain.kind}
        assert phrases.colours_named(caption) == {plain.colour}
    assert phrases.kinds_named("two red cars and a housefish") == {"car"}
    assert phrases.colours_named("a reddish thing") == set()
    assert phrases.kinds_named("") == phrases.colours_named("") == set()

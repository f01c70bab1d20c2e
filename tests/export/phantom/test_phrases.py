"""Captions: short, plain, and clear about kind and colour."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

from unibrain_rt.export.phantom import phrases
from unibrain_rt.export.phantom.scenes import COLOURS, KINDS, Scene


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
            named = [kind for kind in KINDS if words & set(phrases.KIND_WORDS[kind])]
            assert named == [scene.kind]
            painted = [colour for colour in COLOURS if colour in words]
            assert painted == [scene.colour]


def test_kind_words_are_disjoint() -> None:
    for a, b in combinations(KINDS, 2):
        assert not set(phrases.KIND_WORDS[a]) & set(phrases.KIND_WORDS[b])


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

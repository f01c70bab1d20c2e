"""What is said of a scene: captions in plain words, and the words by which they tell kind and colour."""

from __future__ import annotations

import re
from functools import lru_cache

from unibrain_rt.export.phantom.scenes import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    KINDS,
    LIGHTINGS,
    POSITIONS,
    SIZES,
    Scene,
)

#: How a caption names a kind, one and many; the colour goes where {} stands.
_NOUNS: dict[str, tuple[str, str]] = {
    "face": ("face with a {} hat", "faces with {} hats"),
    "word": ("word in {} letters", "words in {} letters"),
    "place": ("{} house", "{} houses"),
    "body": ("person in a {} shirt", "people in {} shirts"),
    "ball": ("{} ball", "{} balls"),
    "cup": ("{} cup", "{} cups"),
    "car": ("{} car", "{} cars"),
    "tree": ("{} tree", "{} trees"),
    "fish": ("{} fish", "{} fish"),
    "flower": ("{} flower", "{} flowers"),
}
_KIND_WORDS: dict[str, tuple[str, ...]] = {
    **{kind: (kind, kind + "s") for kind in ("face", "word", "ball", "cup", "car", "tree", "flower")},
    "place": ("house", "houses"),
    "body": ("person", "people"),
    "fish": ("fish",),
}
_NUMBERS = {2: "two", 3: "three"}
_SIZE_WORDS = {"small": ("small", "little"), "medium": ("", ""), "large": ("large", "big")}
_WHERE = {
    "left": "on the left",
    "middle": "in the middle",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
}
_SETTING = {
    "wall": "by a wall",
    "grass": "on the grass",
    "beach": "on the beach",
    "night": "at night",
    "snow": "in the snow",
    "sunset": "at sunset",
}
_LIGHT = {
    "bright": "in bright light",
    "dim": "in dim light",
    "left": "with light from one side",
    "right": "with light from one side",
}


def captions(scene: Scene) -> tuple[str, ...]:
    """Five phrasings, lower case, no punctuation, 4 to 13 words; each names the kind and the colour."""
    noun = _NOUNS[scene.kind][scene.count > 1].format(scene.colour)
    large, big = _SIZE_WORDS[scene.size]

    def thing(adjective: str) -> str:
        phrase = f"{adjective} {noun}".strip()
        article = _NUMBERS.get(scene.count) or ("an" if phrase[0] in "aeiou" else "a")
        return f"{article} {phrase}"

    verb = "is" if scene.count == 1 else "are"
    where, setting, light = _WHERE[scene.position], _SETTING[scene.background], _LIGHT[scene.lighting]
    return (
        f"{thing(large)} {where} {setting}",
        f"there {verb} {thing('')} {setting}",
        f"{thing(big)} {light}",
        f"a picture of {thing('')} {where}",
        f"{setting} there {verb} {thing(big)}",
    )


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Every word that a caption may hold, sorted."""
    found: set[str] = set()
    # Kind, colour, size and number make words together; place, setting and light only add their own phrase,
    # so that it is enough to step through those side by side.
    others = [(tuple(POSITIONS)[i % 5], tuple(BACKGROUNDS)[i % 6], tuple(LIGHTINGS)[i % 4]) for i in range(6)]
    for kind in KINDS:
        for colour in COLOURS:
            for size in SIZES:
                for count in COUNTS:
                    for where, background, lighting in others:
                        scene = Scene(kind, colour, where, size, count, background, lighting)
                        found.update(" ".join(captions(scene)).split())
    return tuple(sorted(found))


def kind_words(kind: str) -> tuple[str, ...]:
    """The words, one and many, by which a caption names this kind and no other."""
    return _KIND_WORDS[kind]


def colour_word(colour: str) -> str:
    """The word by which a caption names this colour and no other."""
    if colour not in COLOURS:
        raise KeyError(colour)
    return colour


def kinds_named(caption: str) -> frozenset[str]:
    """The kinds that a caption, ours or a decoder's, speaks of."""
    words = set(re.findall(r"[a-z]+", caption))
    return frozenset(kind for kind in KINDS if words & set(kind_words(kind)))


def colours_named(caption: str) -> frozenset[str]:
    """The colours that a caption speaks of."""
    words = set(re.findall(r"[a-z]+", caption))
    return frozenset(colour for colour in COLOURS if colour_word(colour) in words)

"""What is said of a scene: captions in plain words, and the kinds and colours that a caption names."""

from __future__ import annotations

import re

from unibrain_rt.export.phantom.scenes import COLOURS, KINDS, Scene

#: How a caption names one thing of a kind, and several; the colour stands in the place of {}.
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
#: The words by which a caption names this kind and no other.
KIND_WORDS: dict[str, tuple[str, ...]] = {
    **{kind: (kind, kind + "s") for kind in ("face", "word", "ball", "cup", "car", "tree", "flower")},
    "place": ("house", "houses"),
    "body": ("person", "people"),
    "fish": ("fish",),
}
_NUMBERS = {2: "two", 3: "three"}
#: Two words a size, so that captions differ.
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


def kinds_named(caption: str) -> frozenset[str]:
    """The kinds that a caption, ours or a decoder's, speaks of."""
    return frozenset(kind for kind in KINDS if _words(caption) & set(KIND_WORDS[kind]))


def colours_named(caption: str) -> frozenset[str]:
    """The colours that a caption speaks of; each is called as in `COLOURS`."""
    return frozenset(_words(caption) & COLOURS.keys())


def _words(caption: str) -> set[str]:
    return set(re.findall(r"[a-z]+", caption))

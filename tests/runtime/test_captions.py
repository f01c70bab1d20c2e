from __future__ import annotations

import json
import random

import numpy as np
import pytest

from unibrain_rt.captions import CaptionOptions, Detokenizer, greedy, remove_duplicates, sample
from unibrain_rt.errors import BundleError, InputError

TEXTS = [
    "a man riding a wave on top of a surfboard",
    "A dog's ball; it's 3.5 m away, isn't it?",
    "un café près de la gare, naïve façade",
    "日本語の看板 и вывеска 🐶🍕",
    "two  blanks,\ta tab\nand a new line ",
]


# Token choice


def test_greedy_takes_the_likeliest_and_the_lowest_of_equals():
    assert greedy(np.array([0.0, 3.0, 1.0, 3.0], dtype=np.float32)) == 1
    assert greedy(np.array([-1.0, -2.0], dtype=np.float16)) == 0


def test_temperature_zero_is_greedy_and_draws_nothing():
    rng = np.random.default_rng(0)
    state = rng.bit_generator.state
    assert sample(np.array([0.0, 2.0, 1.0]), 0.0, 0.5, rng) == 1
    assert rng.bit_generator.state == state


def frequencies(logits, temperature, top_p, draws=8_000):
    rng = np.random.Generator(np.random.Philox(key=3))
    chosen = [sample(logits, temperature, top_p, rng) for _ in range(draws)]
    return np.bincount(chosen, minlength=logits.size) / draws


def test_sampling_follows_the_softmax():
    probabilities = np.array([0.1, 0.4, 0.05, 0.3, 0.15])
    logits = (np.log(probabilities) + 5.0).astype(np.float32)
    np.testing.assert_allclose(frequencies(logits, 1.0, 1.0), probabilities, atol=0.025)
    sharper = probabilities**2 / (probabilities**2).sum()
    np.testing.assert_allclose(frequencies(logits, 0.5, 1.0), sharper, atol=0.025)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.05, [1]), (0.39, [1]), (0.45, [1, 3]), (0.71, [1, 3, 4]), (0.99, [0, 1, 2, 3, 4])]
)
def test_the_nucleus_is_the_smallest_that_reaches_top_p(top_p, kept):
    probabilities = np.array([0.1, 0.4, 0.05, 0.3, 0.15])
    expected = np.zeros(5)
    expected[kept] = probabilities[kept] / probabilities[kept].sum()
    found = frequencies(np.log(probabilities), 1.0, top_p)
    np.testing.assert_array_equal(found > 0, expected > 0)
    np.testing.assert_allclose(found, expected, atol=0.025)


def test_sampling_repeats_with_its_generator():
    logits = np.random.default_rng(1).standard_normal(500)
    first, second = (
        [sample(logits, 1.0, 0.9, rng) for _ in range(20)]
        for rng in (np.random.default_rng(7), np.random.default_rng(7))
    )
    assert first == second


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-3])
def test_a_tiny_temperature_is_greedy_in_effect(temperature):
    assert sample(np.array([1.0, 50.0, 2.0]), temperature, 1.0, np.random.default_rng(0)) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite(bad):
    logits = np.array([0.0, bad, 1.0])
    with pytest.raises(BundleError, match="finite"):
        greedy(logits)
    with pytest.raises(BundleError, match="finite"):
        sample(logits, 1.0, 0.9, np.random.default_rng(0))


def test_caption_options():
    assert CaptionOptions() == CaptionOptions(temperature=0.0, top_p=1.0, max_tokens=30)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0.0}, "top-p"),
        ({"top_p": 1.1}, "top-p"),
        ({"top_p": float("nan")}, "top-p"),
        ({"max_tokens": 0}, "max tokens"),
        ({"max_tokens": 2.0}, "max tokens"),
        ({"max_tokens": True}, "max tokens"),
    ],
)
def test_bad_caption_options(wrong, message):
    with pytest.raises(InputError, match=message):
        CaptionOptions(**wrong)


# Tokens to text


@pytest.fixture
def small(tmp_path):
    """Six tokens: a word after a blank, a word, the two bytes of é, a new line, GPT-2's own special."""
    write(tmp_path, {"dog": 1, "Ġa": 0, "Ã": 2, "©": 3, "Ċ": 4, "<|endoftext|>": 5})
    return Detokenizer.load(tmp_path)


def write(folder, vocabulary):
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")


def test_special_tokens_follow_the_vocabulary(small):
    assert (small.pad, small.bos, small.eos) == (6, 7, 8)


def test_text_of_a_small_vocabulary(small):
    assert small.text([]) == ""
    assert small.text([7, 0, 0, 1, 2, 3, 8, 6, 6]) == "a adogé"
    assert small.text([0, 4, 4, 0, 4]) == "a a"  # white space is single blanks, none at the ends
    assert small.text([1, 5, 1]) == "dogdog"
    assert small.text([1, 3]) == "dog\ufffd"  # half a character
    assert small.text(np.array([1, 1])) == "dogdog"


@pytest.mark.parametrize("index", [-1, 9])
def test_a_token_outside_the_vocabulary(small, index):
    with pytest.raises(BundleError, match=f"token {index} "):
        small.text([index])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('["a"]', "must map"),
        ("{}", "must map"),
        ('{"a": "0"}', "has id '0'"),
        ('{"a": 0.0}', "has id 0.0"),
        ('{"a": true}', "has id True"),
        ('{"a": null}', "has id None"),
        ('{"a": -1}', "has id -1"),
        ('{"a": 0, "b": 2}', "has id 2"),
        ('{"a": 0, "b": 0}', "two tokens"),
        ('{"a b": 0}', "byte-level"),
        ('{"\\u65e5": 0}', "byte-level"),
    ],
)
def test_a_vocabulary_that_is_none(tmp_path, content, message):
    (tmp_path / "vocab.json").write_text(content, encoding="utf-8")
    with pytest.raises(BundleError, match=message) as caught:
        Detokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_that_is_not_utf_8(tmp_path):
    (tmp_path / "vocab.json").write_bytes(b'{"\xff": 0}')
    with pytest.raises(BundleError, match="not valid JSON"):
        Detokenizer.load(tmp_path)


def test_a_missing_vocabulary(tmp_path):
    with pytest.raises(BundleError, match=r"vocab\.json: cannot be read \(No such file"):
        Detokenizer.load(tmp_path)


@pytest.fixture(scope="module")
def gpt2(golden_dir):
    return Detokenizer.load(golden_dir / "tokenizers" / "gpt2")


@pytest.fixture(scope="module")
def transformers_gpt2(golden_dir):
    transformers = pytest.importorskip("transformers")
    folder = golden_dir / "tokenizers" / "gpt2"
    return transformers.GPT2Tokenizer(vocab_file=folder / "vocab.json", merges_file=folder / "merges.txt")


def test_special_tokens_of_the_published_vocabulary(gpt2):
    assert (gpt2.pad, gpt2.bos, gpt2.eos) == (50257, 50258, 50259)


def test_every_byte_has_a_token(gpt2):
    assert {piece for piece in gpt2.pieces if len(piece) == 1} == {bytes([byte]) for byte in range(256)}


def test_texts_survive_transformers_tokenizer(gpt2, transformers_gpt2):
    for text in TEXTS:
        ids = transformers_gpt2.encode(text)
        assert gpt2.text([gpt2.bos, *ids, gpt2.eos]) == " ".join(text.split())


def test_random_tokens_agree_with_transformers(gpt2, transformers_gpt2):
    rng = np.random.default_rng(0)
    for _ in range(200):
        ids = rng.integers(0, 50257, 30).tolist()
        decoded = transformers_gpt2.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert gpt2.text(ids) == " ".join(decoded.split())


def test_golden_first_greedy_token(golden_dir):
    safetensors = pytest.importorskip("safetensors.numpy")
    golden = safetensors.load_file(golden_dir / "golden.safetensors")
    for row in range(2):
        assert golden["optimus.decoder.input_ids"][row, 0] == 50258  # so the first logits follow <BOS>
        logits = golden["optimus.decoder.logits_first_position"][row]
        assert greedy(logits) == golden["optimus.decoder.greedy_tokens"][row, 1]


# Repetitions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("a dog on grass", "a dog on grass"),
        ("  a   dog \t on grass ", "a dog on grass"),
        # sentences
        ("A dog on grass. A dog on grass.", "A dog on grass."),
        ("A dog on grass. a  DOG on grass!", "A dog on grass."),
        ("A dog. A cat. A dog. A bird. A cat.", "A dog. A cat. A bird."),
        ("A dog . A dog .", "A dog ."),
        ("a dog\na dog\na cat", "a dog a cat"),
        ("A dog? A dog! A dog...", "A dog?"),
        ("A dog. A dog on grass.", "A dog. A dog on grass."),  # not equal, both finished
        ("A dog on grass. A dog on", "A dog on grass."),  # cut off while it repeats itself
        ("A dog on grass. A cat on", "A dog on grass. A cat on"),
        ("It is 3.5 m high. It is 3.5 m wide.", "It is 3.5 m high. It is 3.5 m wide."),
        # runs of words
        ("a dog a dog on grass", "a dog on grass"),
        ("A dog a dog a dog a dog.", "A dog."),
        ("a man, a man on a horse", "a man on a horse"),
        ("a man riding a wave a man riding a wave", "a man riding a wave"),
        ("a man on a horse on a horse on a horse", "a man on a horse"),
        ("a red car and a red truck", "a red car and a red truck"),
        ("side by side", "side by side"),
        # single words
        ("a very very tall tower", "a very very tall tower"),
        ("a dog dog dog dog on grass", "a dog on grass"),
        ("grass grass grass, and a dog", "grass, and a dog"),
        ("ha ha ha ha", "ha"),
        # what is left meets a new neighbour
        ("a dog\na dog on grass", "a dog on grass"),
        ("A dog a dog. A dog.", "A dog."),
        (". . .", "."),
    ],
)
def test_repetitions_are_removed(text, expected):
    assert remove_duplicates(text) == expected


def test_removing_repetitions_twice_changes_nothing():
    generator = random.Random(0)
    pieces = ["a", "A", "dog", "dog,", "cat", ".", "dog.", "!", "\n", ",", "cat?", "3.5"]
    for _ in range(3000):
        text = " ".join(generator.choices(pieces, k=generator.randrange(1, 20)))
        once = remove_duplicates(text)
        assert remove_duplicates(once) == once, text
        assert len(once) <= len(text)
        assert {word.strip(".,!?").lower() for word in once.split()} >= {
            word.strip(".,!?").lower() for word in text.split() if word.strip(".,!?")
        }, text  # no word is lost altogether

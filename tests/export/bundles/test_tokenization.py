from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import BertTokenizer, CLIPTokenizer, GPT2Tokenizer

from unibrain_rt.errors import InputError
from unibrain_rt.export.bundles.tokenization import bert_ids, clip_ids, gpt2_ids
from unibrain_rt.export.phantom.phrases import captions
from unibrain_rt.export.phantom.scenes import scenes
from unibrain_rt.export.phantom.tokenizers import write_tokenizers

TEXTS = [
    *(caption for scene in scenes("test", 40, 0) for caption in captions(scene)),
    "",
    "A  Dog,\tisn't\nhere... 42 CATS!",
    "Crème brûlée — naïve café №5",
    "a very " * 30,
]


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Learned from words with capitals, digits and accents, so that hardly anything is unknown."""
    folder = tmp_path_factory.mktemp("vocabularies")
    write_tokenizers(folder, [*TEXTS, *(text.lower() for text in TEXTS)])
    return folder


def test_clip_ids_are_those_of_transformers(vocabularies: Path) -> None:
    folder = vocabularies / "clip"
    theirs = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token="<|endoftext|>")(
        TEXTS, padding="max_length", truncation=True, max_length=24
    )["input_ids"]
    np.testing.assert_array_equal(clip_ids(folder, TEXTS, 24), theirs)


def test_bert_ids_are_those_of_transformers(vocabularies: Path) -> None:
    folder = vocabularies / "bert"
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), do_lower_case=True)
    theirs = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=24)["input_ids"]
    np.testing.assert_array_equal(bert_ids(folder, TEXTS, 24), theirs)


def test_gpt2_ids_are_those_of_transformers_between_optimus_tokens(vocabularies: Path) -> None:
    folder = vocabularies / "gpt2"
    tokenizer = GPT2Tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    pad = len(json.loads((folder / "vocab.json").read_text("utf-8")))
    for row, text in zip(gpt2_ids(folder, TEXTS, 24), TEXTS, strict=True):
        inner = tokenizer(text)["input_ids"][:22]
        assert row.tolist() == [pad + 1, *inner, pad + 2, *[pad] * (22 - len(inner))]


def test_a_vocabulary_without_its_special_tokens_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("a\nb\n", "utf-8")
    with pytest.raises(InputError, match=r"no \[CLS\]"):
        bert_ids(tmp_path, ["a"], 4)
    with pytest.raises(InputError, match=r"vocab\.json and merges\.txt missing"):
        clip_ids(tmp_path, ["a"], 4)


def test_targets_are_encoded_without_torch() -> None:
    code = "import sys, unibrain_rt.export.subjects.encoders; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr

"""The phantom's three vocabularies, in the files that CLIP, BERT and GPT-2 were published with.

They are learned from the phantom's captions, so that what reads the real vocabularies serves the phantom too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, normalizers, pre_tokenizers, trainers

BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CLIP_SPECIALS = ("<|startoftext|>", "<|endoftext|>")


def write_tokenizers(folder: Path, captions: Sequence[str]) -> None:
    """Learn the vocabularies and write ``clip/``, ``bert/`` and ``gpt2/`` below ``folder``."""
    for name in ("clip", "bert", "gpt2"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    words = sorted(
        {word for caption in captions for word in caption.replace(",", " ,").replace(".", " .").split()}
    )
    (folder / "bert" / "vocab.txt").write_text("\n".join((*BERT_SPECIALS, *words)) + "\n", encoding="utf-8")

    gpt2 = ByteLevelBPETokenizer()
    gpt2.train_from_iterator(captions, vocab_size=2000, min_frequency=1, show_progress=False)
    gpt2.save_model(str(folder / "gpt2"))

    clip = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    clip.normalizer = normalizers.Lowercase()
    clip.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        show_progress=False,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    clip.train_from_iterator(captions, trainer)
    clip.model.save(str(folder / "clip"))
    _finish_clip(folder / "clip")


def vocabulary_size(folder: Path) -> int:
    """Number of entries of a vocabulary, without those that Optimus adds to GPT-2's."""
    if (folder / "vocab.json").is_file():
        return len(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
    return len((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())


def _finish_clip(folder: Path) -> None:
    """Number CLIP's tokens anew: the trainer numbers single letters in another order every time.

    As in the published vocabulary, letters come first, then what the merges make in their order, and the two
    special tokens last: the context encoder takes the largest id as the end.
    """
    path = folder / "vocab.json"
    trained = json.loads(path.read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merged = [line.replace(" ", "") for line in lines if not line.startswith("#version")]
    letters = sorted(trained.keys() - set(merged))
    tokens = dict.fromkeys((*letters, *merged, *CLIP_SPECIALS))
    vocabulary = {token: place for place, token in enumerate(tokens)}
    path.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")

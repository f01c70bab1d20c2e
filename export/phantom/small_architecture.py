"""The phantom's sizes: the published architecture, small enough to train on a laptop and ship in a wheel."""

from __future__ import annotations

from pathlib import Path

from unibrain_rt.export.bundles.architecture import Architecture
from unibrain_rt.export.phantom.tokenizers import vocabulary_size

IMAGE_SIZE = 64
CAPTION_TOKENS = 20


def phantom_architecture(tokenizers: Path) -> Architecture:
    """The sizes; vocabulary sizes are those of the ``tokenizers`` folder."""
    clip_words, bert_words, gpt2_words = (
        vocabulary_size(tokenizers / name) for name in ("clip", "bert", "gpt2")
    )
    transformer = {
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    return Architecture.from_mapping(
        {
            "unet": {
                "latent_channels": 8,
                "model_channels": 64,
                "channel_mult": [1, 2],
                "num_res_blocks": [1, 1],
                "attention_levels": [False, True],
                "num_heads": 4,
                "context_dim": 64,
                "text_latent_dim": 64,
                "text_second_dim": 2,
            },
            "autokl": {
                "channels": 32,
                "channel_mult": [1, 1, 2, 2],
                "num_res_blocks": 1,
                "latent_channels": 8,
                "image_size": IMAGE_SIZE,
            },
            "clip": {
                "projection_dim": 64,
                "text": {
                    **transformer,
                    "vocab_size": clip_words,
                    "max_position_embeddings": CAPTION_TOKENS,
                    "bos_token_id": clip_words - 2,
                    "eos_token_id": clip_words - 1,
                    "pad_token_id": clip_words - 1,
                },
                "vision": {**transformer, "image_size": IMAGE_SIZE, "patch_size": 16},
            },
            "optimus": {
                "latent_size": 64,
                "encoder": {
                    **transformer,
                    "hidden_size": 128,
                    "intermediate_size": 512,
                    "num_hidden_layers": 3,
                    "max_position_embeddings": 32,
                    "vocab_size": bert_words,
                },
                "decoder": {
                    "n_embd": 128,
                    "n_layer": 3,
                    "n_head": 4,
                    "n_positions": 32,
                    "vocab_size": gpt2_words + 3,
                },
            },
        },
        "phantom",
    )

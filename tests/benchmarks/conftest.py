"""The smallest sizes that have every kind of block."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

_CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSON file of sizes; a checkpoint of them has half a million parameters."""
    sizes: dict[str, Any] = {
        "unet": {
            "model_channels": 32,
            "channel_mult": [1, 1],
            "num_res_blocks": [1, 1],
            "attention_levels": [True, False],
            "num_heads": 2,
            "context_dim": 32,
            "text_latent_dim": 32,
            "text_second_dim": 4,
        },
        "autokl": {"channels": 32, "channel_mult": [1, 1], "num_res_blocks": 1, "image_size": 16},
        "clip": {
            "projection_dim": 32,
            "text": {**_CLIP, "vocab_size": 50, "max_position_embeddings": 16},
            "vision": {**_CLIP, "image_size": 16, "patch_size": 8},
        },
        "optimus": {
            "latent_size": 32,
            "encoder": {**_CLIP, "vocab_size": 50, "max_position_embeddings": 16},
            "decoder": {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16, "vocab_size": 53},
        },
    }
    path = tmp_path_factory.mktemp("sizes") / "config.json"
    path.write_text(json.dumps(sizes), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_architecture(tiny_config: Path) -> Any:
    """The sizes of ``tiny_config``."""
    pytest.importorskip("torch")
    from unibrain_rt.export.bundles.architecture import Architecture

    return Architecture.load(tiny_config)


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_architecture: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random checkpoint of these sizes."""
    from unibrain_rt.benchmarks.random_checkpoint import write_checkpoint

    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder, tiny_architecture)
    return folder

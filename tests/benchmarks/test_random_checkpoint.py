"""Random checkpoints: the published layout, and values that keep activations sane."""

from __future__ import annotations

import re

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")

from safetensors import safe_open  # noqa: E402

from unibrain_rt.benchmarks import random_checkpoint  # noqa: E402
from unibrain_rt.benchmarks.random_checkpoint import (  # noqa: E402
    MAIN,
    SIDE_FILES,
    blocks_of,
    tensor_shapes,
    write_checkpoint,
)
from unibrain_rt.captions import Detokenizer  # noqa: E402
from unibrain_rt.errors import InputError  # noqa: E402
from unibrain_rt.export.bundles import checkpoint as checkpoints  # noqa: E402
from unibrain_rt.export.bundles.architecture import Architecture  # noqa: E402
from unibrain_rt.export.bundles.checkpoint import check, open_checkpoint  # noqa: E402
from unibrain_rt.export.bundles.tokenization import gpt2_ids  # noqa: E402

# What the published files hold that is no weight: the schedule's tables and GPT-2's causal masks.
NO_WEIGHT = re.compile(r"[a-z0-9_]+|vae\.text\.decoder\..*\.attn\.bias")


def test_names_and_shapes_are_those_of_the_golden_checkpoint(golden_dir):
    shapes = tensor_shapes(Architecture.load(golden_dir / "config.json"))
    golden = torch.load(golden_dir / "vd-four-flow-v1-0.pth", mmap=True, weights_only=True)
    wanted = {key: tuple(value.shape) for key, value in golden.items() if not NO_WEIGHT.fullmatch(key)}
    assert shapes == wanted


def test_published_size(report):
    count = sum(int(np.prod(shape)) for shape in tensor_shapes(Architecture()).values())
    report(f"random checkpoint: {count / 1e9:.2f} G parameters at the published size")
    assert 3.7e9 < count < 3.9e9


@pytest.mark.parametrize(("dtype", "split"), [("fp32", False), ("fp16", True)])
def test_written_checkpoints_are_read_back(tmp_path, tiny_architecture, dtype, split):
    written = write_checkpoint(tmp_path, tiny_architecture, dtype=dtype, split=split)
    assert set(written) == {MAIN, *(SIDE_FILES if split else ())}
    assert written == {name: (tmp_path / name).stat().st_size for name in written}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*written, "config.json", "tokenizers"])
    found = open_checkpoint(tmp_path)
    check(found)
    assert found.has_captions
    assert found.architecture == tiny_architecture
    key = "diffuser.text.data_blocks.1.0.in_layers.2.weight"
    stored = found.tensor(key)
    expected = np.concatenate([block.copy() for block in blocks_of(key, found.shape(key))])
    assert stored.dtype is {"fp32": torch.float32, "fp16": torch.float16}[dtype]
    np.testing.assert_array_equal(stored.numpy().ravel(), expected.astype(stored.numpy().dtype))
    if split:
        with safe_open(tmp_path / "kl-f8.safetensors", "pt") as file:
            assert not any(name.startswith("vae.image.") for name in file.keys())  # noqa: SIM118


def test_values_are_scaled_by_fan_in(tiny_architecture):
    shapes = tensor_shapes(tiny_architecture)

    def values(name: str) -> np.ndarray:
        return np.concatenate([block.copy() for block in blocks_of(name, shapes[name])])

    assert set(values("diffuser.image.data_blocks.1.0.in_layers.0.weight")) == {1.0}
    assert set(values("diffuser.image.data_blocks.1.0.in_layers.0.bias")) == {0.0}
    for name, fan_in in {
        "diffuser.image.data_blocks.1.0.in_layers.2.weight": 32 * 9,
        "vae.text.decoder.transformer.h.0.mlp.c_proj.weight": 128,
        "vae.text.decoder.transformer.wte.weight": 32,
    }.items():
        drawn = values(name)
        assert drawn.std() * fan_in**0.5 == pytest.approx(1, abs=0.05)
        assert abs(drawn.mean()) * fan_in**0.5 < 0.05
    tied = values("vae.text.decoder.lm_head.weight")
    np.testing.assert_array_equal(tied, values("vae.text.decoder.transformer.wte.weight"))


def test_a_tensor_depends_on_its_name_and_the_seed_alone(monkeypatch):
    def drawn(name: str, seed: int = 0) -> np.ndarray:
        return np.concatenate([block.copy() for block in blocks_of(name, (7, 11), seed)])

    once = drawn("a.weight")
    monkeypatch.setattr(random_checkpoint, "_BLOCK", 10)
    assert max(block.size for block in blocks_of("a.weight", (7, 11))) == 10
    np.testing.assert_array_equal(drawn("a.weight")[:10], once[:10])
    assert not np.array_equal(drawn("b.weight"), once)
    assert not np.array_equal(drawn("a.weight", seed=1), once)


def test_activations_stay_sane(tmp_path, tiny_architecture):
    write_checkpoint(tmp_path, tiny_architecture)
    unet = checkpoints.load_unet(open_checkpoint(tmp_path), torch.float32)
    generator = torch.Generator().manual_seed(0)
    side, clip = tiny_architecture.autokl.latent_size, tiny_architecture.clip
    contexts = {
        name: torch.randn(1, tokens, 32, generator=generator)
        for name, tokens in (("image", clip.image_tokens), ("text", clip.text_tokens))
    }
    for flow, shape in {"image": (1, 4, side, side), "text": (1, 32)}.items():
        with torch.inference_mode():
            noise = unet(flow, torch.randn(shape, generator=generator), torch.tensor([500]), contexts, 0.5)
        assert 0.1 < float(noise.std()) < 10


def test_a_folder_that_holds_a_checkpoint_is_left_alone(tmp_path, tiny_architecture):
    (tmp_path / MAIN).write_bytes(b"mine")
    with pytest.raises(InputError, match="holds a checkpoint already"):
        write_checkpoint(tmp_path, tiny_architecture)
    assert (tmp_path / MAIN).read_bytes() == b"mine"
    done = CliRunner().invoke(random_checkpoint.main, [str(tmp_path)])
    assert done.exit_code == 1
    assert "holds a checkpoint already" in done.output


def test_command(tmp_path, tiny_config):
    done = CliRunner().invoke(
        random_checkpoint.main, [str(tmp_path / "out"), "--config", str(tiny_config), "--dtype", "fp16"]
    )
    assert done.exit_code == 0, done.output
    assert f"{MAIN}: 0.00 GB" in done.output


@pytest.mark.parametrize("size", [40, 257, 3000, 50257])
def test_the_vocabulary_has_the_size_asked_for(tmp_path, size):
    random_checkpoint.write_vocabulary(tmp_path, size)
    detokenizer = Detokenizer.load(tmp_path)
    assert len(detokenizer.pieces) == size
    assert len(set(detokenizer.pieces)) == size
    if size > 300:
        ids = gpt2_ids(tmp_path, ["a red ball", ""], 20)
        assert [detokenizer.text(row.tolist()) for row in ids] == ["a red ball", ""]

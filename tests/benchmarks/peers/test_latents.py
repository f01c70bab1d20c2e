"""Captions and pictures from latents: every implementation gives the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("onnxruntime")

from unibrain_rt.benchmarks.peers.peer import Peer, Source, Work
from unibrain_rt.benchmarks.peers.registry import LATENT_PEERS, TORCH_SETTINGS, peer_class, work_bytes


def run(name: str, source: Source) -> dict[str, np.ndarray]:
    """What each variant of a peer gives."""
    peer: Peer = peer_class(name, source.flow)(source)
    peer.load()
    found = {}
    for variant in peer.variants:
        peer.step(variant)
        found[variant] = peer.output()
    return found


def test_computing_all_tokens_anew_gives_those_of_the_cache(tiny_checkpoint: Path) -> None:
    found = run("torch", Source("caption", 1, tiny_checkpoint))
    assert found["recompute"].tolist() == found["cached"].tolist()
    # As many as the tiny GPT-2 has places for, one of which is the latent's; the first is given.
    assert len(found["cached"]) == 16


def test_half_precision_is_close(tiny_checkpoint: Path) -> None:
    full, half = (
        run(name, Source("autokl", 1, tiny_checkpoint))["whole"] for name in ("torch", "torch-bf16")
    )
    error = np.linalg.norm(half - full) / np.linalg.norm(full)
    assert 1e-5 < error < 0.1


@pytest.mark.parametrize("work", ["caption", "autokl"])
def test_engines_give_what_torch_does(work: Work, golden_dir: Path, golden_bundle: Path) -> None:
    source = Source(work, 1, golden_dir, golden_dir / "config.json", golden_bundle)
    ours, theirs = run("onnxruntime", source), run("torch", source)
    key = "cached" if work == "caption" else "whole"
    np.testing.assert_allclose(ours[key], theirs[key], atol=1e-4)


def test_every_work_has_every_engine_and_torch_in_every_setting() -> None:
    torch = {f"torch{suffix}" for suffix in TORCH_SETTINGS}
    for peers in LATENT_PEERS.values():
        assert torch | {"onnxruntime", "openvino-fp32", "openvino-bf16"} <= peers.keys()


def test_weights_are_those_of_the_work(tiny_checkpoint: Path) -> None:
    sizes = {work: work_bytes(Source(work, 1, tiny_checkpoint)) for work in ("image", "caption", "autokl")}
    assert len(set(sizes.values())) == 3
    assert all(size > 0 for size in sizes.values())

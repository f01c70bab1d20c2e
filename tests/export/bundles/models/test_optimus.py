"""The caption graph: what it chooses is what the runtime would have chosen from its logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from unibrain_rt.captions import greedy
from unibrain_rt.export.bundles.architecture import OptimusConfig
from unibrain_rt.export.bundles.graphs import optimus_decode
from unibrain_rt.export.bundles.models.optimus import OptimusDecoder
from unibrain_rt.export.bundles.precision import Precision
from unibrain_rt.export.bundles.trace import export_graph

VOCABULARY = 40


@pytest.fixture(scope="module")
def decoder() -> OptimusDecoder:
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 12, "vocab_size": VOCABULARY}
    decoder = OptimusDecoder(OptimusConfig(latent_size=16, encoder={}, decoder=sizes)).eval()
    with torch.no_grad():
        decoder.transformer.wte.weight.mul_(50)
        decoder.lm_head.weight.mul_(20)
        # Every second token is as likely as the one before it.
        decoder.lm_head.weight[1::2] = decoder.lm_head.weight[::2]
    return decoder


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_next_token_is_the_likeliest_the_lowest_of_equals(
    decoder: OptimusDecoder, tmp_path: Path, precision: Precision
) -> None:
    graph = optimus_decode(decoder, 16, slots=10)
    path = export_graph(graph, tmp_path, precision)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_outputs()] == list(graph.outputs)
    types = {node.name: np.float16 if "float16" in node.type else np.float32 for node in session.get_inputs()}
    chosen = []
    for seed in range(4):
        latent = np.random.default_rng(seed).standard_normal((1, 16)).astype(np.float32)
        given = {name: value.numpy() for name, value in graph.example.items()}
        given = {name: array.astype(types[name]) if array.dtype.kind == "f" else array
                 for name, array in (given | {"latent": latent}).items()}  # fmt: skip
        for _ in range(10):
            found = dict(zip(graph.outputs, session.run(None, given), strict=True))
            logits = found["logits"][0]
            assert (found["next_token"].dtype, found["next_token"].shape) == (np.int64, (1,))
            assert np.count_nonzero(logits == logits.max()) >= 2
            chosen.append(int(found["next_token"][0]))
            assert chosen[-1] == greedy(logits)
            given |= {source: found[output] for output, source in graph.feedback.items()}
    assert len(set(chosen)) > 3

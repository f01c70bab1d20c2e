"""What runs many times in a decode: a flow's denoising steps, and GPT-2's tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.captions import CaptionOptions, Detokenizer, greedy, remove_duplicates, sample
from unibrain_rt.engines import GraphSpec, Session
from unibrain_rt.errors import BundleError
from unibrain_rt.samplers import SamplerTable

Float = NDArray[np.float32]
Progress = Callable[[int], None]
"""Called with the number of denoising steps just done."""
CAPTION_FEEDBACK = {
    "next_key_cache": "key_cache",
    "next_value_cache": "value_cache",
    "next_position": "position",
}


class DenoisingLoop:
    """One flow's step graph and the table it runs through. Nothing is computed on the host between steps."""

    def __init__(self, session: Session, table: SamplerTable, modulation: NDArray[Any]) -> None:
        self._session = session
        self._table = table
        self._rows = table.coefficients.astype(np.float32)
        self._modulation = modulation
        self.shape = session.graph.tensor("latent").sized(1)

    def __len__(self) -> int:
        return len(self._rows)

    def run(self, start: Float, noise: Float, progress: Progress | None = None) -> Float:
        """Noise ``start`` to the table's first level and denoise it; both are of ``self.shape``."""
        alpha = self._table.alpha_bar_start
        self._session.write("latent", np.float32(alpha**0.5) * start + np.float32((1 - alpha) ** 0.5) * noise)
        self._session.write("previous_x0", 0.0)
        for row, modulation in zip(self._rows, self._modulation, strict=True):
            self._session.write("coefficients", row)
            self._session.write("modulation", modulation[None])
            self._session.run()
            if progress is not None:
                progress(1)
        return self._session.read("next_latent")


class CaptionWriter:
    """Optimus' GPT-2, one token at a time, from a text latent to a caption."""

    def __init__(self, session: Session, detokenizer: Detokenizer, options: CaptionOptions) -> None:
        self._session = session
        self._detokenizer = detokenizer
        self._options = options
        check_feedback(session.graph, CAPTION_FEEDBACK)
        _, vocabulary = shape_of(session.graph, "logits", 2)
        self._slots = shape_of(session.graph, "key_cache", 4)[2]
        if vocabulary != detokenizer.eos + 1:
            raise BundleError(
                f"tokenizers/gpt2: its vocabulary does not fit the caption graph's {vocabulary} tokens; "
                "export the bundle again"
            )

    def tokens(self, latent: Float, rng: np.random.Generator) -> list[int]:
        """The caption's tokens, <BOS> and <EOS> included, at most ``options.max_tokens``."""
        session, options = self._session, self._options
        session.write("latent", latent)
        session.write("position", 1)
        session.write("key_cache", 0.0)
        session.write("value_cache", 0.0)
        tokens = [self._detokenizer.bos]
        while len(tokens) < min(options.max_tokens, self._slots + 1) and tokens[-1] != self._detokenizer.eos:
            session.write("token", tokens[-1])
            session.run()
            logits = session.read("logits")[0]
            if options.temperature == 0:
                tokens.append(greedy(logits))
            else:
                tokens.append(sample(logits, options.temperature, options.top_p, rng))
        return tokens

    def caption(self, tokens: list[int]) -> str:
        """Text of the tokens, without repeated sentences."""
        return remove_duplicates(self._detokenizer.text(tokens))


def shape_of(graph: GraphSpec, name: str, rank: int) -> tuple[int, ...]:
    """Shape of a tensor, which has to have that many axes."""
    shape = graph.tensor(name).sized(1)
    if len(shape) != rank:
        raise BundleError(
            f"graph {graph.name}: {name} has {len(shape)} axes, not {rank}; export the bundle again"
        )
    return shape


def check_feedback(graph: GraphSpec, wanted: dict[str, str]) -> None:
    """Without it, a loop would start anew at every step and still give numbers."""
    if dict(graph.feedback) != wanted:
        raise BundleError(f"graph {graph.name}: feedback is not {wanted}; export the bundle again")

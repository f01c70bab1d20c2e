"""What runs many times in a decode: a flow's denoising steps, and GPT-2's tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.captions import CaptionOptions, Detokenizer, greedy, remove_duplicates, sample
from unibrain_rt.engines import Call, GraphSpec, NotFiniteError, Session
from unibrain_rt.errors import BundleError
from unibrain_rt.samplers import SamplerTable

Float = NDArray[np.float32]
CAPTION_FEEDBACK = {
    "next_key_cache": "key_cache",
    "next_value_cache": "value_cache",
    "next_position": "position",
}
GREEDY_FEEDBACK = {"next_token": "token"}
"""Of graphs that choose the likeliest token themselves: its logits need not leave the device."""


class DenoisingLoop:
    """One flow's step graph and the table it runs through. Nothing is computed on the host between steps."""

    def __init__(self, session: Session, table: SamplerTable, modulation: NDArray[Any]) -> None:
        self._session = session
        self._rows = table.coefficients.astype(np.float32)
        self._modulation = modulation
        self.shape = session.graph.tensor("latent").sized(1)
        alpha = table.alpha_bar_start
        self.start_coefficients = np.array([alpha**0.5, (1 - alpha) ** 0.5], np.float32)
        """√ᾱ and √(1 − ᾱ), of the table's first level: how much of it is the start, and how much noise."""

    def __len__(self) -> int:
        return len(self._rows)

    def call(self, name: str, starts: Mapping[str, tuple[Session, str]] | None = None) -> Call:
        """All steps, for a program; ``starts`` may name another session's output that ``latent`` begins as."""
        tables = {"coefficients": self._rows, "modulation": self._modulation[:, None]}
        return Call(self._session, len(self), tables, starts=starts or {}, name=name)

    def load(self, start: Float, noise: Float | float) -> None:
        """Noise ``start`` to the table's first level, from where a program denoises it; both are of ``shape``."""
        self.rewind()
        signal, spread = self.start_coefficients
        self._session.write("latent", signal * start + spread * noise)

    def rewind(self) -> None:
        """Begin anew with a latent that is given elsewhere."""
        self._session.rewind()
        self._session.write("previous_x0", 0.0)

    def latent(self) -> Float:
        """What the last program denoised."""
        return self._session.read("next_latent")


class CaptionWriter:
    """Optimus' GPT-2, one token at a time, from a text latent to a caption."""

    def __init__(self, session: Session, detokenizer: Detokenizer, options: CaptionOptions) -> None:
        self._session = session
        self._detokenizer = detokenizer
        self._options = options
        chooses = any(spec.name == "next_token" for spec in session.graph.outputs)
        check_feedback(session.graph, CAPTION_FEEDBACK | (GREEDY_FEEDBACK if chooses else {}))
        self._chosen = chooses and options.temperature == 0
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
        self._restart(latent)
        tokens = [self._detokenizer.bos]
        session.write("token", tokens[-1])
        while len(tokens) < min(options.max_tokens, self._slots + 1) and tokens[-1] != self._detokenizer.eos:
            if not self._chosen:
                session.write("token", tokens[-1])
            session.run()
            tokens.append(self._next(rng))
        if self._chosen and not np.isfinite(session.read("logits")).all():
            # Once for all tokens: what is not finite stays in the cache.
            raise NotFiniteError("the caption decoder", session.graph.name)
        session.rest()
        return tokens

    def logits(self, latent: Float, tokens: Iterable[int]) -> Iterator[Float]:
        """The logits (vocabulary,) after each of ``tokens``, whatever the likeliest one would have been."""
        self._restart(latent)
        for token in tokens:
            self._session.write("token", int(token))
            self._session.run()
            yield self._session.read("logits")[0]

    def _restart(self, latent: Float) -> None:
        self._session.rewind()
        self._session.write("latent", latent)
        self._session.write("position", 1)
        self._session.write("key_cache", 0.0)
        self._session.write("value_cache", 0.0)

    def _next(self, rng: np.random.Generator) -> int:
        if self._chosen:
            return int(self._session.read("next_token")[0])
        logits = self._session.read("logits")[0]
        if not np.isfinite(logits).all():
            raise NotFiniteError("the caption decoder", self._session.graph.name)
        if self._options.temperature == 0:
            return greedy(logits)
        return sample(logits, self._options.temperature, self._options.top_p, rng)

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

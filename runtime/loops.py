"""What runs many times in a decode: a flow's denoising steps, and GPT-2's tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.captions import CaptionOptions, Detokenizer, greedy, remove_duplicates, sample
from unibrain_rt.engines import Call, Engine, GraphSpec, NotFiniteError, Repetition, Session
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
_NO_TOKEN = -1


class DenoisingLoop:
    """One flow's step graph and the table it runs through. Nothing is computed on the host between steps.

    The first step finds a ``previous_x0`` of noughts, whatever an earlier scan left.
    """

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
        initial = {"previous_x0": np.zeros(self.shape, np.float32)}
        return Call(self._session, len(self), tables, starts=starts or {}, initial=initial, name=name)

    def load(self, start: Float, noise: Float | float) -> None:
        """Noise ``start`` to the table's first level, from where a program denoises it; both are of ``shape``."""
        self.rewind()
        signal, spread = self.start_coefficients
        self._session.write("latent", signal * start + spread * noise)

    def rewind(self) -> None:
        """Begin anew with a latent that is given elsewhere."""
        self._session.rewind()

    def latent(self) -> Float:
        """What the last program denoised."""
        return self._session.read("next_latent")


class CaptionWriter:
    """Optimus' GPT-2, one token at a time, from a text latent to a caption."""

    def __init__(
        self, engine: Engine, session: Session, detokenizer: Detokenizer, options: CaptionOptions
    ) -> None:
        self._session = session
        self._detokenizer = detokenizer
        self._options = options
        chooses = any(spec.name == "next_token" for spec in session.graph.outputs)
        check_feedback(session.graph, CAPTION_FEEDBACK | (GREEDY_FEEDBACK if chooses else {}))
        self._chosen = chooses and options.temperature == 0
        _, vocabulary = shape_of(session.graph, "logits", 2)
        slots = shape_of(session.graph, "key_cache", 4)[2]
        if vocabulary != detokenizer.eos + 1:
            raise BundleError(
                f"tokenizers/gpt2: its vocabulary does not fit the caption graph's {vocabulary} tokens; "
                "export the bundle again"
            )
        self._initial = caption_start(session.graph, detokenizer.bos)
        self._at_most = min(options.max_tokens - 1, slots)
        if self._chosen:
            self._likeliest = likeliest_tokens(
                engine, session, detokenizer.bos, end=detokenizer.eos, at_most=self._at_most
            )

    def tokens(self, latent: Float, rng: np.random.Generator) -> list[int]:
        """The caption's tokens, <BOS> and <EOS> included, at most ``options.max_tokens``."""
        session = self._session
        session.write("latent", latent)
        if self._chosen:
            tokens = [self._detokenizer.bos, *self._likeliest.run()]
            # Once for all tokens: what is not finite stays in the cache.
            self._check(session.read("logits"))
        else:
            tokens = self._sampled(rng)
        session.rest()
        return tokens

    def logits(self, latent: Float, tokens: Iterable[int]) -> Iterator[Float]:
        """The logits (vocabulary,) after each of ``tokens``, whatever the likeliest one would have been."""
        self._session.write("latent", latent)
        self._restart()
        for token in tokens:
            self._session.write("token", int(token))
            self._session.run()
            yield self._session.read("logits")[0]

    def _restart(self) -> None:
        self._session.rewind()
        for name, value in self._initial.items():
            self._session.write(name, value)

    def _sampled(self, rng: np.random.Generator) -> list[int]:
        """Token by token, which the host chooses."""
        session, options = self._session, self._options
        self._restart()
        tokens = [self._detokenizer.bos]
        while len(tokens) <= self._at_most and tokens[-1] != self._detokenizer.eos:
            session.write("token", tokens[-1])
            session.run()
            logits = session.read("logits")[0]
            self._check(logits)
            if options.temperature == 0:
                tokens.append(greedy(logits))
            else:
                tokens.append(sample(logits, options.temperature, options.top_p, rng))
        return tokens

    def _check(self, logits: Float) -> None:
        if not np.isfinite(logits).all():
            raise NotFiniteError("the caption decoder", self._session.graph.name)

    def caption(self, tokens: list[int]) -> str:
        """Text of the tokens, without repeated sentences."""
        return remove_duplicates(self._detokenizer.text(tokens))


def caption_start(graph: GraphSpec, token: int) -> dict[str, NDArray[Any]]:
    """What the caption graph begins with: this token, at the place after the latent's, and an empty cache.

    Of graphs that leave the choice to the host, without the token.
    """
    values = {"token": token, "position": 1, "key_cache": 0, "value_cache": 0}
    specs = [spec for spec in graph.inputs if spec.name in graph.roles.carried]
    return {spec.name: np.full(spec.sized(1), values[spec.name], spec.dtype) for spec in specs}


def likeliest_tokens(
    engine: Engine, session: Session, token: int, *, end: int | None, at_most: int
) -> Repetition:
    """The tokens after this one, of a graph that chooses them: up to ``end``, or ``at_most``, with None so many."""
    return engine.repetition(
        session,
        "next_token",
        until=_NO_TOKEN if end is None else end,
        at_most=at_most,
        initial=caption_start(session.graph, token),
    )


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

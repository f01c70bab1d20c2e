"""A small golden file of the phantom, made without an engine: onnx's reference evaluator runs the bundle's graphs.

Guidance, sampler, caption and rounding are written here once more, from their formulas, so that `unibrain-rt verify`
compares two ways to the same numbers. The file stands in the repository as ``tests/golden/phantom.safetensors``:

    python tests/golden/record_phantom.py tests/golden/phantom.safetensors

It takes some minutes, and the same bundle gives the same file up to rounding.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import save_file

from unibrain_rt.bundle import Bundle
from unibrain_rt.export.bundles.tokenization import bert_ids, clip_ids, gpt2_ids
from unibrain_rt.export.subjects.pixels import clip_pixels
from unibrain_rt.flows import CONTEXTS, FLOWS, Flow
from unibrain_rt.samplers import COLUMNS, seeded_noise

Array = NDArray[Any]
CAPTIONS = ("a large red circle on the left in the grass", "three words in purple letters")
PRESET, SUBJECT, SEED = "paper", "sub-01", 7
_CAPTION_TOKENS = 30
_RATIOS = {"context_image": 1.0, "context_text": 0.0, "dual_image_ratio_0.6": 0.6}


class Recorder:
    """The graphs of a bundle, evaluated by onnx, and what is recorded of them."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._graph = cache(lambda name: ReferenceEvaluator(onnx.load(bundle.graph(name).path)))
        self._rng = np.random.default_rng(0)
        self.recorded: dict[str, Array] = {}

    def record(self, voxels: Array) -> dict[str, Array]:
        """All tensors of the golden file; ``voxels`` (V,) are a scan of the subject that is decoded."""
        self._encoders()
        self._caption_decoder()
        self._predicted_noise()
        self._loops()
        self._decode(voxels)
        return {name: np.array(value, order="C") for name, value in self.recorded.items()}

    def _run(self, graph: str, **inputs: Array) -> dict[str, Array]:
        outputs = self._graph(graph).run(None, inputs)
        return dict(zip((spec.name for spec in self._bundle.graph(graph).outputs), outputs, strict=True))

    def _encoders(self) -> None:
        """Two pictures of noise with edges in it, and two captions, through every encoder and AutoKL's decoder."""
        bundle, put = self._bundle, self.recorded
        side = bundle.graph("autokl_encode").tensor("image").sized(1)[-1]
        coarse = self._rng.random((2, 3, 8, 8), dtype=np.float32)
        images = coarse.repeat(side // 8, 2).repeat(side // 8, 3)
        put["autokl.image"] = images
        put["autokl.scaled_latent"] = self._run("autokl_encode", image=images)["latent"]
        scale = np.float32(bundle.architecture["autokl"]["scale_factor"])
        put["autokl.posterior_mean"] = put["autokl.scaled_latent"] / scale
        put["autokl.decoded_from_scaled_latent"] = np.concatenate(
            [
                self._run("autokl_decode", latent=latent[None])["image"]
                for latent in put["autokl.scaled_latent"]
            ]
        )
        put["clip.image.pixel_values"] = clip_pixels(torch.from_numpy(images)).numpy()
        put["clip.image.context"] = self._run("clip_image", pixel_values=put["clip.image.pixel_values"])[
            "context"
        ]
        ids = clip_ids(
            bundle.tokenizers["clip"], CAPTIONS, int(bundle.graph("clip_text").inputs[0].shape[-1])
        )
        put["clip.text.input_ids"] = ids
        put["clip.text.context"] = self._run("clip_text", input_ids=ids)["context"]
        ids = bert_ids(
            bundle.tokenizers["bert"], CAPTIONS, int(bundle.graph("optimus_encode").inputs[0].shape[-1])
        )
        put["optimus.encoder.input_ids"] = ids[
            :, : int((ids != 0).sum(1).max())
        ]  # padded again when it is read
        put["optimus.encoder.latent_mean"] = self._run("optimus_encode", input_ids=ids)["latent"]

    def _caption_decoder(self) -> None:
        put = self.recorded
        latents = put["optimus.encoder.latent_mean"]
        ids = gpt2_ids(self._bundle.tokenizers["gpt2"], CAPTIONS, 9)
        logits = np.stack([self._logits(latent, row) for latent, row in zip(latents, ids, strict=True)])
        put["optimus.decoder.latent"], put["optimus.decoder.input_ids"] = latents, ids
        put["optimus.decoder.logits_first_position"] = logits[:, 0]
        put["optimus.decoder.logits_last_position"] = logits[:, -1]
        tokens = np.full((len(latents), _CAPTION_TOKENS), -1, np.int64)
        for row, latent in zip(tokens, latents, strict=True):
            written = self._greedy(latent)
            row[: len(written)] = written
        put["optimus.decoder.greedy_tokens"] = tokens

    def _logits(self, latent: Array, tokens: Array) -> Array:
        """The logits (tokens, vocabulary) after each of ``tokens``."""
        cache_spec = self._bundle.graph("optimus_decode").tensor("key_cache")
        state = {"position": np.array([1]), "key_cache": np.zeros(cache_spec.sized(1), np.float32)}
        state["value_cache"] = state["key_cache"]
        rows = []
        for token in tokens:
            outputs = self._run("optimus_decode", latent=latent[None], token=np.array([token]), **state)
            rows.append(outputs["logits"][0])
            state = {name: outputs[f"next_{name}"] for name in state}
        return np.stack(rows)

    def _greedy(self, latent: Array) -> list[int]:
        _, bos, eos = gpt2_ids(self._bundle.tokenizers["gpt2"], [""], 3)[0][[2, 0, 1]]
        tokens = [int(bos)]
        while len(tokens) < _CAPTION_TOKENS and tokens[-1] != eos:
            tokens.append(int(self._logits(latent, np.array(tokens))[-1].argmax()))
        return tokens

    def _predicted_noise(self) -> None:
        put = self.recorded
        put["unet.timesteps"] = np.array([81, 621])
        for name in CONTEXTS:
            put[f"unet.context.{name.removesuffix('_context')}"] = put[
                f"clip.{name.removesuffix('_context')}.context"
            ]
        for flow in FLOWS:
            shape = self._bundle.graph(f"unet_{flow}_step").tensor("latent").sized(1)
            latents = self._rng.standard_normal((2, *shape[1:]), dtype=np.float32)
            put[f"unet.{flow}.x"] = latents
            for name, ratio in _RATIOS.items():
                put[f"unet.{flow}.eps.{name}"] = np.concatenate(
                    [
                        self._noise(
                            flow, latents[one], put["unet.timesteps"][one], self._sample_contexts(one), ratio
                        )
                        for one in (slice(0, 1), slice(1, 2))
                    ]
                )

    def _sample_contexts(self, one: slice) -> dict[str, Array]:
        return {
            name: self.recorded[f"unet.context.{name.removesuffix('_context')}"][one] for name in CONTEXTS
        }

    def _noise(
        self, flow: Flow, latent: Array, timestep: Array, contexts: dict[str, Array], image_ratio: float
    ) -> Array:
        """The noise in a latent (1, ...) under contexts (1, L, D): of a step without guidance, x0 = noise = next."""
        row = {"guidance_scale": 1.0, "image_ratio": image_ratio, "x0_from_noise": 1.0, "next_from_x0": 1.0}
        outputs = self._run(
            f"unet_{flow}_step",
            latent=latent.astype(np.float32),
            previous_x0=np.zeros_like(latent, np.float32),
            modulation=self._run("unet_time", timesteps=timestep)[f"{flow}_modulation"],
            coefficients=np.array([row.get(column, 0.0) for column in COLUMNS], np.float32),
            **self._run("unet_context", **{name: value.repeat(2, 0) for name, value in contexts.items()}),
        )
        return outputs["next_latent"]

    def _loops(self) -> None:
        put = self.recorded
        unconditional = dict(zip(CONTEXTS, self._bundle.unconditional_contexts(), strict=True))
        put["ddim.timesteps"] = np.arange(int(50 * 0.75)) * 20 + 1
        for name, value in unconditional.items():
            put[f"ddim.uncond.{name.removesuffix('_context')}"] = value
        starts = {"image": put["autokl.scaled_latent"][:1], "text": put["optimus.encoder.latent_mean"][:1]}
        for flow, ratio in (("image", 0.6), ("text", 0.9)):
            noise = self._rng.standard_normal(starts[flow].shape, dtype=np.float32)
            put[f"ddim.{flow}.x0"], put[f"ddim.{flow}.noise"] = starts[flow], noise
            put[f"ddim.{flow}.image_ratio"] = np.array(ratio, np.float32)
            put[f"ddim.{flow}.output"] = self._ddim(
                "image" if flow == "image" else "text",
                starts[flow],
                noise,
                self._sample_contexts(slice(0, 1)),
                unconditional,
                ratio,
            )

    def _ddim(
        self,
        flow: Flow,
        start: Array,
        noise: Array,
        contexts: dict[str, Array],
        unconditional: dict[str, Array],
        ratio: float,
    ) -> Array:
        """Preset ``paper``: 37 of 50 steps of DDIM (arXiv 2010.02502) at guidance 7.5, noised at timestep 741."""
        alphas = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
        timesteps = self.recorded["ddim.timesteps"]
        latent = np.sqrt(alphas[741]) * start + np.sqrt(1 - alphas[741]) * noise
        for timestep, before in zip(timesteps[::-1], [*timesteps[-2::-1], 0], strict=True):
            at = np.array([timestep])
            without = self._noise(flow, latent, at, unconditional, ratio).astype(np.float64)
            guided = without + 7.5 * (self._noise(flow, latent, at, contexts, ratio) - without)
            clean = (latent - np.sqrt(1 - alphas[timestep]) * guided) / np.sqrt(alphas[timestep])
            latent = np.sqrt(alphas[before]) * clean + np.sqrt(1 - alphas[before]) * guided
        return latent.astype(np.float32)

    def _decode(self, voxels: Array) -> None:
        put = {}
        predictions = {
            name: value[0] for name, value in self._bundle.subject(SUBJECT).predict(voxels).items()
        }
        unconditional = dict(zip(CONTEXTS, self._bundle.unconditional_contexts(), strict=True))
        contexts = {name: predictions[name][None] for name in CONTEXTS}
        latents = {}
        for stream, (flow, ratio) in enumerate(zip(FLOWS, (0.6, 0.9), strict=True)):
            start = predictions[f"{flow}_latent"][None]
            noise = seeded_noise(SEED, stream, start.shape)
            latents[flow] = self._ddim(flow, start, noise, contexts, unconditional, ratio)
            put[f"denoised_{flow}_latent"] = latents[flow][0]
        image = self._run("autokl_decode", latent=latents["image"])["image"][0]
        tokens = self._greedy(latents["text"][0])
        put |= predictions
        put["voxels"], put["seed"] = voxels, np.array(SEED)
        put["image"] = np.rint(image.clip(0, 1).transpose(1, 2, 0) * 255).astype(np.uint8)
        put["tokens"] = np.array(tokens)
        put["caption"] = np.frombuffer(self._text(tokens).encode(), np.uint8)
        self.recorded |= {f"decode.{PRESET}.{SUBJECT}.{name}": value for name, value in put.items()}

    def _text(self, tokens: list[int]) -> str:
        """The words of a caption without repeated sentences, read by the Hugging Face tokenizer."""
        from tokenizers import Tokenizer, decoders, models

        folder = self._bundle.tokenizers["gpt2"]
        tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
        tokenizer.decoder = decoders.ByteLevel()
        size = tokenizer.get_vocab_size()
        return tokenizer.decode([token for token in tokens if token < size]).strip()


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--scan", type=click.Path(path_type=Path), default=Path("examples/scan.npy"), show_default=True)
def main(out: Path, scan: Path) -> None:
    """Record the golden file of the shipped bundle in OUT, with one decode of SCAN."""
    voxels = np.load(scan, allow_pickle=False)
    partial = out.with_name(f".{out.name}.partial")
    save_file(Recorder(Bundle.open()).record(voxels), partial)
    os.replace(partial, out)


if __name__ == "__main__":
    main()

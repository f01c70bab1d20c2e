"""Decodes of the phantom on the CPU, in fp32, to compare a GPU's with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from unibrain_rt.benchmarks.gpu.scan import distance, psnr_db
from unibrain_rt.bundle import Bundle
from unibrain_rt.captions import CaptionOptions
from unibrain_rt.decoder import Decoder
from unibrain_rt.engines import Engine, create_engine

SUBJECT, PRESET = "sub-01", "paper"
SCANS = 60
WITH_LATENTS = 6
"""Of so many scans the latents are kept and compared, too."""


def write_reference(path: Path, scans: int = SCANS) -> None:
    """Decode held-out scans of the shipped phantom with ONNX Runtime on the CPU, and keep all that can be compared."""
    from unibrain_rt.export.phantom.people import held_out

    bundle = Bundle.open(None)
    size = bundle.graph("autokl_decode").tensor("image").sized(1)[-1]
    _, _, betas = held_out(SUBJECT, scans, size)
    decoded = decode_all(bundle, create_engine("onnxruntime"), betas)
    arrays: dict[str, Any] = {"betas": betas, **{key: np.array(value) for key, value in decoded.items()}}
    np.savez_compressed(path, **arrays)


def decode_all(bundle: Bundle, engine: Engine, betas: Any) -> dict[str, Any]:
    """Pictures, captions and tokens of all scans, latents of the first, milliseconds, and what fell back to fp32."""
    decoder = Decoder(bundle, bundle.subject(SUBJECT), engine, PRESET, CaptionOptions())
    decodes: dict[str, Any] = {
        key: [] for key in ("images", "captions", "image_latents", "text_latents", "ms")
    }
    fallbacks: Counter[str] = Counter()
    for number, scan in enumerate(betas):
        begun = perf_counter()
        result = decoder.decode(scan, seed=number)
        decodes["ms"].append((perf_counter() - begun) * 1000)
        decodes["images"].append(result.image)
        decodes["captions"].append(result.caption)
        fallbacks.update(result.fallbacks)
        if number < WITH_LATENTS:
            for flow, latent in result.latents.items():
                decodes[f"{flow}_latents"].append(latent)
    return {**decodes, "fallbacks": sorted(fallbacks)}


def compare_all(decodes: dict[str, Any], reference: Any) -> dict[str, Any]:
    """How far decodes are from those on the CPU: PSNR, latents' relative distances, share of equal captions."""
    count = len(decodes["images"])
    psnr = [
        psnr_db(ours / 255, theirs / 255)
        for ours, theirs in zip(decodes["images"], reference["images"][:count], strict=True)
    ]
    same = [
        ours == str(theirs)
        for ours, theirs in zip(decodes["captions"], reference["captions"][:count], strict=True)
    ]
    return {
        "scans": count,
        "psnr_db": {"least": min(psnr), "median": float(np.median(psnr))},
        "same_captions": sum(same) / count,
        **{f"{name}_latent_error": _worst(decodes, reference, name) for name in ("image", "text")},
        "fallbacks": decodes["fallbacks"],
        "decode_ms": {"first": decodes["ms"][0], "median": float(np.median(decodes["ms"]))},
    }


def _worst(decodes: dict[str, Any], reference: Any, name: str) -> float | None:
    pairs: Sequence[tuple[Any, Any]] = list(
        zip(decodes[f"{name}_latents"], reference[f"{name}_latents"], strict=False)
    )
    return max((distance(ours, theirs) for ours, theirs in pairs), default=None)

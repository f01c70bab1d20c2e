"""The paper's ablations: which of the latents and the two contexts a decode may use.

A latent is left out of both flows at once; `Decoder.decode` says what a decode does without an input.
"""

from __future__ import annotations

from dataclasses import dataclass

from unibrain_rt.flows import INPUTS

_LATENTS = ("image_latent", "text_latent")


@dataclass(frozen=True)
class Ablation:
    """One row of the ablation tables: its name there, and the inputs that may be used."""

    name: str
    inputs: tuple[str, ...]


FULL = Ablation("full", INPUTS)
ONLY_Z = Ablation("only Z", _LATENTS)
ONLY_CT = Ablation("only C_T", ("text_context",))
ONLY_CI = Ablation("only C_I", ("image_context",))
WITHOUT_Z = Ablation("without Z", ("image_context", "text_context"))
WITHOUT_CT = Ablation("without C_T", (*_LATENTS, "image_context"))
WITHOUT_CI = Ablation("without C_I", (*_LATENTS, "text_context"))
VARIANTS = (FULL, ONLY_Z, ONLY_CT, ONLY_CI, WITHOUT_Z, WITHOUT_CT, WITHOUT_CI)
#: Variants that one context alone guides.
SINGLE_CONTEXT = (ONLY_CT, ONLY_CI, WITHOUT_CT, WITHOUT_CI)

#: The paper's tables for subject 1 (arXiv 2308.07428): variant -> measure -> value.
PAPER_IMAGES: dict[str, dict[str, float]] = {
    name: dict(
        zip(
            ("PixCorr", "SSIM", "Alex(2)", "Alex(5)", "Inception", "CLIP", "EffNet-B1", "SwAV"),
            values,
            strict=True,
        )
    )
    for name, values in {
        "full": (0.299, 0.342, 0.954, 0.969, 0.890, 0.930, 0.757, 0.396),
        "only Z": (0.376, 0.419, 0.866, 0.762, 0.547, 0.532, 0.993, 0.674),
        "only C_T": (0.015, 0.209, 0.633, 0.788, 0.761, 0.837, 0.872, 0.598),
        "only C_I": (0.089, 0.289, 0.830, 0.926, 0.863, 0.915, 0.800, 0.436),
        "without Z": (0.062, 0.289, 0.833, 0.927, 0.864, 0.927, 0.778, 0.424),
        "without C_T": (0.270, 0.324, 0.943, 0.968, 0.875, 0.914, 0.787, 0.420),
        "without C_I": (0.331, 0.363, 0.913, 0.926, 0.849, 0.869, 0.811, 0.460),
    }.items()
}
PAPER_CAPTIONS: dict[str, dict[str, float]] = {
    name: dict(zip(("METEOR", "ROUGE-1", "ROUGE-L", "CLIP"), values, strict=True))
    for name, values in {
        "full": (0.170, 0.247, 0.225, 0.861),
        "only Z": (0.185, 0.262, 0.233, 0.772),
        "only C_T": (0.118, 0.218, 0.208, 0.677),
        "only C_I": (0.128, 0.178, 0.157, 0.828),
        "without Z": (0.161, 0.234, 0.209, 0.849),
        "without C_T": (0.136, 0.192, 0.169, 0.834),
        "without C_I": (0.113, 0.214, 0.205, 0.680),
    }.items()
}

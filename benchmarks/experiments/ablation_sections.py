"""The paper's two ablation tables beside ours, and whether its pattern holds here."""

from __future__ import annotations

from collections.abc import Mapping

from unibrain_rt.benchmarks.experiments.blocks import (
    CAPTION_MEASURES,
    IMAGE_MEASURES,
    meteor_note,
    table_of,
)
from unibrain_rt.benchmarks.experiments.laboratory import KIND, Result
from unibrain_rt.benchmarks.quality.ablations import (
    FULL,
    ONLY_Z,
    PAPER_CAPTIONS,
    PAPER_IMAGES,
    SINGLE_CONTEXT,
    Ablation,
)
from unibrain_rt.benchmarks.quality.intervals import difference
from unibrain_rt.benchmarks.quality.page import Section, Text


def image_ablation(ablated: Mapping[Ablation, Result]) -> Section:
    """The paper's first table beside ours, and whether its pattern holds."""
    ours = {variant.name: one.images.summary() for variant, one in ablated.items()}
    versus = {
        f"full against {variant.name}": {
            name: difference(ablated[FULL].images[name], one.images[name])
            for name in ("CLIP", "Judge", "PixCorr")
        }
        for variant, one in ablated.items()
        if variant is not FULL
    }
    return Section(
        "Ablation: images",
        (
            Text(
                "Z is the image latent, C_I and C_T are the image and the text context. Without Z the loop "
                "starts from noise; Z alone has nothing to guide it and goes straight to the image "
                "decoder."
            ),
            table_of(
                "The phantom", "variant", ours, IMAGE_MEASURES, best=dict.fromkeys(IMAGE_MEASURES, True)
            ),
            table_of(
                "The paper, subject 1 of NSD (arXiv 2308.07428)",
                "variant",
                PAPER_IMAGES,
                tuple(PAPER_IMAGES["full"]),
                "Inception, Alex and CLIP: two-way identification. EffNet-B1 and SwAV: distance, lower is better.",
                {name: name not in ("EffNet-B1", "SwAV") for name in PAPER_IMAGES["full"]},
            ),
            table_of(
                "Paired differences: above 0, the full model is better",
                "comparison",
                versus,
                ("CLIP", "Judge", "PixCorr"),
            ),
            *image_pattern(ablated),
        ),
    )


def image_pattern(ablated: Mapping[Ablation, Result]) -> tuple[Text, ...]:
    """Whether full beats what one context guides, and Z alone is true in pixels and poor in meaning."""
    lines = []
    for measure in ("CLIP", "Judge"):
        gains = {
            variant: difference(ablated[FULL].images[measure], ablated[variant].images[measure])
            for variant in SINGLE_CONTEXT
        }
        beaten = [variant.name for variant, gain in gains.items() if gain.low > 0]
        rest = [variant.name for variant, gain in gains.items() if gain.low <= 0]
        verdict = "holds" if not rest else f"does not hold against {', '.join(rest)}"
        line = f"By {measure}, that the full model beats every variant with a single context {verdict}"
        if rest:
            line += f" (it beats {', '.join(beaten) or 'none'})"
            line += (
                ". Both contexts are regressed from the same voxels and say much the same of a small "
                "scene: what one adds to the other and to Z is less than what scans differ by"
            )
        lines.append(Text(f"{line}."))
    means = {variant: float(one.images["PixCorr"].mean()) for variant, one in ablated.items()}
    best = max(means, key=lambda variant: means[variant])
    lead = difference(ablated[ONLY_Z].images["PixCorr"], ablated[FULL].images["PixCorr"])
    poorer = difference(ablated[FULL].images["CLIP"], ablated[ONLY_Z].images["CLIP"])
    pixels = "has" if best is ONLY_Z else f"does not have ({best.name} does)"
    meaning = "less than the full model's" if poorer.low > 0 else "not shown to be less than the full model's"
    lines.append(
        Text(
            f"Z alone {pixels} the best PixCorr (by {lead.text()} over full). Its identification by CLIP is "
            f"{meaning} (difference {poorer.text()})."
        )
    )
    mean_z = float(ablated[ONLY_Z].images["CLIP"].mean())
    if mean_z > 0.7:
        lines.append(
            Text(
                f"In the paper Z alone falls to chance by CLIP (0.53); here it keeps {mean_z:.2f}. A "
                "blurred photograph has lost what it shows; a blurred scene of this world, one thing in "
                "one colour on one of six backgrounds, still tells its colour, its place and its "
                "background, and those set it apart from most other scenes."
            )
        )
    return tuple(lines)


def caption_ablation(ablated: Mapping[Ablation, Result]) -> Section:
    """The paper's second table beside ours."""
    ours = {variant.name: one.captions.summary() for variant, one in ablated.items()}
    versus = {
        f"full against {variant.name}": {
            name: difference(ablated[FULL].captions[name], one.captions[name])
            for name in ("METEOR", "CLIP", KIND)
        }
        for variant, one in ablated.items()
        if variant is not FULL
    }
    return Section(
        "Ablation: captions",
        (
            Text(
                "Z is the text latent here; alone it goes straight to GPT-2. CLIP is identification by "
                "CLIP's text features."
            ),
            table_of(
                "The phantom",
                "variant",
                ours,
                CAPTION_MEASURES,
                meteor_note(ablated[FULL]),
                dict.fromkeys(CAPTION_MEASURES, True),
            ),
            table_of("The paper, subject 1 of NSD", "variant", PAPER_CAPTIONS, tuple(PAPER_CAPTIONS["full"])),
            table_of(
                "Paired differences: above 0, the full model is better",
                "comparison",
                versus,
                ("METEOR", "CLIP", KIND),
            ),
        ),
    )

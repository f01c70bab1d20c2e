"""BUNDLE SCANS SUBJECT [PRESET…]: decode scans, which begin under marks of their own, with one decoder a preset."""

from __future__ import annotations

import json
import sys

import numpy as np
from marks import mark

from unibrain_rt import Decoder
from unibrain_rt.bundle import Bundle


def main(folder: str, scans: str, subject: str, *presets: str) -> None:
    bundle, told = Bundle.open(folder), {}
    for preset in presets:
        mark(f"{preset}: open")
        decoder = Decoder.open(bundle, subject=subject or None, preset=preset, engine="cuda")
        for number, scan in enumerate(np.load(scans).astype(np.float32)):
            mark(f"{preset}: scan {number}")
            result = decoder.decode(scan, seed=number)
            told[f"{preset}: scan {number}"] = {
                "tokens": len(result.tokens),
                "steps": decoder.steps,
                "finite": bool(np.isfinite(result.image).all()),
            }
        mark(f"{preset}: done")
        decoder = None  # before the next one
    mark("end")
    print(json.dumps(told))


main(*sys.argv[1:])

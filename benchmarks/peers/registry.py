"""Which implementations are measured side by side, by the work that they do; `base.WORKS` tells what that is."""

from __future__ import annotations

from typing import Any

import numpy as np

from unibrain_rt.benchmarks.peers import latents, steps
from unibrain_rt.benchmarks.peers.peer import Peer, Source, Work, opened

TORCH_SETTINGS: dict[str, dict[str, Any]] = {
    "": {},
    "-compiled": {"compiled": True},
    "-bf16": {"precision": "bfloat16"},
    "-bf16-compiled": {"compiled": True, "precision": "bfloat16"},
}
"""What is appended to the name of a peer in torch, and what it means."""
_ENGINES: dict[str, dict[str, Any]] = {
    "onnxruntime": {},
    "openvino": {"engine": "openvino"},
    "openvino-fp32": {"engine": "openvino", "openvino_precision": "fp32"},
    "openvino-bf16": {"engine": "openvino", "openvino_precision": "bf16"},
}


def _in_torch(name: str, base: type[Peer]) -> dict[str, type[Peer]]:
    """A peer in torch in every setting."""
    return {name + suffix: type(name, (base,), dict(each)) for suffix, each in TORCH_SETTINGS.items()}


def _in_engines(base: type[Peer]) -> dict[str, type[Peer]]:
    """A graph in every engine."""
    return {name: type(name, (base,), dict(each)) for name, each in _ENGINES.items()}


PEERS: dict[str, type[Peer]] = {
    **_in_engines(steps.OnnxRuntimePeer),
    **_in_torch("torch", steps.TorchPeer),
    **_in_torch("diffusers", steps.DiffusersPeer),
    "onnxruntime-fp16": steps.OnnxRuntimeHalfPeer,
    "openvino": steps.OpenVinoPeer,
    "openvino-fp16": steps.OpenVinoHalfPeer,
}
"""Of a guided step."""
LATENT_PEERS: dict[Work, dict[str, type[Peer]]] = {
    "caption": {
        **_in_engines(latents.EngineCaptionPeer),
        **_in_torch("torch", latents.TorchCaptionPeer),
    },
    "autokl": {
        **_in_engines(latents.EnginePicturePeer),
        **_in_torch("torch", latents.TorchPicturePeer),
    },
}
_PREFIXES: dict[Work, str] = {"caption": "vae.text.decoder.", "autokl": "vae.image."}


def peer_class(name: str, work: Work) -> type[Peer]:
    """The peer of that name for a kind of work."""
    return LATENT_PEERS.get(work, PEERS)[name]


def work_bytes(source: Source) -> int:
    """Bytes, in fp32, of all weights that a work reads."""
    if source.flow not in _PREFIXES:
        return steps.step_weight_bytes(source)
    checkpoint = opened(source)
    keys = [key for key in checkpoint.keys() if key.startswith(_PREFIXES[source.flow])]  # noqa: SIM118
    return sum(4 * int(np.prod(checkpoint.shape(key))) for key in keys)

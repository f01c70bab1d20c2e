"""A bundle of a few kilobytes, made without torch: every graph of a decode, by hand, with the real tensor names.

It decodes in milliseconds, what it decodes depends on the scan, the seed and both contexts, and every file of it can
be damaged and `seal`ed again, so that the damage gets past the SHA-256.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from unibrain_rt.bundle import sha256_of
from unibrain_rt.export.subjects.ridge import fit_heads
from unibrain_rt.export.subjects.subject_writer import write_subject
from unibrain_rt.presets import PRESETS
from unibrain_rt.samplers import COLUMNS

Shape = tuple[int | str, ...]
Specs = Mapping[str, tuple[str, Shape]]

LATENT: Shape = (1, 4, 4, 4)
TEXT_LATENT: Shape = (1, 6)
WIDTH, HEADS = 8, 2
TOKENS = {"image": 5, "text": 3}
MODULATION = {"image": 3, "text": 2}
SLOTS = 6
WORDS = [
    "<|endoftext|>",
    "a",
    *(f"Ġ{word}" for word in ["dog", "cat", "bird", "on", "under", "grass", "water", "red", "blue", "big"]),
    ".",
]
VOCABULARY = len(WORDS) + 3
MASK_SHAPE, VOXELS = (4, 3, 4), 20
BETA_SCALE = 0.01
OPSET = 17
WEIGHTS = "unet.weights"
_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


def make_bundle(folder: Path, subjects: tuple[str, ...] = ("sub-01",)) -> Path:
    """Write the bundle into the new folder ``folder``."""
    graphs = folder / "graphs"
    graphs.mkdir(parents=True)
    weights = _Weights(graphs / WEIGHTS)
    records = {
        "unet_context": _context(graphs, weights),
        "unet_time": _time(graphs),
        "unet_image_step": _step(graphs, "image", LATENT),
        "unet_text_step": _step(graphs, "text", TEXT_LATENT),
        "autokl_decode": _autokl(graphs),
        "optimus_decode": _optimus(graphs),
    }
    weights.close()
    constants = {
        f"unconditional_{name}_context": _random(1, tokens, WIDTH, seed=3) for name, tokens in TOKENS.items()
    }
    from safetensors.numpy import save_file

    save_file(constants, folder / "constants.safetensors")
    (folder / "tokenizers" / "gpt2").mkdir(parents=True)
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    (folder / "tokenizers" / "gpt2" / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    for place, name in enumerate(subjects):
        _subject(folder / "subjects" / name, name, place)
    manifest = {
        "schema_version": 1,
        "name": "tiny",
        "precision": "fp32",
        "architecture": {
            "schedule": {
                "timesteps": 1000,
                "beta_start": 0.00085,
                "beta_end": 0.012,
                "beta_schedule": "scaled_linear",
            },
            "autokl": {"scale_factor": 0.18215, "image_size": 8},
        },
        "graphs": records,
        "presets": {name: preset.to_mapping() for name, preset in PRESETS.items()},
        "subjects": list(subjects),
        "tokenizers": {"gpt2": "tokenizers/gpt2"},
        "provenance": {"source": "by hand", "parameters": 1234},
    }
    (folder / "bundle.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    seal(folder)
    return folder


def seal(folder: Path, **changes: Any) -> None:
    """Write size and SHA-256 of every file as it now is into the manifest, and ``changes`` into its top level."""
    path = folder / "bundle.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != path)
    manifest["files"] = {
        file.relative_to(folder).as_posix(): {"size_bytes": file.stat().st_size, "sha256": sha256_of(file)}
        for file in files
    }
    path.write_text(json.dumps({**manifest, **changes}, indent=1), encoding="utf-8")


def scan(number: int = 0) -> NDArray[np.float32]:
    """Betas (voxels,) of a scan the subjects were not fitted on."""
    return np.random.default_rng(1000 + number).standard_normal(VOXELS).astype(np.float32)


def mask() -> NDArray[np.bool_]:
    """The subjects' mask, (x, y, z)."""
    inside = np.zeros(MASK_SHAPE, np.bool_)
    inside.reshape(-1)[::2][:VOXELS] = True
    return inside


def save_graph(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: Specs,
    outputs: Specs,
    constants: Mapping[str, NDArray[Any] | onnx.TensorProto] | None = None,
    feedback: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write an ONNX file and give its record in a manifest."""
    tensors = [
        value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(np.asarray(value), name)
        for name, value in (constants or {}).items()
    ]
    values = [
        [helper.make_tensor_value_info(name, _TYPES[dtype], shape) for name, (dtype, shape) in specs.items()]
        for specs in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, path.stem, *values, initializer=tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    records = [
        [{"name": name, "dtype": dtype, "shape": list(shape)} for name, (dtype, shape) in specs.items()]
        for specs in (inputs, outputs)
    ]
    return {
        "file": f"graphs/{path.name}",
        "inputs": records[0],
        "outputs": records[1],
        "feedback": dict(feedback or {}),
        "costs": {
            "flops": 2000,
            "weight_numbers": 300,
            "activation_numbers": 40,
            "stored_bytes": sum(TensorProto.ByteSize(tensor) for tensor in tensors),
            "bytes_per_number": 4,
            "operators": dict(Counter(node.op_type for node in nodes)),
            "held_numbers": 20,
        },
    }


class _Weights:
    """A file of external data that graphs share."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._data = b""

    def add(self, name: str, values: NDArray[np.float32]) -> onnx.TensorProto:
        tensor = onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=values.shape)
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": self._path.name, "offset": len(self._data), "length": values.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        self._data += values.tobytes()
        return tensor

    def close(self) -> None:
        self._path.write_bytes(self._data)


def _random(*shape: int, seed: int, scale: float = 1.0) -> NDArray[np.float32]:
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def _keys_values() -> Specs:
    return {
        f"{context}_context.0.{part}": ("float32", (2, HEADS, tokens, WIDTH // HEADS))
        for context, tokens in TOKENS.items()
        for part in ("keys", "values")
    }


def _context(folder: Path, weights: _Weights) -> dict[str, Any]:
    nodes, constants = [], {}
    for place, output in enumerate(_keys_values()):
        source = output.split(".")[0]
        weight, shape = f"{output}.weight", f"{output}.shape"
        constants[weight] = weights.add(weight, _random(WIDTH, WIDTH, seed=place, scale=0.3))
        constants[shape] = np.array([2, TOKENS[source.removesuffix("_context")], HEADS, WIDTH // HEADS])
        nodes += [
            helper.make_node("MatMul", [source, weight], [f"{output}.product"]),
            helper.make_node("Reshape", [f"{output}.product", shape], [f"{output}.split"]),
            helper.make_node("Transpose", [f"{output}.split"], [output], perm=[0, 2, 1, 3]),
        ]
    inputs: Specs = {f"{name}_context": ("float32", (2, tokens, WIDTH)) for name, tokens in TOKENS.items()}
    return save_graph(folder / "unet_context.onnx", nodes, inputs, _keys_values(), constants)


def _time(folder: Path) -> dict[str, Any]:
    nodes = [
        helper.make_node("Cast", ["timesteps"], ["t"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["t", "one"], ["column"]),
    ]
    constants: dict[str, Any] = {"one": np.array([1])}
    for flow, width in MODULATION.items():
        constants[f"{flow}.frequencies"] = (np.arange(1, width + 1, dtype=np.float32) / 300)[None]
        nodes += [
            helper.make_node("MatMul", ["column", f"{flow}.frequencies"], [f"{flow}.angles"]),
            helper.make_node("Sin", [f"{flow}.angles"], [f"{flow}_modulation"]),
        ]
    outputs: Specs = {f"{flow}_modulation": ("float32", ("N", width)) for flow, width in MODULATION.items()}
    return save_graph(folder / "unet_time.onnx", nodes, {"timesteps": ("int64", ("N",))}, outputs, constants)


def _step(folder: Path, flow: str, shape: Shape) -> dict[str, Any]:
    """Noise of a branch: tanh of the latent and of what that branch's contexts say; then guidance and the update."""
    nodes, constants = [], {}

    def node(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    for place, column in enumerate(COLUMNS):
        constants[f"{column}.place"] = np.array(place)
        node("Gather", ["coefficients", f"{column}.place"], column, axis=0)
    for name in TOKENS:
        keys, values = f"{name}_context.0.keys", f"{name}_context.0.values"
        product = node("Mul", [keys, values], f"{name}.product")
        node("ReduceMean", [product], f"{name}.mean", axes=[1, 2, 3], keepdims=0)  # (2,)
    node("Sub", ["image.mean", "text.mean"], "contrast")
    node("Mul", ["contrast", "image_ratio"], "weighted")
    node("Add", ["text.mean", "weighted"], "said")
    node("ReduceMean", ["modulation"], "when", keepdims=0)
    for branch in range(2):
        constants[f"{branch}.place"] = np.array(branch)
        node("Gather", ["said", f"{branch}.place"], f"{branch}.said", axis=0)
        node("Add", [f"{branch}.said", "when"], f"{branch}.shift")
        node("Add", ["latent", f"{branch}.shift"], f"{branch}.sum")
        node("Tanh", [f"{branch}.sum"], f"{branch}.noise")
    node("Sub", ["1.noise", "0.noise"], "difference")
    node("Mul", ["guidance_scale", "difference"], "scaled")
    node("Add", ["0.noise", "scaled"], "noise")
    node("Mul", ["x0_from_latent", "latent"], "x0.a")
    node("Mul", ["x0_from_noise", "noise"], "x0.b")
    node("Add", ["x0.a", "x0.b"], "x0")
    node("Mul", ["next_from_latent", "latent"], "next.a")
    node("Mul", ["next_from_x0", "x0"], "next.b")
    node("Mul", ["next_from_previous_x0", "previous_x0"], "next.c")
    node("Add", ["next.a", "next.b"], "next.ab")
    node("Add", ["next.ab", "next.c"], "next_latent")
    inputs: Specs = {
        "latent": ("float32", shape),
        "previous_x0": ("float32", shape),
        "modulation": ("float32", (1, MODULATION[flow])),
        "coefficients": ("float32", (len(COLUMNS),)),
        **_keys_values(),
    }
    outputs: Specs = {"next_latent": ("float32", shape), "x0": ("float32", shape)}
    feedback = {"next_latent": "latent", "x0": "previous_x0"}
    return save_graph(folder / f"unet_{flow}_step.onnx", nodes, inputs, outputs, constants, feedback)


def _autokl(folder: Path) -> dict[str, Any]:
    nodes = [
        helper.make_node("Conv", ["latent", "kernel"], ["colours"]),
        helper.make_node("Resize", ["colours", "", "scales"], ["large"], mode="nearest"),
        helper.make_node("Sigmoid", ["large"], ["image"]),
    ]
    constants = {"kernel": _random(3, 4, 1, 1, seed=9), "scales": np.array([1, 1, 2, 2], np.float32)}
    inputs: Specs = {"latent": ("float32", LATENT)}
    return save_graph(
        folder / "autokl_decode.onnx", nodes, inputs, {"image": ("float32", (1, 3, 8, 8))}, constants
    )


def _optimus(folder: Path) -> dict[str, Any]:
    """Logits from the latent, the last token and what the cache holds, to which every token adds its embedding."""
    cache: Shape = (1, HEADS, SLOTS, 3)
    nodes = [
        helper.make_node("Gather", ["embedding", "token"], ["embedded"], axis=0),  # (1, VOCABULARY)
        helper.make_node("MatMul", ["latent", "weight"], ["from_latent"]),
        helper.make_node("ReduceMean", ["key_cache"], ["held"], keepdims=0),
        helper.make_node("Mul", ["held", "rhythm"], ["from_cache"]),
        helper.make_node("Add", ["from_latent", "embedded"], ["sum"]),
        helper.make_node("Add", ["sum", "from_cache"], ["logits"]),
        helper.make_node("ReduceMean", ["embedded"], ["size"], keepdims=0),
        helper.make_node("Add", ["key_cache", "size"], ["next_key_cache"]),
        helper.make_node("Sub", ["value_cache", "size"], ["next_value_cache"]),
        helper.make_node("Add", ["position", "one"], ["next_position"]),
    ]
    embedding = _random(VOCABULARY, VOCABULARY, seed=5)
    embedding[:, -3:] -= 4  # special tokens are rare
    constants = {
        "embedding": embedding,
        "weight": _random(6, VOCABULARY, seed=6),
        "rhythm": _random(1, VOCABULARY, seed=7, scale=3.0),
        "one": np.array([1]),
    }
    inputs: Specs = {
        "latent": ("float32", TEXT_LATENT),
        "token": ("int64", (1,)),
        "position": ("int64", (1,)),
        "key_cache": ("float32", cache),
        "value_cache": ("float32", cache),
    }
    outputs: Specs = {
        "logits": ("float32", (1, VOCABULARY)),
        "next_key_cache": ("float32", cache),
        "next_value_cache": ("float32", cache),
        "next_position": ("int64", (1,)),
    }
    feedback = {"next_key_cache": "key_cache", "next_value_cache": "value_cache", "next_position": "position"}
    return save_graph(folder / "optimus_decode.onnx", nodes, inputs, outputs, constants, feedback)


def _subject(folder: Path, name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    betas = rng.standard_normal((60, VOXELS))
    targets = {}
    for head, shape in {
        "image_latent": LATENT[1:],
        "text_latent": TEXT_LATENT[1:],
        "image_context": (TOKENS["image"], WIDTH),
        "text_context": (TOKENS["text"], WIDTH),
    }.items():
        size = int(np.prod(shape))
        values = betas @ rng.standard_normal((VOXELS, size)) / 4 + 0.1 * rng.standard_normal((60, size))
        targets[head] = values.reshape(60, *shape)
    fits = fit_heads(betas, targets, alphas=(1.0, 10.0))
    folder.parent.mkdir(exist_ok=True)
    write_subject(folder, name, fits, beta_scale=BETA_SCALE, mask=mask(), provenance={"simulated": True})

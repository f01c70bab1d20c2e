"""Damage: what can be wrong with scans, JSON, safetensors, files and graphs. Everything is seeded."""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SEED = 20230814
Array = np.ndarray[Any, Any]


# --- Scans --------------------------------------------------------------------------------------------------


def npy(array: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def npy_header(text: str, data: bytes = b"") -> bytes:
    """A .npy file with a header of one's own words."""
    raw = text.encode("latin1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw + data


def scan_cases(good: Array, mask: Array) -> Iterator[tuple[str, bytes]]:
    """File names and contents that are no scan of a subject with this mask."""
    rng = np.random.default_rng(SEED)
    voxels = good.size
    whole = npy(good)
    for kind in ("float32", "float64", "float16"):
        for value in (np.nan, np.inf, -np.inf):
            bad = good.astype(kind)
            bad[rng.integers(voxels)] = value
            yield f"{value}-{kind}.npy", npy(bad)
    yield "beyond-float32.npy", npy(np.full(voxels, 1e300))
    yield "beyond-any-scan.npy", npy(np.full(voxels, 3e38, np.float32))
    for kind in ("bool", "uint8", "int32", "int64", "uint16", "complex64", "S3", "U3", "M8[s]", "m8[ns]"):
        yield f"{kind[:2].strip('[')}-{kind[-2]}-{len(kind)}.npy", npy(np.zeros(voxels, kind))
    yield "objects.npy", npy(np.array([{}] * voxels, object), allow_pickle=True)
    yield "fields.npy", npy(np.zeros(voxels, [("a", "f4"), ("b", "f4")]))
    for shape in [(), (0,), (1,), (voxels - 1,), (voxels + 1,), (0, voxels), (voxels, 2), (2, 2, voxels), (voxels, 0),
                  (1, 1, 1, voxels)]:  # fmt: skip
        yield f"shape-{'x'.join(map(str, shape))}.npy", npy(np.zeros(shape, np.float32))
    for size in (0, 1, 5, 6, 8, 10, 64, 127, 128, 129, len(whole) - 1):
        yield f"first-{size}.npy", whole[:size]
    yield "longer.npy", whole + b"\0"
    yield "two.npy", whole * 2
    for place in range(6):
        yield f"magic-{place}.npy", whole[:place] + b"\xff" + whole[place + 1 :]
    for number in range(24):
        place = int(rng.integers(6, 128))
        yield (
            f"header-{number}.npy",
            whole[:place] + bytes([whole[place] ^ int(rng.integers(1, 256))]) + whole[place + 1 :],
        )
    for number, text in enumerate([
        "", "{}", "()", "[" * 3000, "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-20,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1e3,), }",
        "{'descr': '<f4', 'fortran_order': 7, 'shape': (20,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (9**99**9,), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (20,), }",
        "{'descr': __import__('os').getcwd(), 'fortran_order': False, 'shape': (20,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 20), }",
        f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**70}, 20), }}",
        "{'descr': [('a', '<f4', (9,)*30)], 'fortran_order': False, 'shape': (20,), }",
    ]):  # fmt: skip
        yield f"text-{number}.npy", npy_header(text, bytes(80))
    archive = npz(betas=good)
    yield "none.npz", npz()
    yield "unnamed.npz", npz(a=good, b=good)
    yield "text.npz", npz(betas=np.array("dog"))
    for size in (0, 3, 30, len(archive) // 2, len(archive) - 1):
        yield f"first-{size}.npz", archive[:size]
    for number in range(12):
        place = int(rng.integers(len(archive)))
        yield f"flip-{number}.npz", archive[:place] + bytes([archive[place] ^ 0xA5]) + archive[place + 1 :]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr(
            "betas.npy", npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (5000000, 20), }")
        )
    yield "bomb.npz", stream.getvalue()
    with zipfile.ZipFile(stream := io.BytesIO(), "w") as hostile:
        hostile.writestr("../../betas.npy", whole[:-4])
    yield "hostile.npz", stream.getvalue()
    try:
        import nibabel
    except ImportError:
        pass
    else:
        volume = np.zeros(mask.shape, np.float32)
        image = nibabel.Nifti1Image(volume, np.eye(4)).to_bytes()
        for size in (0, 4, 100, 347, 348, 352, len(image) - 1):
            yield f"first-{size}.nii", image[:size]
        for place in (0, 40, 42, 70, 72, 108, 111, 344, 345):
            yield f"flip-{place}.nii", image[:place] + bytes([image[place] ^ 0xFF]) + image[place + 1 :]
        yield "cut.nii.gz", gzip.compress(image)[:-9]
        yield "checksum.nii.gz", gzip.compress(image)[:-8] + bytes(8)
        yield "not.nii.gz", image
        volume[mask] = np.nan
        yield "nan.nii.gz", gzip.compress(nibabel.Nifti1Image(volume, np.eye(4)).to_bytes())
        small = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.float32), np.eye(4))
        yield "small.nii", small.to_bytes()
    for name in ("text.txt", "none", ".npy", "a.pkl", "a.mat", "a.npy.bak", "ü\x1b[31m.npy"):
        yield name, whole if not name.endswith("m.npy") else b"?"
    yield "random.npy", rng.bytes(300)
    yield "random.nii", rng.bytes(4000)
    yield "random.npz", b"PK\x03\x04" + rng.bytes(300)


# --- JSON ---------------------------------------------------------------------------------------------------

Place = tuple[str | int, ...]
HUGE = 10**400
OTHER_VALUES: list[Any] = [
    None, True, False, 0, -1, 2**63, HUGE, 0.5, -1e308, float("nan"), float("inf"), "", "x", "../../etc/passwd",
    "/etc/passwd", "\ud800", "a\nb\x1b[2J", "x" * 5000, [], [[]], [None], {}, {"": {}}, [1] * 40,
]  # fmt: skip


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    """Every place in a JSON value, the outermost first."""
    yield place
    for key, item in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from places(item, (*place, key))


def changed(document: Any, place: Place, value: Any, how: str = "set") -> Any:
    """A copy of ``document`` with something else at ``place``, or with nothing there, or under another name."""
    if not place:
        return value
    document = copy.deepcopy(document)
    holder = document
    for key in place[:-1]:
        holder = holder[key]
    if how == "set":
        holder[place[-1]] = value
    else:
        removed = holder.pop(place[-1])
        if how == "rename" and isinstance(holder, dict):
            holder[f"{place[-1]}_"] = removed
    return document


def json_cases(document: Any, each: int) -> Iterator[tuple[str, Any]]:
    """At every place: ``each`` other values, and none or another name."""
    rng = np.random.default_rng(SEED)
    for place in places(document):
        label = ".".join(map(str, place))
        for index in rng.choice(len(OTHER_VALUES), each, replace=False):
            value = OTHER_VALUES[index]
            yield f"{label} = {str(value)[:30]!r}", changed(document, place, value)
        if place:
            how = rng.choice(["remove", "rename"])
            yield f"{label} {how}d", changed(document, place, None, how)


def broken_json(text: str) -> Iterator[tuple[str, bytes]]:
    """What is no JSON object any more."""
    rng = np.random.default_rng(SEED)
    raw = text.encode()
    for size in (0, 1, 10, len(raw) // 2, len(raw) - 3):
        yield f"first {size} bytes", raw[:size]
    for number in range(10):
        place = int(rng.integers(len(raw)))
        yield f"byte {place} flipped", raw[:place] + bytes([raw[place] ^ 0x80]) + raw[place + 1 :]
    yield "twice", raw * 2
    yield "UTF-16", text.encode("utf-16")
    yield "deep list", b"[" * 100_000
    yield "deep object", b'{"a":' * 100_000
    yield "deep and closed", b"[" * 900 + b"]" * 900
    yield "large", b" " * (20 << 20) + raw
    yield "digits", b'{"schema_version": ' + b"9" * 5000 + b"}"
    yield "NUL", b"\0" * 100
    for value in ("null", "[]", "3", '"bundle"', "{}", "NaN", ""):
        yield f"only {value}", value.encode()
    for key in json.loads(text):
        inside = {**json.loads(text), key: None}
        deep = json.dumps(inside).replace("null", "[" * 700 + "]" * 700, 1)
        yield f"{key} 700 deep", deep.encode()
        yield (
            f"{key} an object 300 deep",
            json.dumps(inside).replace("null", '{"a":' * 300 + "1" + "}" * 300, 1).encode(),
        )


# --- Files --------------------------------------------------------------------------------------------------


def replace(path: Path, kind: str) -> None:
    """Put something else in a file's place."""
    raw = path.read_bytes()
    path.unlink()
    match kind:
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path)
        case "nowhere":
            path.symlink_to(path.parent / "nowhere")
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "renamed":
            path.with_name(f"{path.name}.bak").write_bytes(raw)
        case "empty":
            path.write_bytes(b"")
        case "half":
            path.write_bytes(raw[: len(raw) // 2])
        case "short":
            path.write_bytes(raw[:-1])
        case "long":
            path.write_bytes(raw + b"\0")
        case "zeros":
            path.write_bytes(bytes(len(raw)))
        case "noise":
            path.write_bytes(np.random.default_rng(SEED).bytes(len(raw)))
        case "flip":
            middle = len(raw) // 2
            path.write_bytes(raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :])


KINDS = ["gone", "folder", "loop", "nowhere", "pipe", "device", "renamed", "empty", "half", "short", "long",
         "zeros", "noise", "flip"]  # fmt: skip


def header(described: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with a header of one's own words."""
    raw = described if isinstance(described, bytes) else json.dumps(described).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def safetensors_cases(good: dict[str, Array]) -> Iterator[tuple[str, bytes]]:
    """Files in which a tensor is not as it should be, and files that are none."""
    from safetensors.numpy import save

    raw = save(good)
    for name, array in good.items():
        yield f"{name} gone", save({key: value for key, value in good.items() if key != name})
        yield (
            f"{name} renamed",
            save({key if key != name else f"{key}s": value for key, value in good.items()}),
        )
        wrong: list[tuple[str, Array]] = [
            ("flat", array.reshape(-1, 1)),
            ("one axis more", array[None]),
            ("shorter", array[..., :-1] if array.shape[-1] > 1 else array[:0]),
            ("empty", array[:0]),
            ("a scalar", np.zeros((), array.dtype)),
            *((kind, array.astype(kind)) for kind in ("float64", "int32", "bool") if kind != array.dtype),
        ]
        if array.dtype.kind == "f":
            wrong += [(f"all {value}", np.full_like(array, value)) for value in (np.nan, np.inf)]
            one = array.copy()
            one.reshape(-1)[-1] = np.nan
            wrong += [("one NaN", one)]
        for label, value in wrong:
            yield f"{name} {label}", save({**good, name: np.ascontiguousarray(value)})
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    yield "no header", b""
    yield "length alone", struct.pack("<Q", 100)
    yield "length beyond the end", header({}, length=10**6)
    yield "length of an exabyte", header({}, length=2**60)
    yield "no JSON", header(b"not JSON")
    yield "no UTF-8", header(b"\xff" * 40)
    yield "a list", header([])
    yield "deep", header(b"[" * 50_000)
    yield "deep object", header(b'{"a":' * 50_000)
    yield "offsets beyond", header({"x": {**entry, "data_offsets": [0, 10**15]}}, bytes(16))
    yield "offsets backwards", header({"x": {**entry, "data_offsets": [16, 0]}}, bytes(16))
    yield "offsets negative", header({"x": {**entry, "data_offsets": [-16, 0]}}, bytes(16))
    yield "overlap", header({"x": entry, "y": entry}, bytes(16))
    yield "shape of 2**80", header({"x": {**entry, "shape": [2**40, 2**40]}}, bytes(16))
    yield "unknown type", header({"x": {**entry, "dtype": "F31"}}, bytes(16))
    yield "more data", raw + bytes(8)
    rng = np.random.default_rng(SEED)
    for place in rng.integers(0, struct.unpack("<Q", raw[:8])[0], 20):
        yield f"byte {place} flipped", raw[:place] + bytes([raw[place] ^ 0x11]) + raw[place + 1 :]


# --- Graphs -------------------------------------------------------------------------------------------------


def graph_damages(onnx: Any) -> Iterator[tuple[str, Callable[[Any], None]]]:
    """What can be wrong with a graph that is still ONNX."""

    def output_of(operator: str, *constants: Any) -> Callable[[Any], None]:
        """Send the first output through another operator."""

        def damage(model: Any) -> None:
            graph = model.graph
            name = graph.output[0].name
            for node in graph.node:
                for place, output in enumerate(node.output):
                    if output == name:
                        node.output[place] = "before"
            names = [f"extra.{place}" for place in range(len(constants))]
            graph.initializer.extend(
                onnx.numpy_helper.from_array(np.asarray(value), key)
                for key, value in zip(names, constants, strict=True)
            )
            graph.node.append(onnx.helper.make_node(operator, ["before", *names], [name]))

        return damage

    def no_nodes(model: Any) -> None:
        del model.graph.node[:]

    def no_outputs(model: Any) -> None:
        del model.graph.output[:]

    def no_constants(model: Any) -> None:
        del model.graph.initializer[:]
        del model.graph.node[0].input[:]

    def other_operator(model: Any) -> None:
        model.graph.node[0].op_type = "Frobnicate"

    def other_type(model: Any) -> None:
        model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE

    def other_name(model: Any) -> None:
        model.graph.input[0].name += "_"

    def other_shape(model: Any) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[-1].dim_value = 7

    def further_input(model: Any) -> None:
        model.graph.input.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, (1,)))

    def newer(model: Any) -> None:
        model.opset_import[0].version = 99

    def circle(model: Any) -> None:
        model.graph.node[0].input[0] = model.graph.node[-1].output[0]

    yield "gives NaN", output_of("Mul", np.float32(np.nan))
    yield "gives Inf", output_of("Add", np.float32(np.inf))
    yield "gives another shape", output_of("Unsqueeze", np.array([0]))
    yield "gives another size", output_of("Concat")
    yield "no nodes", no_nodes
    yield "no outputs", no_outputs
    yield "no constants", no_constants
    yield "unknown operator", other_operator
    yield "another type", other_type
    yield "another name", other_name
    yield "another shape", other_shape
    yield "a further input", further_input
    yield "a newer opset", newer
    yield "a circle", circle

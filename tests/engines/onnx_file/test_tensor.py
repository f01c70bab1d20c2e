"""Tensors in ONNX files: values of every type and form, and where those in other files lie."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from unibrain_rt.engines import EngineError  # noqa: E402
from unibrain_rt.engines.onnx_file import External, Tensor, read_onnx  # noqa: E402

helper, numpy_helper, Proto = onnx.helper, onnx.numpy_helper, onnx.TensorProto


def reread(folder: Path, *tensors: Any) -> tuple[Tensor, ...]:
    graph = helper.make_graph([], "graph", [], [], initializer=tensors)
    path = folder / "graph.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return read_onnx(path).graph.initializers


@pytest.mark.parametrize(
    "dtype",
    [
        *("float16", "float32", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64"),
        *("uint64", "bool", "complex64", "complex128"),
    ],
)
@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
def test_values_of_every_type(tmp_path: Path, dtype: str, raw: bool) -> None:
    kind = np.dtype(dtype).kind
    values = np.array([[0, 1, 3], [5, 100, 127]]).astype(dtype)
    if kind in "if":
        values[1, 0] = -7
    if kind in "iu":
        values[0, 0] = np.iinfo(dtype).max
        values[0, 1] = np.iinfo(dtype).min
    number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    data = values.tobytes() if raw else values.ravel().tolist()
    (found,) = reread(tmp_path, helper.make_tensor("t", number, values.shape, data, raw=raw))
    assert (found.dtype, found.dims, found.size_bytes) == (dtype, (2, 3), values.nbytes)
    assert found.value is not None
    assert found.value.dtype == values.dtype
    np.testing.assert_array_equal(found.value, values)


@pytest.mark.parametrize("kind", ["BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E5M2", "INT4", "UINT4", "FLOAT4E2M1"])
def test_types_that_numpy_does_not_have(tmp_path: Path, kind: str) -> None:
    bits = {"BFLOAT16": 16, "FLOAT8E4M3FN": 8, "FLOAT8E5M2": 8}.get(kind, 4)
    size = math.ceil(5 * bits / 8)
    number = Proto.DataType.Value(kind)
    (found,) = reread(tmp_path, helper.make_tensor("t", number, [5], bytes(size), raw=True))
    assert found == Tensor("t", kind.lower(), (5,), size, size)
    assert found.value is None


def test_every_type_of_onnx_has_its_name(tmp_path: Path) -> None:
    ours = {"FLOAT": "float32", "DOUBLE": "float64"}
    for name, number in Proto.DataType.items():
        if name not in {"UNDEFINED", "STRING"}:
            tensor = Proto(name="t", data_type=number, dims=[0])
            assert reread(tmp_path, tensor)[0].dtype == ours.get(name, name.lower())


def test_texts_are_counted(tmp_path: Path) -> None:
    (found,) = reread(tmp_path, helper.make_tensor("t", Proto.STRING, [2], [b"abc", b"de"]))
    assert found == Tensor("t", "string", (2,), 5, 5)


def test_a_large_tensor_is_not_read(tmp_path: Path) -> None:
    values = np.zeros(2000, np.float32)
    raw = numpy_helper.from_array(values, "raw")
    typed = helper.make_tensor("typed", Proto.FLOAT, [2000], values)
    for found in reread(tmp_path, raw, typed):
        assert (found.size_bytes, found.inline_bytes, found.value) == (8000, 8000, None)


def test_numbers_one_after_another_and_packed(tmp_path: Path) -> None:
    """Of `dims`, onnx itself writes the one and libraries of the third version of the format the other."""
    body = b"\x10\x07" + b"\x42\x01t"
    values = b"\x3a\x06" + bytes(range(6))  # int64_data
    path = tmp_path / "graph.onnx"
    for dims in (b"\x08\x02\x08\x03", b"\x0a\x02\x02\x03"):
        for form in (values, b"".join(bytes([7 << 3, value]) for value in range(6))):
            tensor = dims + body + form
            graph = b"\x2a" + bytes([len(tensor)]) + tensor
            path.write_bytes(b"\x3a" + bytes([len(graph)]) + graph)
            (found,) = read_onnx(path).graph.initializers
            np.testing.assert_array_equal(found.value, np.arange(6).reshape(2, 3))
            theirs = numpy_helper.to_array(onnx.load(path).graph.initializer[0])
            np.testing.assert_array_equal(theirs, np.arange(6).reshape(2, 3))


def external(dims: tuple[int, ...] = (2, 3), **entries: str) -> Any:
    tensor = Proto(name="t", data_type=Proto.FLOAT16, dims=dims, data_location=Proto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_values_in_other_files(tmp_path: Path) -> None:
    entries = {"location": "unet.weights", "offset": "4096", "length": "12", "checksum": "ab"}
    (found,) = reread(tmp_path, external(**entries))
    assert found == Tensor("t", "float16", (2, 3), 12, 0, External("unet.weights", 4096, 12))
    (whole,) = reread(tmp_path, external(location="t"))
    assert whole.external == External("t", 0, 12), "where only the file is named"


@pytest.mark.parametrize(
    "entries",
    [{}, {"offset": "0"}, {"location": "t", "offset": "-1"}, {"location": "t", "length": "much"},
     {"location": "t", "length": "-12"}],
    ids=str,
)  # fmt: skip
def test_a_place_that_is_none_is_refused(tmp_path: Path, entries: dict[str, str]) -> None:
    with pytest.raises(EngineError, match="cannot be read as ONNX"):
        reread(tmp_path, external(**entries))


@pytest.mark.parametrize(
    "tensor",
    [
        Proto(name="t", data_type=Proto.FLOAT, dims=[2], raw_data=bytes(4)),
        Proto(name="t", data_type=Proto.FLOAT, dims=[2], float_data=[1, 2, 3]),
        Proto(name="t", data_type=Proto.FLOAT, dims=[2]),
        Proto(name="t", data_type=Proto.FLOAT, dims=[5000], raw_data=bytes(4)),
        Proto(name="t", data_type=Proto.FLOAT, dims=[5000]),
        Proto(name="t", data_type=Proto.FLOAT, dims=[-2], raw_data=bytes(8)),
        Proto(name="t", data_type=99, dims=[2], raw_data=bytes(8)),
        Proto(name="t", dims=[2], raw_data=bytes(8)),
    ],
    ids=["short", "long", "none", "large and short", "large and none", "negative", "newer type", "no type"],
)
def test_values_that_do_not_fit_are_refused(tmp_path: Path, tensor: Any) -> None:
    with pytest.raises(EngineError, match=r"graph\.onnx: cannot be read as ONNX \((tensor 't'|no type)"):
        reread(tmp_path, tensor)

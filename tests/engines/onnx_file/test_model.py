"""Reading ONNX files without onnx: as onnx itself reads them, and one clear line where they are damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from unibrain_rt.engines import EngineError  # noqa: E402
from unibrain_rt.engines.onnx_file import Graph, Node, Reference, Tensor, ValueInfo, read_onnx  # noqa: E402

helper, numpy_helper = onnx.helper, onnx.numpy_helper
TYPES = {number: name for name, number in onnx.TensorProto.DataType.items()}
OUR_NAMES = {"FLOAT": "float32", "DOUBLE": "float64", "UNDEFINED": None}


def type_name(number: int) -> str | None:
    return OUR_NAMES.get(TYPES[number], TYPES[number].lower())


def saved(folder: Path, *nodes: Any, **parts: Any) -> Path:
    """A model of these nodes; ``parts`` are those of the graph."""
    body = {"inputs": [], "outputs": [], **parts}
    model = helper.make_model(helper.make_graph(nodes, "graph", **body))
    path = folder / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    return path


# --- As onnx reads it ---------------------------------------------------------------------------------------


def same_tensor(ours: Tensor, theirs: Any) -> None:
    assert (ours.name, ours.dims) == (theirs.name, tuple(theirs.dims))
    assert ours.dtype == type_name(theirs.data_type)
    external = {entry.key: entry.value for entry in theirs.external_data}
    assert (ours.external is not None) == bool(external)
    if ours.external is not None:
        found = (ours.external.location, ours.external.offset, ours.external.length)
        assert found == (external["location"], int(external["offset"]), int(external["length"]))
        assert (ours.size_bytes, ours.inline_bytes) == (ours.external.length, 0)
        return
    value = numpy_helper.to_array(theirs)
    assert ours.size_bytes == ours.inline_bytes == value.nbytes
    assert (ours.value is None) == (value.nbytes > 4096)
    if ours.value is not None:
        assert ours.value.dtype == value.dtype
        np.testing.assert_array_equal(ours.value, value)


def same_info(ours: ValueInfo, theirs: Any) -> None:
    tensor = theirs.type.tensor_type
    shape = tuple(
        size.dim_value if size.HasField("dim_value") else size.dim_param or None for size in tensor.shape.dim
    )
    wanted = (theirs.name, type_name(tensor.elem_type), shape if tensor.HasField("shape") else None)
    assert (ours.name, ours.dtype, ours.shape) == wanted


def same_value(ours: Any, theirs: Any) -> None:
    if isinstance(ours, tuple):
        for one, other in zip(ours, theirs, strict=True):
            same_value(one, other)
    elif isinstance(ours, Tensor):
        same_tensor(ours, theirs)
    elif isinstance(ours, Graph):
        same_graph(ours, theirs)
    else:
        assert (ours.encode() if isinstance(ours, str) else ours) == theirs


def same_node(ours: Node, theirs: Any) -> None:
    assert (ours.op_type, ours.domain, ours.name) == (theirs.op_type, theirs.domain, theirs.name)
    assert (ours.inputs, ours.outputs) == (tuple(theirs.input), tuple(theirs.output))
    assert list(ours.attributes) == [attribute.name for attribute in theirs.attribute]
    for attribute in theirs.attribute:
        value: Any = ours.attributes[attribute.name]
        if attribute.ref_attr_name:
            assert value == Reference(attribute.ref_attr_name)
            continue
        same_value(value, helper.get_attribute_value(attribute))


def same_graph(ours: Graph, theirs: Any) -> None:
    assert ours.name == theirs.name
    for same, mine, parts in (
        (same_node, ours.nodes, theirs.node),
        (same_tensor, ours.initializers, theirs.initializer),
        (same_info, ours.inputs, theirs.input),
        (same_info, ours.outputs, theirs.output),
        (same_info, ours.values, theirs.value_info),
    ):
        for one, other in zip(mine, parts, strict=True):
            same(one, other)


def same_model(path: Path) -> Any:
    ours, theirs = read_onnx(path), onnx.load(path, load_external_data=False)
    assert ours.ir_version == theirs.ir_version
    assert ours.opsets == {one.domain: one.version for one in theirs.opset_import}
    same_graph(ours.graph, theirs.graph)
    for mine, other in zip(ours.functions, theirs.functions, strict=True):
        assert (mine.name, mine.domain) == (other.name, other.domain)
        assert (mine.inputs, mine.outputs) == (tuple(other.input), tuple(other.output))
        assert mine.attributes == tuple(other.attribute)
        assert list(mine.defaults) == [attribute.name for attribute in other.attribute_proto]
        assert mine.opsets == {one.domain: one.version for one in other.opset_import}
        for node, wanted in zip(mine.nodes, other.node, strict=True):
            same_node(node, wanted)
    return ours


def test_the_phantoms_graphs(phantom_bundle: Path) -> None:
    functions = set()
    for path in sorted((phantom_bundle / "graphs").glob("*.onnx")):
        model = same_model(path)
        for node in model.graph.nodes:
            if (body := model.function(node)) is not None:
                functions.add((path.stem, body.domain, body.name))
                assert body.outputs
    assert ("unet_image_step", "com.microsoft", "MultiHeadAttention") in functions


def test_every_kind_of_attribute(tmp_path: Path) -> None:
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "branch", [], [])
    node = helper.make_node(
        "Everything",
        ["", "a"],
        ["b"],
        name="all",
        domain="our.own",
        one=-1.5,
        two=-(2**40),
        three="drei",
        four=numpy_helper.from_array(np.arange(3.0), "t"),
        five=branch,
        six=[1.0, -2.5],
        seven=[1, -1, 2**62],
        eight=["a", "ö"],
        nine=[numpy_helper.from_array(np.int64(7), "seven")],
        ten=[branch, branch],
    )
    model = same_model(saved(tmp_path, node))
    (found,) = model.graph.nodes
    assert len(found.attributes) == 10
    assert found.attributes["two"] == -(2**40)
    assert [graph.name for graph in found.subgraphs] == ["branch"] * 3
    assert [node.op_type for node in model.graph.walk()] == ["Everything", *["Identity"] * 3]


def test_attributes_that_are_not_utf_8_or_not_read(tmp_path: Path) -> None:
    node = helper.make_node("Node", [], [], raw=b"\xff\xfe")
    kind = helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [1])
    node.attribute.append(helper.make_attribute("kind", kind))
    (found,) = read_onnx(saved(tmp_path, node)).graph.nodes
    assert found.attributes == {"raw": b"\xff\xfe", "kind": None}


def test_an_attribute_of_an_old_file_says_no_kind(tmp_path: Path) -> None:
    node = helper.make_node("Node", [], [], axes=[1, 2])
    node.attribute[0].ClearField("type")
    (found,) = read_onnx(saved(tmp_path, node)).graph.nodes
    assert found.attributes == {"axes": (1, 2)}


def test_shapes_are_numbers_names_or_unknown(tmp_path: Path) -> None:
    info = helper.make_tensor_value_info
    sequence = helper.make_tensor_sequence_value_info("list", onnx.TensorProto.FLOAT, [1])
    values = [
        info("known", onnx.TensorProto.FLOAT16, [1, 0, 3]),
        info("scalar", onnx.TensorProto.INT64, []),
        info("free", onnx.TensorProto.FLOAT, ["N", None, 4]),
        info("rank", onnx.TensorProto.BFLOAT16, None),
        onnx.ValueInfoProto(name="untyped"),
    ]
    graph = same_model(saved(tmp_path, inputs=values[:2], outputs=values[2:4], value_info=values[4:])).graph
    assert [one.shape for one in (*graph.inputs, *graph.outputs)] == [(1, 0, 3), (), ("N", None, 4), None]
    listed = read_onnx(saved(tmp_path, value_info=[sequence])).graph.values
    assert listed == (ValueInfo("list", None, None),)


def test_the_standard_domain_has_one_name(tmp_path: Path) -> None:
    model = helper.make_model(
        helper.make_graph([helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")], "graph", [], []),
        opset_imports=[helper.make_opsetid("ai.onnx", 18)],
    )
    path = tmp_path / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    read = read_onnx(path)
    assert (read.opsets, read.graph.nodes[0].domain) == ({"": 18}, "")
    assert read.function(read.graph.nodes[0]) is None


def test_a_graph_in_two_parts_is_one(tmp_path: Path) -> None:
    """As protocol buffers have it: files that are put together are merged."""
    path = saved(tmp_path, helper.make_node("Relu", ["x"], ["y"]))
    path.write_bytes(2 * path.read_bytes())
    assert len(same_model(path).graph.nodes) == 2


# --- Damage -------------------------------------------------------------------------------------------------

DAMAGE = r"^graph\.onnx: cannot be read as ONNX \(.*\); export the bundle again$"


@pytest.mark.parametrize(
    "content",
    [b"", b"\x3a\xff\x01", b"\x3a", b"\xff" * 20, b"\x3b\x00", b"no ONNX at all", b"\x08\x07", b"\x38\x01",
     b"\x02\x00", b"\x3a\x02\x0a\x00", b"\x3a\x04\x0a\x02\x22\xff"],
    ids=["empty", "cut", "tag alone", "endless number", "unknown kind", "text", "no graph", "no message",
         "field 0", "no operator", "cut in a node"],
)  # fmt: skip
def test_what_is_no_onnx_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=DAMAGE):
        read_onnx(path)


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"graph\.onnx: cannot be read as ONNX \(No such file"):
        read_onnx(tmp_path / "graph.onnx")


def test_no_cut_is_taken_for_a_whole_file(tmp_path: Path) -> None:
    node = helper.make_node("Node", ["a"], ["b"], four=numpy_helper.from_array(np.arange(3.0), "t"))
    model = helper.make_model(
        helper.make_graph([node], "graph", [helper.make_tensor_value_info("a", 1, ["N", 2])], [])
    )
    graph = onnx.ModelProto(graph=model.graph).SerializeToString()
    path = tmp_path / "graph.onnx"
    for length in range(len(graph)):
        path.write_bytes(graph[:length])
        with pytest.raises(EngineError, match=DAMAGE):
            read_onnx(path)


def test_no_byte_that_is_wrong_raises_anything_else(tmp_path: Path) -> None:
    node = helper.make_node(
        "Node", ["a"], ["b"], four=numpy_helper.from_array(np.arange(3.0), "t"), ints=[1, 2]
    )
    path = saved(tmp_path, node, inputs=[helper.make_tensor_value_info("a", 1, ["N", 2])])
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in range(len(whole)):
        for value in rng.integers(0, 256, 4):
            path.write_bytes(whole[:place] + bytes([int(value)]) + whole[place + 1 :])
            try:
                read_onnx(path)
            except EngineError as error:
                assert "\n" not in str(error)


def test_graphs_within_graphs_without_end(tmp_path: Path) -> None:
    content = b""

    def field(number: int, raw: bytes) -> bytes:
        size, length = len(raw), b""
        while size > 0x7F:
            length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + raw

    for _ in range(2000):  # a graph of a node of an attribute of a graph
        content = field(1, field(4, b"If") + field(5, b"\xa0\x01\x05" + field(6, content)))
    path = tmp_path / "graph.onnx"
    path.write_bytes(field(7, content))
    with pytest.raises(EngineError, match=DAMAGE):
        read_onnx(path)

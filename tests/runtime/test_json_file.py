"""Reading JSON from outside: values by name and type, and an error that says where."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from unibrain_rt.bundle import Bundle
from unibrain_rt.errors import BundleError
from unibrain_rt.json_file import Fields
from unibrain_rt.manifest import broken


def load(folder: Path, text: str | bytes) -> Fields:
    path = folder / "bundle.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return Fields.load(path, broken)


@pytest.fixture
def fields() -> Fields:
    value = {"name": "tiny", "steps": 50, "share": 0.5, "flag": True, "none": None, "list": [{"a": 1}, {"a": 2}],
             "graphs": {"one": {"a": 1}, "two": {"a": 2}}, "huge": 10**400}  # fmt: skip
    return Fields(value, "bundle.json", broken)


def test_values_come_by_name_and_type(fields: Fields) -> None:
    assert fields.take("name", str) == "tiny"
    assert fields.take("steps", int) == 50
    assert fields.take("share", float) == 0.5
    assert fields.take("flag", bool) is True
    assert fields.take("list", list) == [{"a": 1}, {"a": 2}]
    assert fields.raw()["share"] == 0.5


def test_whole_numbers_pass_as_floats(fields: Fields) -> None:
    value = fields.take("steps", float)
    assert value == 50
    assert isinstance(value, float)


def test_what_is_optional_may_be_missing_or_null(fields: Fields) -> None:
    assert fields.optional("nothing", str) is None
    assert fields.optional("none", str) is None
    assert fields.optional("name", str) == "tiny"
    with pytest.raises(BundleError, match="name must be int"):
        fields.optional("name", int)


def test_nested_objects_know_where_they_are(fields: Fields) -> None:
    assert [(name, graph.take("a", int)) for name, graph in fields.objects("graphs")] == [
        ("one", 1),
        ("two", 2),
    ]
    assert [item.take("a", int) for item in fields.list_of_objects("list")] == [1, 2]
    with pytest.raises(BundleError, match=r"^bundle\.json: graphs\.two: b is missing"):
        dict(fields.objects("graphs"))["two"].take("b", int)
    with pytest.raises(BundleError, match=r"^bundle\.json: list\[1\]: a must be str, found int"):
        list(fields.list_of_objects("list"))[1].take("a", str)
    with pytest.raises(BundleError, match=r"^bundle\.json: graphs: one: a must be str"):
        fields.object("graphs").object("one").take("a", str)


@pytest.mark.parametrize(
    ("name", "kind", "problem"),
    [
        ("nothing", str, "nothing is missing"),
        ("name", int, "name must be int, found str"),
        ("steps", str, "steps must be str, found int"),
        ("share", int, "share must be int, found float"),
        ("flag", int, "flag must be int, found bool"),
        ("flag", float, "flag must be float, found bool"),
        ("none", str, "none must be str, found null"),
        ("huge", float, "huge is larger than any number that makes sense"),
        ("list", dict, "list must be dict, found list"),
    ],
)
def test_other_types_are_refused(fields: Fields, name: str, kind: type[Any], problem: str) -> None:
    with pytest.raises(BundleError, match=f"bundle.json: {problem}; export the bundle again"):
        fields.take(name, kind)


@pytest.mark.parametrize(("value", "found"), [([], "list"), (None, "null"), (3, "int"), ("x", "str")])
def test_only_objects_have_fields(value: object, found: str) -> None:
    with pytest.raises(BundleError, match=f"an object is expected, found {found}"):
        Fields(value, "here", broken)
    with pytest.raises(BundleError, match=rf"here: inner\.x: an object is expected, found {found}"):
        list(Fields({"inner": {"x": value}}, "here", broken).objects("inner"))


def test_a_file_is_read(tmp_path: Path) -> None:
    fields = load(tmp_path, '{"name": "Übung 犬"}')
    assert fields.take("name", str) == "Übung 犬"
    assert fields.where == str(tmp_path / "bundle.json")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[1, 2]", "an object is expected, found list"),
        ("null", "an object is expected, found null"),
        (b"\xff\xfe", "not UTF-8 text"),
        (b"{}" * 2, "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a": ' * 40 + "1" + "}" * 40, "nested deeper than such a file is"),
        ('{"a": ' + "[" * 40 + "]" * 40 + "}", "nested deeper than such a file is"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        (b" " * (16 * 2**20 + 1), "larger than such a file can be"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str | bytes, problem: str) -> None:
    with pytest.raises(BundleError, match=problem) as caught:
        load(tmp_path, text)
    assert str(tmp_path / "bundle.json") in str(caught.value)


def test_what_is_deep_but_not_too_deep_is_read(tmp_path: Path) -> None:
    value: Any = 1
    for _ in range(31):
        value = {"a": value}
    assert load(tmp_path, json.dumps(value)).raw() == value


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bundle.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    with pytest.raises(BundleError, match="is this a bundle"):
        Bundle.open(tmp_path)
    with pytest.raises(BundleError, match="cannot be read|not a plain file"):
        Fields.load(path, broken)


@pytest.mark.parametrize(
    ("method", "value", "problem"),
    [
        ("text", " ", "x must be a text, found ' '"),
        ("text", "a\nb", "x must be a text"),
        ("text", None, "x must be a text, found null"),
        ("whole", 0, "x must be whole, from 1 to 1099511627776, found 0"),
        ("whole", True, "found True"),
        ("whole", 3.0, "found 3.0"),
        ("wholes", [], "x must be a list of 1 to 8 numbers, found a list of 0"),
        ("wholes", [1] * 9, "found a list of 9"),
        ("wholes", [2, -2], "found -2"),
        ("number", "1", "x must be a finite number, found '1'"),
        ("number", float("nan"), "found nan"),
        ("number", 10**400, "x must be a finite number, found 1000"),
    ],
)
def test_values_that_are_not_what_they_must_be(method: str, value: object, problem: str) -> None:
    with pytest.raises(BundleError, match=f"^here: .*{problem}"):
        getattr(Fields({"x": value}, "here", broken), method)("x")
    with pytest.raises(BundleError, match="^here: x is missing"):
        getattr(Fields({}, "here", broken), method)("x")


def test_numbers_within_limits() -> None:
    fields = Fields({"x": 2, "colours": [0, 0.5, 1]}, "here", broken)
    assert fields.number("x", 0.0) == 2.0
    assert fields.numbers("colours", 3) == (0.0, 0.5, 1.0)
    assert fields.whole("x", 2) == 2
    for limits, problem in (((3.0,), "of at least 3"), ((0.0, 1.0), "from 0 to 1")):
        with pytest.raises(BundleError, match=f"a finite number {problem}, found 2"):
            fields.number("x", *limits)
    with pytest.raises(BundleError, match="one of a, b, found 2"):
        fields.one_of("x", ("a", "b"))
    with pytest.raises(BundleError, match="a list of 2 numbers, found a list of 3"):
        fields.numbers("colours", 2)

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unibrain_rt.errors import InputError
from unibrain_rt.export.subjects.datasets.coco import coco_captions

TABLE = """,cocoId,cocoSplit,cropBox,nsdId,shared1000
0,532481,val2017,"(0, 0, 0.1, 0.1)",0,False
1,245764,train2017,"(0, 0, 0.1, 0.1)",1,True
2,385029,train2017,"(0, 0, 0.1, 0.1)",2,False
"""


def annotations(*entries: tuple[int, int, str]) -> str:
    keys = ("image_id", "id", "caption")
    return json.dumps({"annotations": [dict(zip(keys, entry, strict=True)) for entry in entries]})


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    (tmp_path / "info.csv").write_text(TABLE)
    (tmp_path / "captions_train2017.json").write_text(
        annotations((385029, 8, " A dog.\n"), (245764, 5, "second"), (245764, 4, "first"), (1, 1, "no one's"))
    )
    (tmp_path / "captions_val2017.json").write_text(annotations((532481, 9, "a kite")))
    return tmp_path


def test_captions_come_by_stimulus_in_cocos_order(coco: Path) -> None:
    assert coco_captions(coco / "info.csv", coco, [2, 0, 1]) == {
        0: ("a kite",),
        1: ("first", "second"),
        2: ("A dog.",),
    }


def test_only_the_splits_that_are_needed_are_read(coco: Path) -> None:
    (coco / "captions_val2017.json").unlink()
    assert coco_captions(coco / "info.csv", coco, [2]) == {2: ("A dog.",)}
    with pytest.raises(
        InputError, match=r"captions_val2017\.json: cannot be read .*annotations_trainval2017"
    ):
        coco_captions(coco / "info.csv", coco, [0])


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("info.csv", TABLE.replace("cocoSplit", "split"), "no columns nsdId, cocoId, cocoSplit"),
        ("info.csv", TABLE.replace("245764", "many"), "damaged"),
        ("info.csv", TABLE.replace("val2017", "test2017"), "stimulus 0 is of no split"),
        ("info.csv", TABLE.replace(",2,False", ",7,False"), r"stimulus 2 \(nsdId\) is not in it"),
        ("captions_train2017.json", "{", "no captions as COCO publishes them"),
        ("captions_train2017.json", "[]", "no captions as COCO publishes them"),
        ("captions_train2017.json", annotations((245764, 1, "a")), "picture 385029 has no caption"),
        ("captions_train2017.json", annotations((245764, 1, "a"), (385029, 2, " ")), "385029 has no caption"),
    ],
)
def test_damaged_files_are_named(coco: Path, file: str, text: str, problem: str) -> None:
    (coco / file).write_text(text)
    with pytest.raises(InputError, match=problem) as caught:
        coco_captions(coco / "info.csv", coco, [0, 1, 2])
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"info\.csv: cannot be read \(No such file"):
        coco_captions(tmp_path / "info.csv", tmp_path, [0])

"""Scans in files to files: the plan, the events, and what stands on the disk at each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unibrain_rt import (
    Decoder,
    ScanDecoded,
    ScanFailed,
    ScanKept,
    SheetDone,
    decode_files,
    open_pool,
    plan_files,
)
from unibrain_rt.errors import InputError

PRESET = "realtime"


@pytest.fixture(scope="module")
def decoder(tiny_template: Path) -> Decoder:
    return Decoder.open(tiny_template, preset=PRESET, threads=1)


@pytest.fixture
def scans(tiny: Any, tmp_path: Path) -> list[Path]:
    """A file of three scans of which the second is not finite, a file that is none, and one of one scan."""
    rows = np.stack([tiny.scan(number) for number in range(3)])
    rows[1, 5] = np.nan
    np.save(tmp_path / "run.npy", rows)
    (tmp_path / "bad.npy").write_bytes(b"no scan")
    np.save(tmp_path / "one.npy", tiny.scan(4))
    return [tmp_path / f"{stem}.npy" for stem in ("run", "bad", "one")]


def told(event: object) -> str:
    match event:
        case ScanDecoded(output):
            return f"decoded {output.stem}"
        case ScanKept(stem, existing):
            return f"kept {stem} for {existing.name}"
        case ScanFailed(error):
            return f"failed {str(error).split(':')[0].rsplit('/', 1)[-1]}"
        case SheetDone(path, outcome):
            return f"{path.name} {outcome}"
    raise AssertionError(event)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_scan_has_an_event_in_order(
    decoder: Decoder, scans: list[Path], tmp_path: Path, workers: int
) -> None:
    plan = plan_files(scans, decoder.subject, tmp_path / "out")
    assert plan.scans == 4
    assert not (tmp_path / "out").exists(), "a plan writes nothing"
    if workers:
        with open_pool(decoder.bundle, workers=workers, preset=PRESET) as pool:
            events = list(decode_files(plan, pool, seed=3))
    else:
        events = list(decode_files(plan, decoder, seed=3))
    assert [told(event) for event in events] == [
        "failed bad.npy",
        "decoded run_000",
        "failed run.npy",
        "decoded run_002",
        "decoded one",
        "contact_sheet.png written",
    ]
    for event in events:
        if isinstance(event, ScanDecoded):
            assert json.loads(event.output.json.read_text()) == json.loads(json.dumps(event.record))
            assert event.record["seed"] == 3
            assert event.output.png.read_bytes()
    assert (tmp_path / "out" / "contact_sheet.png").exists()


def test_a_pair_is_written_before_its_event_and_the_next_scan_after_it(
    decoder: Decoder, scans: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for event in decode_files(plan_files(scans, decoder.subject, out), decoder):
        if isinstance(event, ScanDecoded):
            break
    assert sorted(path.name for path in out.iterdir()) == ["run_000.json", "run_000.png"]
    kept = [told(e) for e in decode_files(plan_files(scans, decoder.subject, out), decoder)]
    assert kept[1] == "kept run_000 for run_000.png"
    assert kept[-1] == "contact_sheet.png written"
    plan = plan_files(scans, decoder.subject, out, overwrite=True)
    assert [told(event) for event in decode_files(plan, decoder)].count("decoded run_000") == 1


def test_where_all_is_kept_no_decoder_is_opened(
    decoder: Decoder, scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = scans[2:]
    list(decode_files(plan_files(one, decoder.subject, tmp_path), decoder))
    monkeypatch.setattr(Decoder, "open", lambda *_, **__: pytest.fail("a decoder was opened"))
    with open_pool(decoder.bundle, workers=1) as pool:
        events = list(decode_files(plan_files(one, decoder.subject, tmp_path), pool))
    assert [told(event) for event in events] == ["kept one for one.png"]


def test_progress_names_the_scan(decoder: Decoder, scans: list[Path], tmp_path: Path) -> None:
    counted: dict[str, int] = {}

    def progress(stem: str, done: int, total: int) -> None:
        assert total == decoder.steps
        counted[stem] = counted.get(stem, 0) + done

    list(decode_files(plan_files(scans, decoder.subject, tmp_path / "out"), decoder, progress=progress))
    assert counted == dict.fromkeys(("run_000", "run_002", "one"), decoder.steps)


def test_one_name_for_two_scans_is_refused_before_anything_is_decoded(
    decoder: Decoder, scans: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="would be written twice"):
        plan_files([scans[2], scans[2]], decoder.subject, tmp_path)


# --- Every way gives the same ---------------------------------------------------------------------------------


def test_command_workers_and_python_give_the_same_bytes(
    cli: Any, repository: Path, phantom_bundle: Path, tmp_path: Path
) -> None:
    """`evaluate` gives them, too: tests/benchmarks/quality/test_evaluator.py."""
    files = [repository / "examples" / name for name in ("scan.npy", "scans.npy")]
    words = ["--subject", "sub-01", "--preset", PRESET, "--seed", "7", *files]
    for workers in ("1", "2"):
        done = cli("decode", *words, "--workers", workers, "--out", tmp_path / workers)
        assert (done.code, done.err) == (0, "")
    names = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "2").iterdir())
    decoder = Decoder.open(phantom_bundle, subject="sub-01", preset=PRESET)
    plan = plan_files(files, decoder.subject, tmp_path / "python")
    results = {
        event.output.stem: event.result
        for event in decode_files(plan, decoder, seed=7)
        if isinstance(event, ScanDecoded)
    }
    assert len(names) == 2 * len(results) + 1 == 13
    for name in names:
        one, two, python = ((tmp_path / folder / name).read_bytes() for folder in ("1", "2", "python"))
        if name.endswith(".json"):
            records = [{**json.loads(raw), "timings_ms": 0} for raw in (one, two, python)]
            assert records[0] == records[1] == records[2]
            assert records[0]["caption"] == results[Path(name).stem].caption
        else:
            assert one == two == python
    scans = np.load(files[1]).astype(np.float32) / 300
    plain = decoder.decode(scans[2], seed=7)
    assert plain.image.tobytes() == results["scans_002"].image.tobytes()
    for head, values in plain.predictions.items():
        assert values.tobytes() == results["scans_002"].predictions[head].tobytes()

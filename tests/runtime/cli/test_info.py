"""``unibrain-rt info``: everything a bundle holds, for readers and for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unibrain_rt.bundle import Bundle

Run = Callable[..., Any]


def test_it_shows_what_is_in_the_bundle(cli: Run, tiny: Any, tiny_template: Path) -> None:
    done = cli("info", tiny_template)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == f"tiny  fp32  {Bundle.open(tiny_template).fingerprint()}"
    assert max(map(len, lines)) <= 110
    shown = {" ".join(line.split()) for line in lines}
    assert "image 8 × 8 latent 4 × 4 × 4" in shown
    assert "caption yes latent 6" in shown
    assert "image context 5 × 8" in shown
    assert "parameters 1,234" in shown
    assert "paper ddim 37 of 50 0.75 7.5 0.6, 0.9" in shown
    assert any(line.startswith("subject sub-01: 20 voxels, mask 4 × 3 × 4") for line in shown)
    assert any(line.startswith("image_latent 4 × 4 × 4") for line in shown)
    assert "provenance: source by hand, parameters 1234" in shown
    for name in ("unet_context", "unet_image_step", "optimus_decode", "graphs/unet.weights"):
        assert any(line.startswith(f"{name} ") for line in shown)


def test_columns_are_aligned(cli: Run, tiny_template: Path) -> None:
    lines = cli("info", tiny_template).out.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("graph "))
    table = lines[start : lines.index("", start)]
    assert len({len(line) for line in table}) == 1, "sizes end in one column"


def test_json_says_it_all(cli: Run, tiny: Any, tiny_template: Path) -> None:
    done = cli("info", tiny_template, "--json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    bundle = Bundle.open(tiny_template)
    assert (found["name"], found["precision"]) == ("tiny", "fp32")
    assert found["fingerprint"] == bundle.fingerprint()
    assert found["bundle"] == str(tiny_template)
    assert found["captions"] is True
    assert found["sizes"] == {
        "image": [8, 8],
        "image_latent": [4, 4, 4],
        "text_latent": [6],
        "image_context": [5, 8],
        "text_context": [3, 8],
        "parameters": 1234,
    }
    assert set(found["graphs"]) == set(bundle.graphs)
    for name, graph in found["graphs"].items():
        assert graph["size_bytes"] == (tiny_template / graph["file"]).stat().st_size
        assert set(graph["inputs"]) == {spec.name for spec in bundle.graph(name).inputs}
    assert found["graphs"]["unet_time"]["inputs"] == {"timesteps": {"dtype": "int64", "shape": ["N"]}}
    assert list(found["weights"]) == ["graphs/unet.weights"]
    assert found["size_bytes"] == sum(record.size_bytes for record in bundle.files.values())
    assert found["presets"]["paper"]["steps_run"] == 37
    assert found["presets"]["realtime"]["sampler"] == "dpm-solver++2m"
    subject = found["subjects"]["sub-01"]
    assert (subject["voxels"], subject["mask"]) == (tiny.VOXELS, list(tiny.MASK_SHAPE))
    assert subject["beta_scale"] == tiny.BETA_SCALE
    assert subject["fitted_on"] == {"scans": 60, "simulated": True}
    for head in subject["heads"].values():
        assert set(head) == {
            "shape", "rank", "alpha", "held_out_correlation", "fidelity", "storage", "size_bytes"
        }  # fmt: skip
        assert head["storage"] == "int8"
        assert head["size_bytes"] > 0
        assert head["rank"] >= 1
        assert head["alpha"] in (1.0, 10.0)
        assert 0.5 < head["held_out_correlation"] <= 1
    assert found["provenance"] == {"source": "by hand", "parameters": 1234}


def test_json_goes_to_a_file(cli: Run, tiny_template: Path, tmp_path: Path) -> None:
    file = tmp_path / "info.json"
    for words in (
        (tiny_template, "--json", file),
        ("--json", file, tiny_template),
        (f"--json={file}", tiny_template),
    ):
        done = cli("info", *words)
        assert (done.code, done.err) == (0, "")
        assert done.out == cli("info", tiny_template).out
        assert json.loads(file.read_text())["name"] == "tiny"
        file.unlink()


def test_json_swallows_no_bundle(cli: Run, tiny_template: Path) -> None:
    assert json.loads(cli("info", "--json", tiny_template).out)["name"] == "tiny"


def test_a_report_is_not_written_into_the_bundle(cli: Run, tiny_bundle: Path) -> None:
    for name in ("bundle.json", "graphs/new.json"):
        done = cli("info", tiny_bundle, "--json", tiny_bundle / name)
        assert done.code == 2
        assert "lies in the bundle" in done.err
        assert len(done.complaints) == 1
    Bundle.open(tiny_bundle)


def test_one_subject_of_several(cli: Run, tiny: Any, tmp_path: Path) -> None:
    bundle = tiny.make_bundle(tmp_path / "b", subjects=("sub-01", "sub-02"))
    both = cli("info", bundle).out
    assert "subject sub-01" in both
    assert "subject sub-02" in both
    one = cli("info", bundle, "--subject", "sub-02").out
    assert "subject sub-01" not in one
    assert "subject sub-02" in one
    assert list(json.loads(cli("info", bundle, "--subject", "sub-02", "--json").out)["subjects"]) == [
        "sub-02"
    ]
    done = cli("info", bundle, "--subject", "sub-03")
    assert done.code == 2
    assert "no subject 'sub-03' in this bundle; it has sub-01, sub-02" in done.err


def test_a_bundle_without_subjects_or_captions(cli: Run, tiny: Any, tmp_path: Path) -> None:
    bundle = tiny.make_bundle(tmp_path / "b", subjects=())
    tiny.seal(bundle, tokenizers={}, provenance={})
    done = cli("info", bundle)
    assert done.code == 0
    assert "no subject: fit one before decoding" in done.out
    assert "caption        no" in done.out
    assert "provenance" not in done.out


def test_guidance_in_an_interval_is_shown(cli: Run, tiny: Any, tiny_bundle: Path) -> None:
    manifest = json.loads((tiny_bundle / "bundle.json").read_text())
    manifest["presets"]["paper"]["guidance_interval"] = [0.1, 0.75]
    tiny.seal(tiny_bundle, presets=manifest["presets"])
    assert "7.5 in 0.1 to 0.75" in cli("info", tiny_bundle).out


def test_a_manifest_cannot_write_on_the_terminal(cli: Run, tiny: Any, tiny_bundle: Path) -> None:
    tiny.seal(tiny_bundle, name="\x1b[31mred\nline", provenance={"source": "\x1b]0;title\x07" + "x" * 9999})
    done = cli("info", tiny_bundle)
    assert done.code == 0
    assert "\x1b" not in done.out
    assert "\x07" not in done.out
    assert done.out.splitlines()[0].startswith("?[31mred line  fp32")
    assert max(map(len, done.out.splitlines())) < 400


def test_contents_are_not_read_but_sizes_are(cli: Run, tiny_bundle: Path) -> None:
    weights = tiny_bundle / "graphs" / "unet.weights"
    raw = weights.read_bytes()
    weights.write_bytes(bytes(len(raw)))
    assert cli("info", tiny_bundle).code == 0
    weights.write_bytes(raw[:-1])
    done = cli("info", tiny_bundle)
    assert done.code == 3
    assert len(done.complaints) == 1


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["nowhere"], 2),
        (["TINY", "TINY"], 2),
        (["TINY", "--engine", "auto"], 2),
        (["TINY", "--json", "x.txt"], 2),
    ],
)
def test_what_cannot_be_shown(cli: Run, tiny_template: Path, words: list[str], code: int) -> None:
    done = cli("info", *(tiny_template if word == "TINY" else word for word in words))
    assert done.code == code
    assert len(done.complaints) == 1
    assert done.out == ""


def test_the_shipped_bundle_is_the_default(cli: Run, phantom_bundle: Path) -> None:
    done = cli("info", "--json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert found["captions"] is True
    assert len(found["subjects"]) == 4
    assert Path(found["bundle"]).samefile(phantom_bundle)


def test_the_exported_bundle_is_shown(cli: Run, golden_bundle: Path) -> None:
    done = cli("info", golden_bundle, "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["sizes"]["image"] == [32, 32]

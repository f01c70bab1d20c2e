from __future__ import annotations

from pathlib import Path

import pytest

from unibrain_rt.bundle import Bundle
from unibrain_rt.errors import InputError
from unibrain_rt.export.bundles import writer
from unibrain_rt.export.bundles.checkpoint import Checkpoint, open_checkpoint


@pytest.fixture(scope="module")
def checkpoint(golden_dir: Path) -> Checkpoint:
    return open_checkpoint(golden_dir, golden_dir / "config.json")


def test_the_bundle_opens_and_holds_every_graph(golden_bundle: Path) -> None:
    bundle = Bundle.open(golden_bundle)
    assert set(bundle.graphs) == {
        "autokl_decode",
        "autokl_encode",
        "clip_image",
        "clip_text",
        "optimus_decode",
        "optimus_encode",
        "unet_context",
        "unet_image_step",
        "unet_text_step",
        "unet_time",
    }
    assert bundle.has_captions
    assert not any(path.suffix in (".pt", ".pth", ".bin", ".pkl") for path in golden_bundle.rglob("*"))


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError, OSError("disk full")])
def test_an_interrupted_export_leaves_nothing_behind(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def interrupted(*arguments: object) -> None:
        raise failure

    monkeypatch.setattr(writer, "_export_graphs", interrupted)
    with pytest.raises((KeyboardInterrupt, MemoryError, InputError)):
        writer.write_bundle(checkpoint, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_is_kept(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="--overwrite"):
        writer.write_bundle(checkpoint, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "mine.txt").read_text() == "keep"

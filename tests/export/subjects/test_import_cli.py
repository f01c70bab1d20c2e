"""``unibrain-rt subjects import``: weights from elsewhere predict the same, and what is no array is refused."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unibrain_rt.bundle import Bundle
from unibrain_rt.export.subjects.subject_writer import FIDELITY
from unibrain_rt.flows import INPUTS

Run = Callable[..., Any]
VOXELS = 15


@pytest.fixture
def made(tiny: Any, tiny_template: Path, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A bundle, and the files of four heads with Brain-Diffuser's layout."""
    bundle = Path(shutil.copytree(tiny_template, tmp_path / "bundle"))
    subject = Bundle.open(bundle).subject()
    rng = np.random.default_rng(0)
    betas = rng.normal(size=(40, VOXELS)) * rng.uniform(1, 3, VOXELS) + 2
    np.save(tmp_path / "betas.npy", betas)
    arrays: dict[str, Any] = {"betas": betas}
    for name in INPUTS:
        shape = subject.head_shape(name)
        weight, bias = rng.normal(size=(*shape, VOXELS)), rng.normal(size=shape)
        arrays[name] = weight, bias
        np.savez(tmp_path / f"{name}.npz", weight=weight.astype("f4"), bias=bias.astype("f4"))
    return bundle, arrays


def words(folder: Path, **other: Path) -> tuple[Any, ...]:
    heads = [part for name in INPUTS for part in ("--head", name, other.get(name, folder / f"{name}.npz"))]
    return ("subjects", "import", "--bundle", folder / "bundle", "--subject", "bd", *heads,
            "--scans", folder / "betas.npy")  # fmt: skip


@pytest.mark.parametrize("options", [("--fidelity", "1"), ("--exact",), ("--storage", "float32")])
def test_imported_heads_predict_what_they_did(
    cli: Run, made: tuple[Path, dict[str, Any]], tmp_path: Path, options: tuple[str, ...]
) -> None:
    bundle, arrays = made
    done = cli(*words(tmp_path), *options)
    assert done.code == 0, done.err
    betas = arrays["betas"]
    z = (betas - betas.mean(axis=0)) / betas.std(axis=0, ddof=1)
    found = Bundle.open(bundle).subject("bd").predict(betas)
    for name in INPUTS:
        weight, bias = arrays[name]
        expected = np.tensordot(z, weight, (1, weight.ndim - 1)) + bias
        change = np.square(expected - bias).sum()
        # What all heads lose together, one of them may.
        lost = {"--exact": 1e-9, "--fidelity": 1e-3, "--storage": 4 * (1 - FIDELITY)}[options[0]]
        assert np.square(found[name] - expected).sum() < lost * change
    assert cli(*words(tmp_path)).code == 2, "there already"


def _pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weight": np.ones(3)}))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_pickle, "a pickle, which may run anything when it is read: load it where you trust it"),
        (lambda path: np.savez(path, weight=np.array([{}], object)), "holds Python objects"),
        (lambda path: np.savez(path, bias=np.ones(6, "f4")), "has no array called weight"),
        (lambda path: np.savez(path, weight=np.ones((6, 9), "f4")), "weight is (6, 9), not (6, 15)"),
        (lambda path: np.savez(path, weight=np.full((6, 15), np.nan)), "not finite"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "damaged"),
        (lambda path: path.unlink(), "no such file"),
    ],
)
def test_what_is_no_head_is_refused(
    cli: Run, made: tuple[Path, dict[str, Any]], tmp_path: Path, damage: Any, problem: str
) -> None:
    bundle, _ = made
    before = (bundle / "bundle.json").read_bytes()
    damage(tmp_path / "text_latent.npz")
    done = cli(*words(tmp_path))
    assert done.code == 2, done.err
    assert problem in done.complaints[-1]
    assert (bundle / "bundle.json").read_bytes() == before

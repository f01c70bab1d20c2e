"""A recording of the phantom, which readers, fits and evaluations are tested on."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects with one session each, in NSD's folders; for everybody to read, and nobody to change."""
    for library in ("h5py", "nibabel", "scipy"):
        pytest.importorskip(library)
    from unibrain_rt.export.phantom.recording import record

    out = tmp_path_factory.mktemp("recording") / "phantom"
    record(out, ("sub-02", "sub-07"), 250)
    return out

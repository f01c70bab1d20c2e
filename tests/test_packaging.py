"""The wheel: what is in it, and that a fresh environment with nothing but it decodes a scan."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from built_wheel import PACKAGE_FOLDERS, install, make_environment, run, site_packages

MEGABYTE = 1_000_000
WHEEL_LIMIT_BYTES = 25 * MEGABYTE
LEAN_INSTALL_LIMIT_BYTES = 200 * MEGABYTE


def size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_wheel_holds_every_module_and_the_bundle_and_no_tests(
    wheel: Path, repository: Path, phantom_bundle: Path, report: Callable[[str], None]
) -> None:
    report(f"wheel: {wheel.stat().st_size / MEGABYTE:.1f} MB (limit {WHEEL_LIMIT_BYTES / MEGABYTE:.0f})")
    assert wheel.stat().st_size < WHEEL_LIMIT_BYTES
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("/licenses/LICENSE")]
    assert licences
    expected = {"unibrain_rt/py.typed", "unibrain_rt/engines/py.typed"}
    for folder, target in PACKAGE_FOLDERS.items():
        root = repository / folder
        expected |= {f"{target}/{path.relative_to(root).as_posix()}" for path in root.rglob("*.py")}
        graphs = root.rglob("*.onnx") if folder in ("engines", "benchmarks") else ()
        expected |= {f"{target}/{path.relative_to(root).as_posix()}" for path in graphs}
    expected |= {
        f"unibrain_rt/phantom/{path.relative_to(phantom_bundle).as_posix()}"
        for path in phantom_bundle.rglob("*")
        if path.is_file()
    }
    expected.add("unibrain_rt/benchmarks/experiments/judge/judge.json")
    assert packed == expected


def test_fresh_install_of_the_wheel_decodes(
    wheel: Path, repository: Path, tmp_path: Path, report: Callable[[str], None]
) -> None:
    """Base and `cpu` alone: the command line starts, decodes an example scan, and the install is lean."""
    python = make_environment(sys.executable, tmp_path / "venv")
    libraries = site_packages(python)
    # pip, and setuptools on older Pythons, came with the environment.
    before_bytes = size_bytes(libraries)
    install(python, f"{wheel}[cpu]")

    bundle_bytes = size_bytes(libraries / "unibrain_rt" / "phantom")
    added_bytes = size_bytes(libraries) - before_bytes - bundle_bytes
    limit_mb = LEAN_INSTALL_LIMIT_BYTES / MEGABYTE
    report(f"lean install without the bundle: {added_bytes / MEGABYTE:.0f} MB (limit {limit_mb:.0f})")
    # On 3.10 it is shown only: the last onnxruntime for it requires sympy, 56 MB that nothing here uses.
    if sys.version_info >= (3, 11):
        assert added_bytes < LEAN_INSTALL_LIMIT_BYTES

    command = python.parent / "unibrain-rt"
    work = tmp_path / "work"
    work.mkdir()
    helped = run(command, "--help", folder=work)
    assert helped.returncode == 0, helped.stderr
    assert "decode" in helped.stdout

    decoded = run(command, "decode", repository / "examples" / "scan.npy", folder=work)
    assert decoded.returncode == 0, decoded.stderr
    written = {path.name: path for path in work.rglob("*") if path.is_file()}
    assert written.keys() == {"scan.png", "scan.json"}
    assert written["scan.png"].read_bytes().startswith(b"\x89PNG")
    caption = json.loads(written["scan.json"].read_text("utf-8"))["caption"]
    assert caption
    assert caption in decoded.stdout

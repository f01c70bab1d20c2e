"""The shape of the house: which package may import what, what a start-up loads, what is packaged."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it on Python 3.10

REPOSITORY = Path(__file__).resolve().parent.parent
SETUPTOOLS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
FOLDERS = {name: REPOSITORY / folder for name, folder in SETUPTOOLS["package-dir"].items()}
RUNTIME, ENGINES, EXPORT, BENCHMARKS = (
    f"unibrain_rt{suffix}" for suffix in ("", ".engines", ".export", ".benchmarks")
)

BACK_ENDS = {"cuda", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"}
RUNTIME_LIBRARIES = {"numpy", "click", "PIL", "nibabel"}
NOT_EVERYWHERE = {"PIL", "nibabel"}
"""A decode runs without them."""
HEAVY = {"torch", "onnx", "diffusers", "transformers", "optimum", "accelerate", "scipy", "huggingface_hub"}

SOURCES = [
    (package, path)
    for package, folder in FOLDERS.items()
    for path in sorted(folder.rglob("*.py"))
    if "__pycache__" not in path.parts
]


def name_of(item: object) -> str | None:
    """Test id of a path: where it lies in the repository."""
    return str(item.relative_to(REPOSITORY)) if isinstance(item, Path) else None


def sources_of(*packages: str) -> list[Path]:
    return [path for package, path in SOURCES if package in packages]


# --- Imports ------------------------------------------------------------------------------------------------


class Import(NamedTuple):
    target: str
    """Dotted name, absolute."""
    lazy: bool
    """Inside a function or under TYPE_CHECKING: not run when the module is imported."""
    line: int


def imports_in(source: str, package: str) -> Iterator[Import]:
    """Every import of a module in `package`: statements, import_module and __import__ of a literal name."""

    def absolute(node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        base = package.split(".")[: len(package.split(".")) - node.level + 1]
        return ".".join([*base, *([node.module] if node.module else [])])

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, lazy, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            module = absolute(node)
            for alias in node.names:
                # `from unibrain_rt import export` and `from . import x` name a module by their last part.
                inner = f"{module}.{alias.name}"
                yield Import(inner if module == RUNTIME or not node.module else module, lazy, node.lineno)
        elif isinstance(node, ast.Call):
            function = node.func
            called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)
            first = node.args[0] if node.args else None
            if (
                called in {"import_module", "__import__"}
                and isinstance(first, ast.Constant)
                and isinstance(first.value, str)
            ):
                dots = len(first.value) - len(first.value.lstrip("."))
                base = package.split(".")[: len(package.split(".")) - dots + 1] if dots else []
                yield Import(".".join([*base, first.value.lstrip(".")]), lazy, node.lineno)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from visit(child, True)
            for child in node.orelse:
                yield from visit(child, lazy)
            return
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    yield from visit(ast.parse(source), False)


def imports_of(path: Path) -> list[Import]:
    root, folder = next((name, folder) for name, folder in FOLDERS.items() if path.is_relative_to(folder))
    package = ".".join([root, *path.parent.relative_to(folder).parts])
    return list(imports_in(path.read_text("utf-8"), package))


def package_of(target: str) -> str | None:
    """Which of our four packages a dotted name lies in; None if it is not ours."""
    if target.split(".")[0] != "unibrain_rt":
        return None
    return next((p for p in (ENGINES, EXPORT, BENCHMARKS) if f"{target}.".startswith(f"{p}.")), RUNTIME)


def library_of(target: str) -> str | None:
    """Top name of a third-party library; None for our own modules and the standard library."""
    top = target.split(".")[0]
    return None if top == "unibrain_rt" or top in sys.stdlib_module_names else top


@pytest.mark.parametrize("path", sources_of(ENGINES), ids=name_of)
def test_engines_import_numpy_and_one_lazy_back_end(path: Path) -> None:
    found = imports_of(path)
    ours = {f"line {i.line}: {i.target}" for i in found if package_of(i.target) not in {None, ENGINES}}
    assert not ours, "engines knows nothing of the packages above it"
    eager = {i.target for i in found if not i.lazy and library_of(i.target) not in {None, "numpy"}}
    assert not eager, "a back end is imported inside the function that needs it"
    lazy = {library_of(i.target) for i in found} - {None, "numpy"}
    assert lazy <= BACK_ENDS
    assert len(lazy) <= 1, "one module, one back end"


@pytest.mark.parametrize("path", sources_of(RUNTIME), ids=name_of)
def test_runtime_imports_only_small_libraries_and_engines(path: Path) -> None:
    found = imports_of(path)
    ours = {f"line {i.line}: {i.target}" for i in found if package_of(i.target) in {EXPORT, BENCHMARKS}}
    assert not ours, "runtime knows nothing of the packages above it, not even lazily"
    libraries = {library_of(i.target) for i in found} - {None}
    assert libraries <= RUNTIME_LIBRARIES
    eager = {library_of(i.target) for i in found if not i.lazy}
    assert not eager & NOT_EVERYWHERE, "import it in the function that needs it"


@pytest.mark.parametrize("path", sources_of(EXPORT), ids=name_of)
def test_export_does_not_import_benchmarks(path: Path) -> None:
    assert not [i for i in imports_of(path) if package_of(i.target) == BENCHMARKS]


MODULES = {
    ".".join([package, *path.relative_to(FOLDERS[package]).with_suffix("").parts]).removesuffix(
        ".__init__"
    ): path
    for package, path in SOURCES
}


def graph_of_imports() -> dict[str, set[str]]:
    """By module, those of ours that it imports, be it lazily or for types alone."""
    graph: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        package = name if path.stem == "__init__" else name.rpartition(".")[0]
        found = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                up = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                module = ".".join([*up, *([node.module] if node.module else [])])
                # What is imported of a package is a module of it, or else what its __init__ gives.
                found |= {inner if (inner := f"{module}.{a.name}") in MODULES else module for a in node.names}
        graph[name] = (found & MODULES.keys()) - {name}
    return graph


def test_no_import_goes_in_a_circle_not_even_for_types() -> None:
    try:
        TopologicalSorter(graph_of_imports()).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_import_runs_up() -> None:
    order = [ENGINES, RUNTIME, EXPORT, BENCHMARKS]
    up = [
        f"{name} -> {target}"
        for name, targets in graph_of_imports().items()
        for target in targets
        if order.index(package_of(target) or "") > order.index(package_of(name) or "")
    ]
    assert not up


def test_no_two_modules_have_one_name() -> None:
    """But for the command lines of the rooms, which are all called ``cli``."""
    stems = Counter(path.stem for path in MODULES.values() if path.stem not in ("__init__", "cli"))
    assert [stem for stem, count in stems.items() if count > 1] == []


def test_the_import_walker_sees_every_form() -> None:
    source = """
from typing import TYPE_CHECKING
import numpy as np, torch.nn
from . import scans
from .. import export
from ..engines.base import Engine
from unibrain_rt import benchmarks
if TYPE_CHECKING:
    import onnx
def f():
    from .decode import main
    importlib.import_module("diffusers.utils")
    importlib.import_module(".info", __package__)
    importlib.import_module(table[name])
TABLE = {"export": "unibrain_rt.export.bundles.cli:main"}
"""
    found = {(i.target, i.lazy) for i in imports_in(source, "unibrain_rt.cli")}
    assert found == {
        ("typing", False),
        ("numpy", False),
        ("torch.nn", False),
        ("unibrain_rt.cli.scans", False),
        ("unibrain_rt.export", False),
        ("unibrain_rt.engines.base", False),
        ("unibrain_rt.benchmarks", False),
        ("onnx", True),
        ("unibrain_rt.cli.decode", True),
        ("diffusers.utils", True),
        ("unibrain_rt.cli.info", True),
    }


# --- Start-up -----------------------------------------------------------------------------------------------


def loaded_by(code: str, folder: Path) -> set[str]:
    """Top names that `code` adds to sys.modules in a fresh interpreter."""
    ask = "import json, sys; before = set(sys.modules)\n{}\n" + (
        "print('\\n' + json.dumps(sorted({{m.split('.')[0] for m in set(sys.modules) - before}})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", ask.format(code)], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_loads_no_library(tmp_path: Path) -> None:
    loaded = loaded_by("import unibrain_rt", tmp_path)
    assert "unibrain_rt" in loaded
    assert not loaded & (HEAVY | BACK_ENDS | RUNTIME_LIBRARIES)


@pytest.mark.parametrize(
    "code",
    [
        "import unibrain_rt.cli",
        "from unibrain_rt.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    ],
    ids=["import", "help"],
)
def test_the_command_line_starts_with_click_alone(code: str, tmp_path: Path) -> None:
    loaded = loaded_by(code, tmp_path)
    assert "click" in loaded
    assert not loaded & (HEAVY | BACK_ENDS | RUNTIME_LIBRARIES - {"click"})


# --- Packaging and hygiene ----------------------------------------------------------------------------------


def test_every_folder_with_modules_is_a_listed_package() -> None:
    found = set()
    for root, path in SOURCES:
        package = ".".join([root, *path.parent.relative_to(FOLDERS[root]).parts])
        assert (path.parent / "__init__.py").is_file(), f"{path.parent} holds modules but no __init__.py"
        found.add(package)
    assert sorted(found) == sorted(SETUPTOOLS["packages"])


@pytest.mark.parametrize("path", sources_of(ENGINES, RUNTIME), ids=name_of)
def test_public_modules_say_what_they_are(path: Path) -> None:
    if path.stem.startswith("_") and not path.stem.startswith("__"):
        pytest.skip("private module")
    assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), "a module starts with a docstring"


@pytest.mark.parametrize("path", sources_of(ENGINES, RUNTIME), ids=name_of)
def test_the_oldest_python_reads_it(path: Path) -> None:
    """As far as a later Python can tell; tests/runtime/test_lean.py asks the oldest itself, where it is here."""
    ast.parse(path.read_text("utf-8"), feature_version=(3, 10))


UNSAFE = re.compile(
    r"allow_pickle\s*=\s*True|weights_only\s*=\s*False|\bpickle\.(load|Unpickler)|^\s*(from|import) pickle\b",
    re.M,
)


@pytest.mark.parametrize("path", sources_of(*FOLDERS), ids=name_of)
def test_nothing_unpickles(path: Path) -> None:
    assert not [match.group() for match in UNSAFE.finditer(path.read_text("utf-8"))]


def test_no_tracked_file_names_a_folder_of_one_machine() -> None:
    try:
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    machine_path = re.compile(rb"(?<![\w.~-])/(work|root|home/\w+)/")
    offenders = []
    for name in filter(None, listing.stdout.split("\0")):
        path = REPOSITORY / name
        if not path.is_file():
            continue  # deleted, but not yet from the index
        content = path.read_bytes()
        if b"\0" in content[:8192]:
            continue  # binary
        lines = [line.strip()[:100] for line in content.splitlines() if machine_path.search(line)]
        offenders += [f"{name}: {line!r}" for line in lines]
    assert not offenders

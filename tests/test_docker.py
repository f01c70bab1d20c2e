"""The container recipes, as far as that can be checked without building them; and the extras that docs name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it on Python 3.10

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
EXTRAS = set(PROJECT["project"]["optional-dependencies"])
RECIPES = sorted((REPOSITORY / "docker").glob("Dockerfile.*"))
KNOWN = {"ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "ONBUILD", "RUN",
         "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"}  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    name: str
    words: str
    """All after the name, continuations joined."""


def instructions(text: str) -> list[Instruction]:
    """What a Dockerfile says; raises ValueError where a line is no instruction, comment or continuation."""
    found: list[Instruction] = []
    pending = ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#"):
            continue  # also among continued lines
        if not line.strip():
            if pending:
                raise ValueError(f"line {number}: an empty line within an instruction")
            continue
        if line.rstrip() != line:
            raise ValueError(f"line {number}: blanks at its end, where a backslash would not continue it")
        if line.endswith("\\"):
            pending += line[:-1] + " "
            continue
        name, _, words = (pending + line).strip().partition(" ")
        pending = ""
        if name not in KNOWN:
            raise ValueError(f"line {number}: {name} is no instruction")
        if not words.strip():
            raise ValueError(f"line {number}: {name} of nothing")
        found.append(Instruction(name, " ".join(words.split())))
    if pending:
        raise ValueError("the last line is continued")
    if not found or found[0].name not in ("FROM", "ARG"):
        raise ValueError("does not begin with FROM")
    return found


def extras_in(text: str) -> set[str]:
    """Extras of this project that text installs: `".[a,b]"`, `"unibrain-rt[a]"` and a wheel's."""
    found = re.findall(r'pip install[^\n]*?"(?:\.|unibrain-rt|\$\(echo [^)]*\))\[([\w,-]+)\]"', text)
    return {extra for group in found for extra in group.split(",")}


@pytest.fixture(params=RECIPES, ids=lambda path: path.name)
def recipe(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_there_are_recipes_for_three_kinds_of_machine() -> None:
    assert [path.name for path in RECIPES] == ["Dockerfile.cpu", "Dockerfile.jetson", "Dockerfile.tensorrt"]


def test_what_is_copied_is_there_and_makes_a_wheel(recipe: Path) -> None:
    copied, stages = set(), set()
    for instruction in instructions(recipe.read_text("utf-8")):
        words = instruction.words.split()
        if instruction.name == "FROM":
            assert len(words) in (1, 3)
            if len(words) == 3:
                assert words[1] == "AS"
                stages.add(words[2])
        if instruction.name == "COPY":
            options = [word for word in words if word.startswith("--")]
            if options:
                assert [option.removeprefix("--from=") in stages for option in options] == [True]
                continue
            *sources, target = words
            assert target.startswith("/")
            assert len(sources) == 1 or target.endswith("/")
            for source in sources:
                assert (REPOSITORY / source).exists(), source
                copied.add(source)
    folders = PROJECT["tool"]["setuptools"]["package-dir"].values()
    assert copied == {
        *folders,
        "pyproject.toml",
        PROJECT["project"]["readme"],
        *PROJECT["project"]["license-files"],
    }


def test_commands_are_those_of_a_shell(recipe: Path) -> None:
    commands = [i.words for i in instructions(recipe.read_text("utf-8")) if i.name == "RUN"]
    for command in commands:
        done = subprocess.run(["sh", "-n", "-c", command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    named = extras_in("\n".join(commands))
    assert named
    assert named <= EXTRAS


def test_it_ends_as_a_user_who_may_do_little_and_with_the_command(recipe: Path) -> None:
    found = instructions(recipe.read_text("utf-8"))
    assert [i.name for i in found[-3:]] == ["USER", "WORKDIR", "ENTRYPOINT"]
    user = found[-3].words
    assert user not in ("root", "0")
    assert any(re.search(rf"useradd .*\b{user}$", i.words) for i in found if i.name == "RUN")
    assert json.loads(found[-1].words) == ["unibrain-rt"]


def test_it_says_that_it_was_not_run(recipe: Path) -> None:
    assert "it was never built or run" in recipe.read_text("utf-8")


@pytest.mark.parametrize(
    "text",
    ["", "RUN true", "FROM a\nrun true", "FROM a\nRUNN true", "FROM a\nRUN", "FROM a\nRUN x \\", "FROM a\nRUN x \\\n\ny",
     "FROM a\nRUN x \\ \n  y", "FROM a\n  && y"],
)  # fmt: skip
def test_what_is_no_recipe(text: str) -> None:
    with pytest.raises(ValueError, match="."):
        instructions(text)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/deploy.md"])
def test_extras_that_are_named_exist(name: str) -> None:
    named = extras_in((REPOSITORY / name).read_text("utf-8"))
    assert named
    assert named <= EXTRAS

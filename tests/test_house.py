"""The rules of the house that no linter knows."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name

import pytest

import bntools

PACKAGE = Path(bntools.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "base", "common", "misc", "manager", "handler"}

every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))


def imports(file: Path) -> Iterator[str]:
    """Every module that *file* imports, anywhere in it, by its full name."""
    package = ["bntools", *file.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def layer(module: str) -> str:
    """``core`` of ``bntools.core.plan``; empty for what is not ours or lies at the top."""
    return module.split(".")[1] if module.startswith("bntools.") else ""


@every_file
def test_no_file_holds_two_ideas(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 300


@every_file
def test_names_say_what_is_inside(file: Path) -> None:
    assert not EMPTY_NAMES & set(file.stem.split("_"))


@every_file
def test_layers(file: Path) -> None:
    here = file.relative_to(PACKAGE).parts
    above = {layer(module) for module in imports(file)}
    if here[0] == "core":
        assert not above & {"verbs", "cli", "report"}
    if here[0] == "verbs":
        assert "cli" not in above
        own = f"bntools.verbs.{file.stem}"
        assert not [m for m in imports(file) if m.startswith("bntools.verbs.") and not m.startswith(own)]
    assert "click" not in {module.split(".")[0] for module in imports(file)}


@every_file
def test_only_the_renderer_writes_to_a_stream(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert "print" not in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


@every_file
def test_what_a_comment_refers_to_is_there(file: Path) -> None:
    for name in re.findall(r"`(bntools(?:\.\w+)+)`", file.read_text(encoding="utf-8")):
        resolve_name(name)


def test_every_room_of_the_core_stands_in_the_plan_of_the_house() -> None:
    words = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8").split()
    rooms = {file.stem for file in (PACKAGE / "core").glob("*.py")} - {"__init__"}
    assert rooms <= set(words), rooms - set(words)


@pytest.mark.parametrize("module", ["bntools", "bntools.__main__", "bntools.errors", "bntools.core.sniff"])
def test_importing_does_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert module in run.stdout.split()
    assert "torch" not in run.stdout.split()


def test_the_front_door_is_sorted_and_leads_somewhere() -> None:
    assert bntools.__all__ == sorted(bntools.__all__)
    assert dir(bntools) == bntools.__all__
    missing = [name for name in bntools.__all__ if not inspect.getdoc(getattr(bntools, name))]
    assert missing == []


def test_what_is_not_at_the_front_door_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'fuse'"):
        _ = bntools.fuse

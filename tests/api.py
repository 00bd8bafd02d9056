"""The public names and their signatures, as text: ``tests/api.txt`` is what was promised last.

``python -m tests.api`` says whether the code still is that, with ``--write`` it writes what it is now. Types
are told as they are written in the code, so that the text hangs on no version of torch or Python.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import FunctionType
from typing import Any, Literal, get_args, get_origin

FILE = Path(__file__).parent / "api.txt"
MODULES = ("bntools", "bntools.norms")
"""Whose names are public. Those of the second stand in files that users keep."""
ON_PURPOSE = """\
The public API is not that of tests/api.txt:

{difference}
If that is on purpose, run `python -m tests.api --write`, and say it in CHANGELOG.md. If a name or an argument
went, or means something else, first see "Versions" in CONTRIBUTING.md: it is deprecated before it goes."""


def snapshot() -> str:
    """Every public name, in order, each with all that a caller can write."""
    return "".join(f"{line}\n" for name in MODULES for line in module(name))


def module(name: str) -> Iterator[str]:
    home = importlib.import_module(name)
    for public in sorted(home.__all__):
        yield from told(f"{name}.{public}", getattr(home, public))


def told(name: str, value: Any) -> Iterator[str]:
    """What stands in the file for one name."""
    if isinstance(value, type) and issubclass(value, Enum):
        yield f"enum {name}({bases(value)})"
        yield from (f"    {member.name} = {member.value!r}" for member in value)
    elif isinstance(value, type):
        yield f"class {name}({bases(value)})"
        yield from (f"    {line}" for line in (*fields(value), *sorted(members(value))))
    elif callable(value):
        words, answer = arguments(value)
        yield from (f"def {name}(", *(f"    {word}," for word in words), f"){answer}")
    else:
        yield f"{name}: {type(value).__name__}"


def bases(value: type) -> str:
    """What it is to `isinstance`: a base of ours that is not public stands for its own."""
    return ", ".join(base.__name__ if base.__name__[0] != "_" else bases(base) for base in value.__bases__)


def fields(value: type) -> Iterator[str]:
    """Of a record, in order: so it is made."""
    for field in dataclasses.fields(value) if dataclasses.is_dataclass(value) else ():
        filled = ""
        if field.default is not dataclasses.MISSING:
            filled = f" = {default(field.default)}"
        elif field.default_factory is not dataclasses.MISSING:
            filled = f" = {default(field.default_factory)}()"
        yield f"field {field.name}: {annotation(field.type)}{filled}"


def members(value: type) -> Iterator[str]:
    """Methods, properties and attributes, its own and those of its bases in bntools."""
    ours = [base for base in value.__mro__ if base.__module__.partition(".")[0] == "bntools"]
    hints = {name: hint for base in reversed(ours) for name, hint in inspect.get_annotations(base).items()}
    record = dataclasses.is_dataclass(value)
    left_out = {field.name for field in dataclasses.fields(value)} | {"__init__"} if record else set()
    for name in {name for base in ours for name in (*vars(base), *hints)} - left_out:
        if name.startswith("_") and name not in ("__init__", "__call__"):
            continue
        found = inspect.getattr_static(value, name, None)
        if isinstance(found, classmethod | staticmethod):
            yield f"{type(found).__name__} {name}{signature(found.__func__)}"
        elif isinstance(found, property):
            assert found.fget is not None
            yield f"property {name}: {annotation(inspect.signature(found.fget).return_annotation)}"
        elif isinstance(found, FunctionType):
            yield f"def {name}{signature(found)}"
        else:
            hint = f": {annotation(hints[name])}" if name in hints else ""
            yield f"{name}{hint}" + (f" = {default(found)}" if found is not None else "")


def signature(function: Callable[..., Any]) -> str:
    words, answer = arguments(function)
    return f"({', '.join(words)}){answer}"


def arguments(function: Callable[..., Any]) -> tuple[list[str], str]:
    """Each as it would be written, with its annotation and its default; and what comes back."""
    found = inspect.signature(function)
    words: list[str] = []
    star = "*"  # what is still to be written in front of those that have to be named
    for each in found.parameters.values():
        if each.kind is each.KEYWORD_ONLY and star:
            words.append(star)
        star = "" if each.kind in (each.KEYWORD_ONLY, each.VAR_POSITIONAL) else star
        mark = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        hint = f": {annotation(each.annotation, function)}" if each.annotation is not each.empty else ""
        value = f" = {default(each.default)}" if each.default is not each.empty else ""
        words.append(f"{mark}{each.name}{hint}{value}")
    answer = found.return_annotation
    return words, f" -> {annotation(answer)}" if answer is not found.empty else ""


def annotation(hint: Any, function: Callable[..., Any] | None = None) -> str:
    """A type as it is written; of a closed list that has a name in the module of *function*, the list."""
    if not isinstance(hint, str):
        return getattr(hint, "__name__", str(hint))
    meant = getattr(function, "__globals__", {}).get(hint)
    return f"Literal{list(get_args(meant))}" if get_origin(meant) is Literal else hint


def default(value: Any) -> str:
    """Of functions the name, since their addresses differ; the others by how they are written."""
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    return value.__name__ if callable(value) else repr(value)


def difference(promised: str, now: str) -> str:
    """The lines that went and came, each below the name that it belongs to."""
    lines = difflib.unified_diff(promised.splitlines(), now.splitlines(), "promised", "now", n=2, lineterm="")
    return "".join(f"{line}\n" for line in lines)


def main(arguments: list[str]) -> int:
    """Whether the file is that of the code, or write it."""
    now = snapshot()
    if "--write" in arguments:
        FILE.write_text(now, "utf-8")
        return 0
    apart = difference(FILE.read_text("utf-8") if FILE.is_file() else "", now)
    if apart:
        sys.stdout.write(ON_PURPOSE.format(difference=apart) + "\n")
    return int(bool(apart))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The public names are those of `tests/api.txt`, and that file would show a change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import pytest
from torch import nn

import bntools
from tests import api

Colour = Literal["red", "blue"]


def lines(value: Any) -> list[str]:
    return list(api.told("name", value))


def test_the_public_names_are_those_that_were_promised() -> None:
    apart = api.difference(api.FILE.read_text("utf-8"), api.snapshot())
    if apart:
        pytest.fail(api.ON_PURPOSE.format(difference=apart), pytrace=False)


def test_every_public_name_is_in_it() -> None:
    text = api.FILE.read_text("utf-8")
    for name in bntools.__all__:
        assert f" bntools.{name}(" in text
    assert " object at 0x" not in text
    assert "<function" not in text


def plain(x: int, *, y: str = "a") -> bool:
    return bool(x)


def otherwise(x: int, *, y: str = "a") -> bool:
    """Another body and another docstring are no other signature."""
    return not y


def told_to(progress: Callable[[str], None] = lambda step: None) -> None: ...


def told_too(progress: Callable[[str], None] = lambda other: None) -> None: ...


def chosen(colour: Colour = "red") -> None: ...


def test_what_changes_no_signature_is_not_seen() -> None:
    assert lines(plain) == lines(otherwise)
    assert lines(told_to) == lines(told_too)
    assert lines(plain) == ["def name(", "    x: int,", "    *,", "    y: str = 'a',", ") -> bool"]
    assert lines(chosen)[1] == "    colour: Literal['red', 'blue'] = 'red',"


def without_y(x: int) -> bool: ...
def with_z(x: int, *, y: str = "a", z: int = 0) -> bool: ...
def by_place(x: int, y: str = "a") -> bool: ...
def renamed(w: int, *, y: str = "a") -> bool: ...
def other_default(x: int, *, y: str = "b") -> bool: ...
def other_type(x: float, *, y: str = "a") -> bool: ...
def other_answer(x: int, *, y: str = "a") -> int: ...
def needed(x: int, *, y: str) -> bool: ...
def rest(x: int, *y: str) -> bool: ...
def options(x: int, **y: str) -> bool: ...


@pytest.mark.parametrize(
    "changed",
    [
        without_y,
        with_z,
        by_place,
        renamed,
        other_default,
        other_type,
        other_answer,
        needed,
        rest,
        options,
    ],
    ids=lambda each: each.__name__,
)
def test_another_signature_is_seen(changed: Callable[..., object]) -> None:
    assert lines(changed) != lines(plain)


class Colours(StrEnum):
    RED = "red"
    BLUE = "blue"


class Renamed(StrEnum):
    RED = "red"
    BLUE = "azure"


class Fewer(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Record:
    a: int
    b: list[int] = field(default_factory=list)

    @property
    def first(self) -> int:
        return self.a

    @classmethod
    def of(cls, text: str) -> Record:
        return cls(int(text))

    def sum(self, start: int = 0) -> int:
        return start + sum(self.b)


@dataclass(frozen=True)
class Swapped:
    b: list[int]
    a: int = 0


class Hidden(nn.Linear):
    """Its private parts may change."""

    _kept: int = 1

    def _hidden(self) -> None: ...

    def shown(self) -> int:
        return 1


def test_what_stands_there_of_classes() -> None:
    assert lines(Colours) == ["enum name(StrEnum)", "    RED = 'red'", "    BLUE = 'blue'"]
    assert lines(Colours) != lines(Renamed) != lines(Fewer)
    fields = ["    field a: int", "    field b: list[int] = list()"]
    assert lines(Record)[:3] == ["class name(object)", *fields]
    assert lines(Swapped)[1:3] == ["    field b: list[int]", "    field a: int = 0"]  # by place it is another


def test_what_stands_there_of_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (Record, Hidden):  # of other people's classes the name is enough
        monkeypatch.setattr(each, "__module__", "bntools.made_up")
    assert lines(Record)[3:] == [
        "    classmethod of(cls, text: str) -> Record",
        "    def sum(self, start: int = 0) -> int",
        "    property first: int",
    ]
    assert lines(Hidden) == ["class name(Linear)", "    def shown(self) -> int"]


def test_the_command_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = api.snapshot()
    monkeypatch.setattr(api, "FILE", tmp_path / "api.txt")
    api.FILE.write_text(text.replace("simplify: bool = False", "simplify: bool = True"))
    assert api.main([]) == 1
    said = capsys.readouterr().out
    assert "-    simplify: bool = True,\n+    simplify: bool = False," in said
    for word in ("python -m tests.api --write", "CHANGELOG.md", "CONTRIBUTING.md"):
        assert word in said
    assert api.main(["--write"]) == 0
    assert (api.FILE.read_text(), api.main([])) == (text, 0)
    assert capsys.readouterr().out == ""

"""JSON of a closed shape: what does not have it is a `Stranger`, and what has it is built anew."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Mapping
from typing import Any

Rule = Callable[[Any], Any]
"""Takes a value of a JSON document and returns a copy made only of what it understood."""

_LARGEST = 2**63
_NAME = re.compile(r"(?!__)[A-Za-z_]\w*", re.ASCII)


class Stranger(ValueError):  # noqa: N818  (it is a finding, which the reader turns into an error)
    """A value that is not of the closed shape: what it is, and where it stands."""

    def __init__(self, what: str, where: str = "") -> None:
        super().__init__(what)
        self.what, self.where = what, where

    def inside(self, where: str) -> Stranger:
        """The same, seen from one level further out."""
        dot = "" if not self.where or self.where.startswith("[") else "."
        return Stranger(self.what, f"{where}{dot}{self.where}")

    def __str__(self) -> str:
        return f"{self.what} ({self.where})" if self.where else self.what


def shown(value: Any) -> str:
    """A value for an error, without what could do something to a terminal."""
    text = value if isinstance(value, str) else f"{type(value).__name__} {value!r}"
    return ascii(text)[1:-1][:80] if isinstance(value, str) else ascii(text)[:80]


def record(needed: Mapping[str, Rule], more: Mapping[str, Rule] | None = None) -> Rule:
    """An object with the fields of *needed*, and perhaps those of *more*, and no other.

    Example:
        >>> rule = record({"x": integer})
        >>> rule({"x": 1})
        {'x': 1}
        >>> rule({"x": 1, "y": 2})
        Traceback (most recent call last):
        ...
        bntools.core.schema.Stranger: an entry 'y'
    """
    rules = {**needed, **(more or {})}

    def read(value: Any) -> dict[str, Any]:
        fields = _object(value)
        if odd := [key for key in fields if key not in rules]:
            raise Stranger(f"an entry '{shown(odd[0])}'")
        if missing := [key for key in needed if key not in fields]:
            raise Stranger(f"no entry '{missing[0]}'")
        return {key: _within(key, rules[key], each) for key, each in fields.items()}

    return read


def union(kinds: Mapping[str, Rule]) -> Rule:
    """An object with exactly one of the fields."""

    def read(value: Any) -> dict[str, Any]:
        fields = _object(value)
        if len(fields) != 1:
            raise Stranger(f"{len(fields)} entries where there is to be one")
        ((key, each),) = fields.items()
        if key not in kinds:
            raise Stranger(f"a value of the kind '{shown(key)}'")
        return {key: _within(key, kinds[key], each)}

    return read


def mapping(keys: Rule, values: Rule) -> Rule:
    """An object whose keys and values follow a rule each."""

    def read(value: Any) -> dict[str, Any]:
        return {keys(key): _within(shown(key), values, each) for key, each in _object(value).items()}

    return read


def sequence(rule: Rule) -> Rule:
    """A list whose parts follow a rule."""

    def read(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise Stranger(f"{shown(value)} where there is to be a list")
        return [_within(f"[{i}]", rule, each) for i, each in enumerate(value)]

    return read


def optional(rule: Rule) -> Rule:
    """What follows the rule, or null."""
    return lambda value: None if value is None else rule(value)


def text(pattern: str, what: str) -> Rule:
    """A string that is *what*, as a regular expression tells."""
    compiled = re.compile(pattern, re.ASCII)

    def read(value: Any) -> str:
        if not isinstance(value, str) or compiled.fullmatch(value) is None:
            raise Stranger(f"'{shown(value)}', which is no {what}")
        return value

    return read


def variable(value: Any) -> str:
    """A name that may stand in source code as that of a variable."""
    plain = isinstance(value, str) and _NAME.fullmatch(value) is not None
    if not plain or keyword.iskeyword(value) or value == "self":
        raise Stranger(f"'{shown(value)}' as the name of a value")
    return str(value)


def empty(value: Any) -> Any:
    """A list or an object with nothing in it."""
    if value not in ([], {}):
        raise Stranger(f"{shown(value)} where there is to be nothing")
    return value


def integer(value: Any) -> int:
    """A whole number of 64 bits."""
    if type(value) is not int or abs(value) > _LARGEST:
        raise Stranger(f"{shown(value)}, which is no whole number of 64 bits")
    return value


def boolean(value: Any) -> bool:
    """True or false."""
    if type(value) is not bool:
        raise Stranger(f"{shown(value)}, which is neither true nor false")
    return value


def number(value: Any) -> float | str:
    """A number, or one of the words that torch writes for those that JSON has not got."""
    if value in ("Infinity", "-Infinity", "NaN"):
        return str(value)
    if type(value) is int:
        return float(integer(value))
    if type(value) is not float:
        raise Stranger(f"{shown(value)}, which is no number")
    return value


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Stranger(f"{shown(value)} where there is to be an object")
    return value


def _within(where: str, rule: Rule, value: Any) -> Any:
    try:
        return rule(value)
    except Stranger as stranger:
        raise stranger.inside(where) from None

"""Records from JSON: each field gets what its type says, or an error that names it. No torch here."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from typing import Any, cast, get_args, get_origin, get_type_hints


def record(kind: Any, raw: Any, at: str) -> Any:
    """What *raw* stands for in a field of type *kind*; anything but that is an error that names the field."""
    of = get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(raw, dict):
        types = {name: hint for name, hint in get_type_hints(kind).items() if name != "maps"}
        if types.keys() != raw.keys():
            raise ValueError(f"{at} has other fields: {', '.join(sorted(types.keys() ^ raw.keys())[:3])}")
        return cast(Any, kind)(**{name: record(types[name], raw[name], f"{at}.{name}") for name in types})
    if get_origin(kind) is tuple and isinstance(raw, list):
        each = of[:1] * len(raw) if of[-1] is ... else of
        return tuple(record(k, v, f"{at}[{i}]") for i, (k, v) in enumerate(zip(each, raw, strict=True)))
    if isinstance(kind, type) and issubclass(kind, StrEnum) and type(raw) is str:
        return kind(raw)
    kinds = (kind,) if get_origin(kind) is tuple else of or (kind,)
    # A bool is an int to Python, not to us; a whole number may stand for a float, if it fits one.
    if type(raw) in kinds or (type(raw) is int and float in kinds and float(raw) == raw):
        return raw
    raise TypeError(f"{at} is {plain(raw)}")


def plain(value: object, size: int = 80) -> str:
    """What a file says, for a message: on one line, and no longer than that."""
    return ascii(str(value))[1:-1][:size]

"""How mkdocstrings is to read the docstrings: mkdocs.yml names this file."""

from __future__ import annotations

import re
from typing import Any

import griffe

_SEVERAL = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)", re.MULTILINE)
"""``a, b: what is said of both``."""


def read(text: str) -> str:
    """The same, as griffe understands it: ``Examples`` for ``Example``, an entry for each argument.

    An equation that is indented and in backticks would be a block of code with backticks in it.
    """
    head, section, rest = re.split(r"(^\w+:$|\Z)", text, maxsplit=1, flags=re.MULTILINE)
    rest = re.sub(r"^Example:$", "Examples:", section + rest, flags=re.MULTILINE)
    return re.sub(r"^ +(?=``)", "", head, flags=re.MULTILINE) + _SEVERAL.sub(_each, rest)


def _each(found: re.Match[str]) -> str:
    return "\n".join(f"{found[1]}{name}: {found[3]}" for name in found[2].split(", "))


class Docstrings(griffe.Extension):
    """Prepares every docstring that is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called once for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = read(obj.docstring.value)

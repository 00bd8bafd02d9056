"""Defaults from ``[tool.bntools]`` in the nearest pyproject.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from bntools.errors import UsageError

VERBS = ("inspect", "fold", "replay")
_PER_RUN = ("unsafe", "force", "traceback")
"""Flags that may not become a habit: a file that lies in a folder must not switch them on."""


def defaults(folder: Path | None = None) -> dict[str, dict[str, Any]]:
    """The defaults for each verb: ``[tool.bntools]`` for all of them, ``[tool.bntools.fold]`` for one.

    Keys are the long options without dashes in front. A flag on the command line goes before a
    ``BNTOOLS_…`` variable, and that before the file.

    Args:
        folder: where to start looking upwards; the working directory if None.

    Raises:
        UsageError: if the table cannot be read, or sets what only a command line may.
    """
    folder = (folder or Path.cwd()).resolve()
    for place in (folder, *folder.parents):
        file = place / "pyproject.toml"
        if file.is_file():
            return _read(file)
    return {}


def _read(file: Path) -> dict[str, dict[str, Any]]:
    try:
        table = tomllib.loads(file.read_text("utf-8")).get("tool", {}).get("bntools", {})
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be read: {error}") from None
    if not isinstance(table, dict):
        raise UsageError(f"{file}: [tool.bntools] is no table")
    common = {k: v for k, v in table.items() if k not in VERBS}
    merged = {}
    for verb in VERBS:
        own = {**common, **table.get(verb, {})}
        for key in own:
            if key.replace("_", "-") in _PER_RUN:
                raise UsageError(
                    f"{file}: {key} cannot be set in a file", todo=f"give --{key} on the command line"
                )
        merged[verb] = {k.replace("-", "_"): v for k, v in own.items()}
    return merged

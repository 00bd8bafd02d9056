"""Defaults from ``[tool.bntools]`` in the nearest pyproject.toml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bntools.errors import UsageError

_PER_RUN = ("unsafe", "trust", "arch", "force", "traceback", "write-baseline")
"""Options that may not become a habit: no file that lies in a folder may have code run or files replaced."""

_CODE = re.compile(r"[\w.]+:[\w.\-]+")
"""``package.module:factory``, which is imported and called."""


class Option(NamedTuple):
    """What a command knows an option as, and what it takes."""

    name: str
    is_flag: bool
    repeatable: bool


Options = Mapping[str, Mapping[str, Option]]
"""For each verb, its options by their long names without dashes."""


def options_of(command: Any) -> Options:
    """The options of each verb of Typer's *command*."""
    return {
        verb: {
            text.removeprefix("--"): Option(each.name, getattr(each, "is_flag", False), each.multiple)
            for each in sub.params
            for text in each.opts
            if text.startswith("--")
        }
        for verb, sub in command.commands.items()
    }


def defaults(options: Options, folder: Path | None = None) -> dict[str, dict[str, Any]]:
    """The defaults for each verb: ``[tool.bntools]`` for all of them, ``[tool.bntools.fold]`` for one.

    Keys are the long options without dashes in front. A flag on the command line goes before a
    ``BNTOOLS_…`` variable, and that before the file.

    Args:
        options: what may be set.
        folder: where to start looking upwards; the working directory if None.

    Raises:
        UsageError: if the table cannot be read, names no option, or sets what only a command line may.
    """
    folder = (folder or Path.cwd()).resolve()
    for place in (folder, *folder.parents):
        file = place / "pyproject.toml"
        if file.is_file():
            return _read(file, options)
    return {}


def _read(file: Path, options: Options) -> dict[str, dict[str, Any]]:
    import tomllib

    try:
        content = tomllib.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file}: cannot be read: {error}", todo="correct it") from None
    tool = content.get("tool", {})
    table = _table(file, "tool.bntools", tool.get("bntools", {}) if isinstance(tool, dict) else {})
    everywhere = {key: option for known in options.values() for key, option in known.items()}
    common = {key: value for key, value in table.items() if key not in options}
    shared = _values(file, "tool.bntools", common, everywhere)
    merged = {}
    for verb, known in options.items():
        where = f"tool.bntools.{verb}"
        own = _values(file, where, _table(file, where, table.get(verb, {})), known)
        names = {option.name for option in known.values()}
        merged[verb] = {k: v for k, v in shared.items() if k in names} | own
    return merged


def _table(file: Path, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{file}: [{name}] is no table", todo=f"write [{name}] and the options below it")
    return value


def _values(file: Path, table: str, given: Mapping[str, Any], known: Mapping[str, Option]) -> dict[str, Any]:
    """*given* by the commands' own names for the options, each checked."""
    from difflib import get_close_matches

    values: dict[str, Any] = {}
    for written, value in given.items():
        key = written.replace("_", "-")
        if key in _PER_RUN:
            raise UsageError(
                f"{file}: [{table}] {written}: cannot be set in a file",
                todo=f"give --{key} on the command line",
            )
        option = known.get(key)
        if option is None:
            near = get_close_matches(key, set(known) - set(_PER_RUN), n=1)
            todo = f"did you mean {near[0]}?" if near else "remove it; keys are the long options"
            raise UsageError(f"{file}: [{table}] {written}: no such option", todo=todo)
        if key == "data" and isinstance(value, str) and _CODE.fullmatch(value):
            raise UsageError(
                f"{file}: [{table}] {written}: code cannot be named in a file",
                todo="name a file or a folder of data, or give --data on the command line",
            )
        values[option.name] = _value(f"{file}: [{table}] {written}", option, value)
    return values


def _value(where: str, option: Option, value: Any) -> Any:
    if option.is_flag:
        expected, fits = "true or false", isinstance(value, bool)
    elif option.repeatable:
        value = [value] if isinstance(value, str) else value
        expected = "a list of strings"
        fits = isinstance(value, list) and all(isinstance(each, str) for each in value)
    elif isinstance(value, dict) and option.name == "arch_kwargs":
        import json

        return json.dumps(value, default=str)
    else:
        expected, fits = "a string or a number", isinstance(value, str | int) and not isinstance(value, bool)
    if not fits:
        raise UsageError(f"{where}: expected {expected}, it is {value!r}", todo="correct it")
    return value

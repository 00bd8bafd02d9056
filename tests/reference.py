"""The page of the command line, made from it: ``python -m tests.reference --write`` writes it anew."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from bntools.cli.app import EXIT_CODES, app
from bntools.cli.config import defaults, options_of
from bntools.errors import UsageError

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "cli.md"
COMMAND: Any = typer.main.get_command(app)
KINDS = {"str": "TEXT", "Path": "PATH", "int": "N", "float": "NUMBER"}

LAST = ["The example input", "The file", "Output"]
"""Most commands have these."""

HEAD = """# Command line

`bntools VERB MODEL`, with options anywhere behind the verb. MODEL is one of the [model files](../files.md).
Stdout is the result, stderr is the talk; `--json` prints one object, by [its schema](schemas.md).
Each command says the same with `--help`, or `-h`: this page is made from the commands, by
`python -m tests.reference --write`.
"""

FILE = """## In a file

The nearest `pyproject.toml`, in the working directory or above it, can set defaults:

```toml
[tool.bntools]
format = "markdown"  # for every command that has it

[tool.bntools.fold]
max-remaining = 2
input = ["2x3x224x224"]
```

Keys are the long options without dashes in front. An option on the command line goes before its environment
variable, that before the table of the command, and that before `[tool.bntools]`. A file that lies in a folder
may not have code run or files replaced, so these are for the command line alone: {alone}.
"""


def page() -> str:
    """The whole page."""
    codes = re.findall(r"^ +(\d+) +(.*)$", EXIT_CODES, re.MULTILINE)
    return "\n".join(
        [
            HEAD,
            *_tables([each for each in COMMAND.params if not each.hidden]),
            *(line for verb in COMMAND.commands.values() for line in _verb(verb)),
            "## Exit codes\n",
            *_table(["code", "means"], [[f"`{code}`", _plain(means)] for code, means in codes]),
            FILE.format(alone=", ".join(f"`--{key}`" for key in per_run())),
        ]
    )


def per_run() -> list[str]:
    """The options that a file may not set, found out by trying each."""
    known = options_of(COMMAND)
    refused = []
    with tempfile.TemporaryDirectory() as folder:
        for key in dict.fromkeys(key for options in known.values() for key in options):
            (Path(folder) / "pyproject.toml").write_text(f'[tool.bntools]\n{key} = "x"\n', "utf-8")
            try:
                defaults(known, Path(folder))
            except UsageError as error:
                if "cannot be set in a file" in str(error):
                    refused.append(key)
    return refused


def _verb(verb: Any) -> Iterator[str]:
    words = ["bntools", verb.name, "[OPTIONS]"]
    words += [each.metavar for each in verb.params if each.param_type_name == "argument"]
    yield f"## {verb.name}\n"
    yield f"`{' '.join(words)}`\n"
    yield from (f"{_plain(paragraph)}\n" for paragraph in re.split(r"\n\n+", verb.help.strip()))
    yield from _tables([each for each in verb.params if not each.hidden])


def _tables(params: list[Any]) -> Iterator[str]:
    """A table for the arguments, and one for the options of each panel, its own before those of many."""
    arguments = [each for each in params if each.param_type_name == "argument"]
    if arguments:
        rows = [[f"`{each.metavar}`", _plain(each.help)] for each in arguments]
        yield from _table(["argument", "is"], rows)
    options = [each for each in params if each.param_type_name == "option"]
    panels = dict.fromkeys(["Options", *(each.rich_help_panel or "Options" for each in options)])
    for panel in sorted(panels, key=lambda panel: LAST.index(panel) if panel in LAST else -1):
        rows = [_option(each) for each in options if (each.rich_help_panel or "Options") == panel]
        if rows:
            yield from _table([panel, "does", "default", "variable"], rows)


def _option(option: Any) -> list[str]:
    names = sorted([*option.opts, *option.secondary_opts], key=len, reverse=True)
    takes = (
        "" if option.is_flag else f" {option.metavar or KINDS.get(option.bare_type(), option.bare_type())}"
    )
    about = _plain(option.help)
    about += f" At least {option.min}." if option.min is not None else ""
    about += " Required." if option.required else ""
    return [
        ", ".join([_code(names[0] + takes), *(_code(name) for name in names[1:])]),
        about,
        "" if option.is_flag else _default(option),
        _code(option.envvar) if option.envvar else "",
    ]


def _default(option: Any) -> str:
    if isinstance(option.show_default, str):
        return _plain(option.show_default)
    value = option.default.value if isinstance(option.default, Enum) else option.default
    return "" if value is None else _code(str(value))


def _table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def _code(text: str) -> str:
    """A bar in backticks ends a cell in some readers of Markdown, and its escape is shown by others."""
    return f"<code>{text.replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`"


def _plain(text: str) -> str:
    """Prose, in which only the names of options are marked; nothing of it means anything to Markdown."""
    words = " ".join(text.split())
    words = re.sub(r"(['`]?)([*_|<>\[\]])", r"\1\\\2", words)
    return re.sub(r"(?<![\w-])(--[a-z][\w-]*)", r"`\1`", words)


def main(arguments: list[str]) -> int:
    """Whether the page is that of the code, or write it."""
    if "--write" in arguments:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(), "utf-8")
        return 0
    stale = not PAGE.is_file() or PAGE.read_text("utf-8") != page()
    sys.stdout.write("cli.md is not that of the code: --write writes it\n" * stale)
    return int(stale)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

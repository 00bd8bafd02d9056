"""The options that several verbs share, each written once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

_FILE, _INPUT, _OUTPUT = "The file", "The example input", "Output"


class Format(StrEnum):
    """How the result is written to stdout."""

    text = "text"
    json = "json"
    github = "github"
    markdown = "markdown"
    junit = "junit"
    """Of findings only: `inspect` has some."""


def _no_findings(chosen: Format) -> Format:
    if chosen is Format.junit:
        raise typer.BadParameter("junit is for findings: only inspect writes it")
    return chosen


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A file, or timm:NAME, torchvision:NAME, package.module:factory.",
        show_default=False,
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(
        help="What a state dict is loaded into, written like MODEL.",
        rich_help_panel=_FILE,
        envvar="BNTOOLS_ARCH",
    ),
]
ArchKwargs = Annotated[
    str | None,
    typer.Option(help="Its keyword arguments, as JSON.", rich_help_panel=_FILE, envvar="BNTOOLS_ARCH_KWARGS"),
]
Key = Annotated[
    str | None,
    typer.Option(
        help="The entry of a checkpoint that holds the weights.", rich_help_panel=_FILE, envvar="BNTOOLS_KEY"
    ),
]
Ema = Annotated[
    bool,
    typer.Option(
        "--ema", help="Use the checkpoint's averaged weights.", rich_help_panel=_FILE, envvar="BNTOOLS_EMA"
    ),
]
Trust = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PREFIX",
        help="Also open layer classes of this package. Repeatable.",
        rich_help_panel=_FILE,
        envvar="BNTOOLS_TRUST",
    ),
]
Unsafe = Annotated[
    bool,
    typer.Option("--unsafe", help="Let the file run any code it likes.", rich_help_panel=_FILE),
]
KeepMode = Annotated[
    bool,
    typer.Option(
        "--keep-mode",
        help="Leave a model in training mode as it is; else it is put in eval mode.",
        rich_help_panel=_FILE,
        envvar="BNTOOLS_KEEP_MODE",
    ),
]
Input = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="[NAME=]SHAPE[:DTYPE]",
        help="Such as 2x3x224x224, or ids=2x16:int64. Repeatable.",
        rich_help_panel=_INPUT,
        envvar="BNTOOLS_INPUT",
    ),
]
Inputs = Annotated[
    Path | None,
    typer.Option(help="A .npz file with the inputs.", rich_help_panel=_INPUT, envvar="BNTOOLS_INPUTS"),
]
Out = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Where to; beside the file if not given.", rich_help_panel=_OUTPUT),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan, write nothing.")]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Do not measure the result.")]
Limit = Annotated[
    float,
    typer.Option(metavar="SECONDS", help="How long ONNX Runtime may take.", min=1, envvar="BNTOOLS_LIMIT"),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing file.", rich_help_panel=_OUTPUT)]
OutputFormat = Annotated[
    Format,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="How to print the result: text, json, github or markdown.",
        rich_help_panel=_OUTPUT,
        envvar="BNTOOLS_FORMAT",
        callback=_no_findings,
        autocompletion=lambda: [each.value for each in Format if each is not Format.junit],
    ),
]
FindingsFormat = Annotated[
    Format,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="How to print the result: text, json, github, markdown or junit.",
        rich_help_panel=_OUTPUT,
        envvar="BNTOOLS_FORMAT",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Short for --format json.", rich_help_panel=_OUTPUT)]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="Only the result and errors.", rich_help_panel=_OUTPUT, envvar="BNTOOLS_QUIET"
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="Also what the libraries say.",
        rich_help_panel=_OUTPUT,
        envvar="BNTOOLS_VERBOSE",
    ),
]
Traceback = Annotated[
    bool,
    typer.Option("--traceback", help="Show where in the code an error came up.", rich_help_panel=_OUTPUT),
]

"""The command line as a whole. A command imports torch when it runs, not before."""

from __future__ import annotations

from typing import Annotated

import typer

from bntools import __version__
from bntools.cli.fold import fold
from bntools.cli.inspect import inspect
from bntools.cli.replay import replay

EXIT_CODES = """[bold]Exit codes[/bold]

\b
  0    done, or nothing to do
  1    a check failed (a promise not kept, --strict, --max-remaining); nothing was written
  2    wrong usage or configuration, or a file that is missing or unreadable
  3    refused for safety
  4    the model cannot be run or captured
  5    inconclusive, with --strict
  101  a bug in bntools
  130  interrupted
"""

app = typer.Typer(
    name="bntools",
    help="Surgery on trained PyTorch models with BatchNorm.",
    epilog=EXIT_CODES,
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bntools {__version__}")
        raise typer.Exit


@app.callback()
def _all(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


for command in (inspect, fold, replay):
    app.command()(command)

"""The command line as a whole. A command imports torch when it runs, not before.

`tests/bench/help_against_typer.py` holds the time of ``--help`` against that of importing Typer: what only a
running command needs is therefore imported inside it.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from bntools.cli.config import defaults, options_of
from bntools.cli.export import export
from bntools.cli.fold import fold
from bntools.cli.freeze import freeze, unfreeze
from bntools.cli.inspect import inspect
from bntools.cli.recalibrate import recalibrate
from bntools.cli.replay import replay
from bntools.cli.swap import swap
from bntools.cli.verify import verify
from bntools.errors import UsageError

EXIT_CODES = """\b
[bold]Exit codes[/bold]
  0    done, or nothing to do
  1    a check failed: promise, --strict, --fail-on; nothing written
  2    wrong usage or configuration; a file that is missing or unreadable
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
        from bntools.cli.version import versions

        typer.echo(versions())
        raise typer.Exit


@app.callback()
def _all(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the versions and stop.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    pass


for verb in (inspect, fold, recalibrate, freeze, unfreeze, swap, export, verify, replay):
    app.command()(verb)


_ONLY_ASKS = {"-h", "--help", "--version", "--show-completion", "--install-completion"}
_COMPLETING = "_BNTOOLS_COMPLETE"  # set by the shell's script when Tab is pressed


def run(arguments: list[str]) -> None:
    """Run a command line; it ends in an exception, a `SystemExit` or another."""
    command = typer.main.get_command(app)
    try:
        known = defaults(options_of(command))
    except UsageError:
        if not _ONLY_ASKS & set(arguments) and _COMPLETING not in os.environ:
            raise
        # A file that cannot be read is no reason to refuse help, or to write into a line being typed.
        known = {}
    command(arguments, prog_name="bntools", default_map=known)

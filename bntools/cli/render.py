"""Where words go: the result to stdout in one of four formats, the talk to stderr."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.status import Status

from bntools.cli.options import Format
from bntools.errors import BntoolsError

SCHEMA = 1


class _Console(Console):
    """Rich ends the process when the reader has gone; here that is an exception like any other."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Sink:
    """The two streams of one command.

    Args:
        verb: the command's name.
        form: how the result is written.
        quiet: leave out the talk.
        verbose: also pass on what the libraries say.
    """

    def __init__(self, verb: str, form: Format, *, quiet: bool, verbose: bool) -> None:
        self.verb, self.form, self.quiet, self.verbose = verb, form, quiet, verbose
        self.out = _Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self.talk = Console(stderr=True, highlight=False, soft_wrap=True)
        self._stdout = sys.stdout  # kept, since the libraries get another one
        self._status: Status | None = None

    def step(self, name: str) -> None:
        """What is being done now: a line that moves, on a terminal only."""
        if self.quiet or not self.talk.is_terminal:
            return
        if self._status is None:
            self._status = self.talk.status(name)
            self._status.start()
        self._status.update(name)

    def settle(self) -> None:
        """Take the moving line away."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def note(self, text: str) -> None:
        """Something that the reader should know, and that is no part of the result."""
        if not self.quiet:
            self.settle()
            self.talk.print(f"[dim]note[/dim]  {escape(text)}")

    def result(self, data: Mapping[str, Any], screens: Mapping[Format, Callable[[Console], None]]) -> None:
        """Write the result: *data* as JSON, or the screen of the format that was asked for."""
        self.settle()
        if self.form is Format.json:
            text = json.dumps(
                _plain({"schema": SCHEMA, "command": self.verb, **data}), ensure_ascii=True, allow_nan=False
            )
            self._stdout.write(text + "\n")
        else:
            screens[self.form](self.out)
        self._stdout.flush()

    def error(self, error: Exception) -> None:
        """One or two lines on stderr, and with JSON also an object on stdout."""
        self.settle()
        if self.form is Format.json:
            about: dict[str, Any] = {"message": _message(error), "todo": getattr(error, "todo", "")}
            about["exit_code"] = exit_code_of(error)
            self.result({"error": about, "report": getattr(error, "report", None)}, {})
        if self.form is Format.github:
            self._stdout.write(f"::error title=bntools {self.verb}::{_one_line(str(error))}\n")
        say_error(error)


@contextmanager
def sink(
    verb: str, form: Format, as_json: bool, quiet: bool, verbose: bool, show_traceback: bool
) -> Iterator[Sink]:
    """Run a command inside this: errors become their exit codes, and the libraries keep quiet."""
    it = Sink(verb, Format.json if as_json else form, quiet=quiet, verbose=verbose)
    chatter = io.StringIO()
    try:
        with warnings.catch_warnings(record=True) as caught, redirect_stdout(chatter):
            warnings.simplefilter("always")
            yield it
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        it.settle()
        it.talk.print("interrupted; nothing was written")
        raise typer.Exit(130) from None
    except BrokenPipeError:
        raise
    except Exception as error:
        it.error(error)
        if show_traceback:
            traceback.print_exc()
        raise typer.Exit(exit_code_of(error)) from None
    finally:
        it.settle()
        if verbose:
            for line in [*chatter.getvalue().splitlines(), *(str(w.message) for w in caught)]:
                it.talk.print(f"[dim]{escape(line)}[/dim]")


def exit_code_of(error: Exception) -> int:
    """The documented exit code: 101 for what is no error of ours to foresee."""
    return error.exit_code if isinstance(error, BntoolsError) else 101


def say_error(error: Exception) -> None:
    """Write an error to stderr in one or two lines."""
    talk = Console(stderr=True, highlight=False, soft_wrap=True)
    talk.print(f"[bold red]error[/bold red]  {escape(_message(error))}")
    todo = getattr(error, "todo", "")
    if isinstance(error, BntoolsError):
        if todo:
            talk.print(f"       {escape(todo)}")
    else:
        talk.print("       this is a bug in bntools: please report it, with what --traceback shows")


def _message(error: Exception) -> str:
    return (
        error.message
        if isinstance(error, BntoolsError)
        else f"{type(error).__name__}: {_one_line(str(error))}"
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]


def _plain(value: Any) -> Any:
    """What JSON has: records as objects, and null for numbers that are none."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | int | bool) or value is None:
        return value
    return str(value)

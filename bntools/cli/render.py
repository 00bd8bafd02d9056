"""Where words go: the result to stdout in one of five formats, the talk to stderr."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape

from bntools.cli.facts import Failure
from bntools.cli.options import Format
from bntools.errors import BntoolsError, CaptureError, UsageError
from bntools.printable import one_line, printable

if TYPE_CHECKING:
    from rich.status import Status

    from bntools.cli.bars import Bars

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
        silent: leave out all but errors that nobody else tells, since another process speaks for this one.
    """

    def __init__(self, verb: str, form: Format, *, quiet: bool, verbose: bool, silent: bool = False) -> None:
        self.verb, self.form, self.quiet, self.verbose = verb, form, quiet or silent, verbose and not silent
        self._silent = silent
        self._stdout: Any = io.StringIO() if silent else sys.stdout  # kept: the libraries get another one
        if isinstance(self._stdout, io.TextIOWrapper):  # a name that stdout cannot spell is no error
            self._stdout.reconfigure(errors="backslashreplace")
        self.out = _Console(file=self._stdout, highlight=False, soft_wrap=True, emoji=False)
        self.talk = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
        # Rich takes FORCE_COLOR for a terminal; a line that moves would fill a log.
        self._moving = sys.stderr.isatty() and not self.talk.is_dumb_terminal and not self.quiet
        self._status: Status | None = None
        self._bars: Bars | None = None
        self._answered = False

    def step(self, name: str) -> None:
        """What is being done now: a line that moves, on a terminal only."""
        if not self._moving:
            return
        if self._status is None:
            self.settle()
            self._status = self.talk.status(name)
            self._status.start()
        self._status.update(name)

    def advance(self, name: str, done: float, total: float | None) -> None:
        """How far a long step is: a bar with the rate and the time left, on a terminal only."""
        if not self._moving:
            return
        if self._bars is None:
            from bntools.cli.bars import Bars

            self.settle()
            self._bars = Bars(self.talk)
        self._bars.advance(name, done, total)

    def settle(self) -> None:
        """Take what moves away."""
        for moving in (self._status, self._bars):
            if moving is not None:
                moving.stop()
        self._status = self._bars = None

    def note(self, text: str) -> None:
        """Something that the reader should know, and that is no part of the result."""
        if not self.quiet:
            self.settle()
            _tell(self.talk, f"[dim]note[/dim]  {escape(printable(text))}")

    def result(
        self,
        data: Mapping[str, Any],
        screens: Mapping[Format, Callable[[Console], None]],
        failure: Failure | None = None,
    ) -> None:
        """Write the result: *data* as JSON, or the screen of the format that was asked for.

        Args:
            data: for JSON, which also gets the failure: there is one object, whatever happened.
            screens: for each other format.
            failure: why the command ends with another exit code than 0, all the same.

        Raises:
            typer.Exit: with the failure's code.
        """
        self.settle()
        if failure is not None:
            data = {**data, "error": failure}
        with self._writing():
            if self.form is Format.json:
                self._object(data)
            else:
                screens[self.form](self.out)
                self._answered = True
                self._annotate(failure)
        if failure is not None:
            if not self._silent:
                say(failure)
            raise typer.Exit(failure.exit_code)

    def failed(self, failure: Failure, error: BaseException) -> None:
        """One or two lines on stderr, and for programs also an object or an annotation on stdout."""
        self.settle()
        if self._silent and getattr(error, "rank", None) is not None:
            return
        with self._writing():
            if self.form is Format.json:
                self._object({"error": failure, "report": getattr(error, "report", None)})
            self._annotate(failure)
            if self.form is Format.junit and not self._answered:
                from bntools.report.junit import junit

                self._stdout.write(junit((), (), error=_in_one(failure)) + "\n")
        say(failure)

    def _object(self, data: Mapping[str, Any]) -> None:
        if not self._answered:
            about = _plain({"schema": SCHEMA, "command": self.verb, **data})
            self._answered = True
            self._stdout.write(json.dumps(about, ensure_ascii=True, allow_nan=False) + "\n")

    def _annotate(self, failure: Failure | None) -> None:
        if self.form is Format.github and failure is not None:
            self._stdout.write(annotation("error", self.verb, _in_one(failure)) + "\n")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A reader that has gone changes nothing about what was done; any other failure is told."""
        try:
            yield
            self._stdout.flush()
        except BrokenPipeError:
            _hush(self._stdout)
        except OSError as error:
            raise unwritable(self._stdout, error) from error


def annotation(level: str, verb: str, text: str) -> str:
    """A line that GitHub shows beside the run; its commands need some characters escaped."""
    return f"::{level} title=bntools {verb}::{printable(text).replace('%', '%25')}"


def _in_one(failure: Failure) -> str:
    return f"{failure.message}; {failure.todo}" if failure.todo else failure.message


def unwritable(stdout: Any, error: OSError) -> UsageError:
    """What to raise where *stdout* takes no more, a full disk for one; what is left for it is dropped."""
    _hush(stdout)
    return UsageError(f"stdout: cannot be written: {error.strerror or error}", todo="send it elsewhere")


def _hush(stream: Any) -> None:
    """Let what is still to be written vanish; or Python complains about it when it ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextmanager
def sink(
    verb: str, form: Format, quiet: bool, verbose: bool, show_traceback: bool, silent: bool = False
) -> Iterator[Sink]:
    """Run a command inside this: errors become their exit codes, and the libraries keep quiet."""
    it = Sink(verb, form, quiet=quiet, verbose=verbose, silent=silent)
    chatter = io.StringIO()
    try:
        with warnings.catch_warnings(record=True) as caught, redirect_stdout(chatter):
            warnings.simplefilter("always")
            try:
                yield it
            except SystemExit as stop:  # from a model's own code: it must not pass for our success
                raise CaptureError(
                    f"the model's code ended the program (sys.exit({stop.code!r}))",
                    todo="guard what runs on import with `if __name__ == '__main__'`",
                ) from stop
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt as error:
        it.failed(Failure("interrupted", "no file was left half-written", 130), error)
        raise typer.Exit(130) from None
    except Exception as error:
        failure = failure_of(error)
        try:
            it.failed(failure, error)
        except UsageError as unwritten:
            say(failure_of(unwritten))
        if show_traceback:
            import traceback

            traceback.print_exc()
        raise typer.Exit(failure.exit_code) from None
    finally:
        it.settle()
        if verbose:
            for line in [*chatter.getvalue().splitlines(), *(str(w.message) for w in caught)]:
                _tell(it.talk, f"[dim]{escape(printable(line.expandtabs()))}[/dim]")


def failure_of(error: Exception) -> Failure:
    """The documented exit code and what to say: 101 for what is no error of ours to foresee."""
    if isinstance(error, BntoolsError):
        return Failure(one_line(error.message), one_line(error.todo), error.exit_code)
    return Failure(
        f"{type(error).__name__}: {one_line(str(error))[:500]}",
        "this is a bug in bntools: please report it, with what --traceback shows",
        101,
    )


def say(failure: Failure) -> None:
    """Write a failure to stderr in one or two lines."""
    talk = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
    _tell(talk, f"[bold red]error[/bold red]  {escape(printable(failure.message))}")
    if failure.todo:
        _tell(talk, f"       {escape(printable(failure.todo))}")


def _tell(talk: Console, text: str) -> None:
    """Say something on stderr; that nobody can hear it changes nothing about what is done."""
    try:
        talk.print(text)
    except OSError:
        _hush(talk.file)


def _plain(value: Any) -> Any:
    """What JSON has: records as objects, and null for numbers that are none."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # What does not count in a comparison is no part of the record: the arrays behind a plan.
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.compare}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | int | bool) or value is None:
        return value
    return str(value)

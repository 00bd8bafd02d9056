"""Every error that bntools raises on purpose.

    BntoolsError                  exit code
    ├── UsageError                    2   a wrong argument, option or configuration
    │   └── SourceError               2   a file that is missing, unreadable or not a model
    ├── UnsafeError                   3   opening the file would run code, or it is a bomb
    ├── CaptureError                  4   the model cannot be run or captured on these inputs
    ├── PlanError                     2   a plan that does not belong to this model
    └── PromiseError                  1   the result does not compute what was promised

Each says where it happened, what was expected, what is there, and what to do about it; where somebody else's
error is the cause, in one line of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

_COLOUR = re.compile(r"\x1b\[[\d;]*m")


class BntoolsError(Exception):
    """An error with a place and a remedy.

    Args:
        message: one sentence: where, what was expected and what is.
        todo: what the reader can do about it, as an imperative sentence; empty if nothing.

    Example:
        >>> print(UsageError("--input: '3xx' is no shape", todo="write it as 2x3x224x224"))
        --input: '3xx' is no shape; write it as 2x3x224x224
    """

    exit_code: ClassVar[int] = 101
    rank: int | None = None
    """The process that it came up in, if that is another one."""

    def __init__(self, message: str, *, todo: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.todo = todo

    def __str__(self) -> str:
        return f"{self.message}; {self.todo}" if self.todo else self.message


class UsageError(BntoolsError):
    """A wrong argument, option or configuration value."""

    exit_code = 2


class SourceError(UsageError):
    """A file that is missing, unreadable, damaged, or not what the verb works on."""


class UnsafeError(BntoolsError):
    """Opening the file would run code or exhaust memory; nothing was read."""

    exit_code = 3


class CaptureError(BntoolsError):
    """The model cannot be run, captured or copied with these inputs."""

    exit_code = 4


class PlanError(BntoolsError):
    """A plan, or the tensors that come with it, do not fit this model."""

    exit_code = 2


class PromiseError(BntoolsError):
    """The result does not compute what was promised; the model is as it was.

    Args:
        message, todo: as for every error.
        report: the `bntools.Report` of the check that failed.
    """

    exit_code = 1

    def __init__(self, message: str, *, todo: str = "", report: Any = None) -> None:
        super().__init__(message, todo=todo)
        self.report = report


def listed(names: Sequence[str], most: int | None = 8) -> str:
    """The first of some names, and how many more there are; all of them where *most* is None.

    Example:
        >>> listed(["a", "b", "c"], 2)
        'a, b and 1 more'
    """
    more = len(names) - most if most is not None else 0
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def first_line(error: BaseException) -> str:
    """The first line of an error's text, cut to a length that fits a screen."""
    text = _COLOUR.sub("", str(error)).strip().splitlines()
    return text[0][:200] if text else "no message"


def in_a_line(error: BaseException) -> str:
    """Its class and the first line of its text.

    Example:
        >>> in_a_line(ValueError("no such shape"))
        'ValueError: no such shape'
    """
    return f"{type(error).__name__}: {first_line(error)}"

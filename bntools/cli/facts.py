"""What a command tells besides the records of its verb."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it imports torch
    from bntools.core.verify import Report

INCONCLUSIVE = 5
"""The exit code, with ``--strict``, where nobody can tell; all others are those of errors."""


@dataclass(frozen=True, slots=True)
class Loading:
    """What was loaded: its name, its kind in words, and whether its code was allowed to run."""

    name: str
    what: str
    unsafe: bool = False


@dataclass(frozen=True, slots=True)
class Output:
    """A file that was written: its path, what it is, its size in bytes and that of the file it came from; how
    it was run, if it holds no torch model.
    """

    path: str
    what: str
    after: int
    before: int | None = None
    check: Report | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a command did not do what it was asked for: what is wrong, what to do about it, the exit code."""

    message: str
    todo: str
    exit_code: int

"""Names come out of files that strangers wrote: what they could do to a screen is taken from them."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""*text* on one line, with escape sequences, line ends and the like written out.

    Example:
        >>> printable("bn\x1b[2J"), printable("modèle 1.pt")
        ('bn\\x1b[2J', 'modèle 1.pt')
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def one_line(text: str) -> str:
    """*text* without its line ends, and printable."""
    return printable(" ".join(line.strip() for line in text.splitlines()))


def annotation(level: str, verb: str, text: str) -> str:
    """A line that GitHub shows beside the run; its commands need some characters escaped."""
    return f"::{level} title=bntools {verb}::{printable(text).replace('%', '%25')}"

"""Names come out of files that strangers wrote: what they could do to a screen is taken from them."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""*text* on one line, with all that is no plain character written out.

    Those are escape sequences and line ends; what turns the direction of a line; what XML cannot hold, and
    half a surrogate, which no file can.

    Example:
        >>> printable("bn\x1b[2J\u202e"), printable("modèle <1>.pt")
        ('bn\\x1b[2J\\u202e', 'modèle <1>.pt')
    """
    if text.isprintable():  # as nearly all of a page is
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def one_line(text: str) -> str:
    """*text* without its line ends, and printable."""
    return printable(" ".join(line.strip() for line in text.splitlines()))

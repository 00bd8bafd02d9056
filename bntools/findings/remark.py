"""What a rule says before it is a `bntools.findings.Finding`, and how it counts channels. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from bntools.findings.subject import Subject


class Remark(NamedTuple):
    """One finding of one rule.

    Args:
        layer: the path of the module, None for the model as a whole.
        detail: the numbers in words.
        numbers: the same by name.
    """

    layer: str | None
    detail: str
    numbers: dict[str, float]


Check = Callable[[Subject, float], Iterator[Remark]]
"""Asks one rule of a subject, with the rule's threshold."""


def of_channels(mask: np.ndarray) -> str:
    """How many of the channels, in words.

    Example:
        >>> of_channels(np.array([True, False, True]))
        '2 of 3 channels'
    """
    count = int(mask.sum())
    if count == mask.size:
        return "all channels" if count > 1 else "the channel"
    return f"{count} of {mask.size} channels"

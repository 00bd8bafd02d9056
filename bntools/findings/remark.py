"""What a rule says before it is made a `bntools.findings.Finding`, and how it counts channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

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


def of_channels(mask: Tensor) -> str:
    """How many of the channels, in words.

    Example:
        >>> import torch
        >>> of_channels(torch.tensor([True, False, True]))
        '2 of 3 channels'
    """
    count = int(mask.sum())
    if count == mask.numel():
        return "all channels" if count > 1 else "the channel"
    return f"{count} of {mask.numel()} channels"

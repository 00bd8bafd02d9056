"""Times of calls that take turns, so that a busy machine slows all alike, and what they spread over."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """Some measurements of one thing, told as their median and what the middle half of them lies between.

    >>> f"{Spread([1.0, 2.0, 3.0, 4.0, 90.0]):.1f}"
    '3.0 (2.0–4.0)'
    """

    values: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def middle(self) -> tuple[float, float]:
        """The first and the third quartile."""
        if len(self.values) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high

    def to(self, other: Spread) -> Spread:
        """The ratio to what took the same turns: turn by turn, as a turn slows both.

        >>> f"{Spread([2.0, 20.0]).to(Spread([1.0, 10.0])):.1f}"
        '2.0 (2.0–2.0)'
        """
        return Spread([a / b for a, b in zip(self.values, other.values, strict=True)])

    def __format__(self, spec: str) -> str:
        low, high = self.middle
        return f"{self.median:{spec}} ({low:{spec}}–{high:{spec}})"


def spreads(ways: Sequence[Callable[[], Any]], turns: int, warm: int) -> list[Spread]:
    """Milliseconds of a call of each way, of so many turns, after some to warm up."""

    def timed(way: Callable[[], Any]) -> float:
        start = time.perf_counter()
        way()
        return 1e3 * (time.perf_counter() - start)

    return gathered([lambda way=way: timed(way) for way in ways], turns, warm)


def gathered(ways: Sequence[Callable[[], float]], turns: int, warm: int) -> list[Spread]:
    """What each way returns, of so many turns, after some to warm up."""
    found: list[list[float]] = [[] for _ in ways]
    for turn in range(turns + warm):
        for way, values in zip(ways, found, strict=True):
            value = way()
            if turn >= warm:
                values.append(value)
    return [Spread(values) for values in found]


def medians(ways: Sequence[Callable[[], Any]], turns: int, warm: int) -> list[float]:
    """Milliseconds of a call of each way: the medians of so many turns, after some to warm up."""
    return [spread.median for spread in spreads(ways, turns, warm)]

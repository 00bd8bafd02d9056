"""Times of calls that take turns, so that a busy machine slows all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def medians(ways: Sequence[Callable[[], Any]], turns: int, warm: int) -> list[float]:
    """Milliseconds of a call of each way: the medians of so many turns, after some to warm up."""
    times: list[list[float]] = [[] for _ in ways]
    for turn in range(turns + warm):
        for way, taken in zip(ways, times, strict=True):
            start = time.perf_counter()
            way()
            if turn >= warm:
                taken.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(taken) for taken in times]

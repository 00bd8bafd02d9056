"""How long a forward takes before and after, measured side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bntools.core.example import Example
from bntools.core.untouched import untouched

WARM_UP = 3


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of one forward: medians, and the distance between the quartiles.

    Args:
        before, after: medians.
        spread_before, spread_after: third quartile minus first.
        runs: of each model.
        threads: that torch used.
    """

    before: float
    after: float
    spread_before: float
    spread_after: float
    runs: int
    threads: int


def measure(before: nn.Module, after: nn.Module, example: Example, runs: int = 30) -> Latency:
    """Time two models on one input, turn by turn, so that a busy machine slows both alike.

    Args:
        before, after: left as they are.
        example: what they are called with.
        runs: of each, after a few to warm up.
    """
    times: dict[int, list[float]] = {0: [], 1: []}
    example = example.fresh()
    with untouched(before), untouched(after):
        for turn in range(runs + WARM_UP):
            for index, model in enumerate((before, after)):
                wait(example.tensors)
                start = time.perf_counter()
                example(model)
                wait(example.tensors)
                if turn >= WARM_UP:
                    times[index].append((time.perf_counter() - start) * 1e3)
    (low, middle, high), (low_after, middle_after, high_after) = (
        statistics.quantiles(times[i], n=4) for i in (0, 1)
    )
    return Latency(middle, middle_after, high - low, high_after - low_after, runs, torch.get_num_threads())


def wait(tensors: Iterable[Tensor]) -> None:
    """Work on a GPU goes on after the call returns."""
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        torch.cuda.synchronize(device)

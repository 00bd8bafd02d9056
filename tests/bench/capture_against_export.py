"""What a capture costs beside a plain forward and beside ``torch.export``, in one run.

Run by hand: ``python -m tests.bench.capture_against_export``. Medians of interleaved runs.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from typing import Any

import torch

from bntools.core.capture import capture
from bntools.core.example import Example
from tests.bench.fold_against_fx import MODELS, THREADS, build, timed

ROUNDS = 5


def row(name: str) -> list[str]:
    model, example = build(name)
    call = Example((example,))
    ways: dict[str, Callable[[], Any]] = {
        "forward": torch.no_grad()(lambda: call(model)),
        "capture": lambda: capture(model, call),
        "export": lambda: torch.export.export(model, (example,), strict=False),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(ROUNDS + 1):
        for way, run in ways.items():
            seconds = timed(run)
            if turn:  # the first is to warm up
                times[way].append(seconds)
    return [name, *(f"{statistics.median(times[way]):.3f}" for way in ways)]


def main() -> None:
    print(f"torch {torch.__version__}, {THREADS} threads, batch of 1 at 224x224, seconds.\n")
    print("| model | forward | capture | `torch.export` |\n|---|---:|---:|---:|")
    for name in MODELS:
        print(f"| {' | '.join(row(name))} |")


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    warnings.simplefilter("ignore")
    main()

"""The time to find what folds against that of the capture before it.

``python -m tests.bench.find_against_capture [NAME …]``; without names, the models of `make test`.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Sequence

import torch
from torch import nn

import bntools as bn
from tests.bench.result import Result, Table, begun, main
from tests.bench.turns import Spread
from tests.zoo import SAMPLE, arguments, build

TURNS = 5


def turns(model: nn.Module, example: bn.Example) -> tuple[int, Spread, Spread]:
    """How many sites there are, and the seconds of the capture and of finding."""
    capturing, finding, sites = [], [], 0
    for _ in range(TURNS):
        start = time.perf_counter()
        capture = bn.capture(model, example)
        middle = time.perf_counter()
        sites = len(bn.find_folds(capture).sites)
        capturing.append(middle - start)
        finding.append(time.perf_counter() - middle)
    return sites, Spread(capturing), Spread(finding)


def times(model: nn.Module, example: bn.Example) -> tuple[int, float, float]:
    """The same, and the least of the turns."""
    sites, capturing, finding = turns(model, example)
    return sites, min(capturing.values), min(finding.values)


def row(name: str) -> tuple[str, ...]:
    model, example = build(begun(name))
    sites, capturing, finding = turns(model, bn.Example(arguments(example)))
    return name, f"{sites}", f"{capturing:.3f}", f"{finding:.3f}", f"{finding.to(capturing):.2f}"


def bench(names: Sequence[str] = ()) -> Result:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    return Result(
        "To find what folds, all BatchNorms together, against the capture that comes before it. Claim: it "
        "takes less.",
        (
            Table(
                f"A batch of 2, {TURNS} turns.",
                ("model", "sites", "capture, s", "find, s", "find to capture"),
                tuple(row(name) for name in names or SAMPLE),
            ),
        ),
        "the other architectures: `make zoo` writes both times of each into the [coverage](coverage.md).",
        threads=1,
    )


if __name__ == "__main__":
    sys.exit(main(bench))

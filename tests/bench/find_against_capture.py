"""The time to find what folds against that of the capture before it, over the zoo.

``python -m tests.bench.find_against_capture [NAME …]``; without names, the models of `make test`. Each time
is the least of some turns, in which the two follow one another.
"""

from __future__ import annotations

import sys
import time
import warnings

import torch
from torch import nn

import bntools as bn
from tests.zoo import SAMPLE, arguments, build

TURNS = 5


def times(model: nn.Module, example: bn.Example) -> tuple[int, float, float]:
    """How many sites there are, and the seconds of the capture and of finding."""
    capturing, finding, sites = [], [], 0
    for _ in range(TURNS):
        start = time.perf_counter()
        capture = bn.capture(model, example)
        middle = time.perf_counter()
        sites = len(bn.find_folds(capture).sites)
        capturing.append(middle - start)
        finding.append(time.perf_counter() - middle)
    return sites, min(capturing), min(finding)


def main() -> None:
    print("| model | sites | capture s | find s | ratio |")
    print("|---|---:|---:|---:|---:|")
    for name in sys.argv[1:] or SAMPLE:
        model, example = build(name)
        sites, capturing, finding = times(model, bn.Example(arguments(example)))
        print(
            f"| {name} | {sites} | {capturing:.3f} | {finding:.3f} | {finding / capturing:.2f} |", flush=True
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    main()

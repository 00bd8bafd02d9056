"""What `fold(simplify=True)` gains over a fold alone: ``python -m tests.bench.simplify [NAME …]``.

Each model in both memory formats, the three versions in turn.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import partial

import torch

import bntools as bn
from tests.bench.result import Result, Table, begun, main
from tests.bench.turns import spreads
from tests.zoo import build

MODELS = ("torchvision:densenet121", "timm:resnetv2_50", "timm:efficientvit_b0")
TURNS = 30
THREADS = 1


def row(name: str, layout: torch.memory_format) -> tuple[str, ...]:
    words = "channels last" if layout is torch.channels_last else "contiguous"
    begun(f"{name}, {words}")
    model, example = build(name)
    model, example = model.to(memory_format=layout), example.contiguous(memory_format=layout)
    folded = bn.fold(model, example, verify=False)
    simpler = bn.fold(model, example, simplify=True)
    ways = [partial(each, example) for each in (model, folded.model, simpler.model)]
    with torch.no_grad():
        before, after, reduced = spreads(ways, TURNS, warm=3)
    counts = Counter(reduction.op.value for reduction in simpler.plan.reductions)
    sites = len(folded.plan.edits), len(folded.plan.refusals), counts["shift"], counts["affine"]
    return (
        name, words, *map(str, sites), f"{before:.1f}", f"{after:.1f}", f"{reduced:.1f}",
        f"{reduced.to(after):.2f}",
    )  # fmt: skip


def bench(names: Sequence[str] = ()) -> Result:
    torch.set_num_threads(THREADS)
    warnings.simplefilter("ignore")
    layouts = (torch.contiguous_format, torch.channels_last)
    columns = (
        "model", "layout", "folded", "stay", "to an addition", "to a multiply-add", "before, ms",
        "folded, ms", "simplified, ms", "to folded",
    )  # fmt: skip
    return Result(
        "`fold(simplify=True)` against a fold alone, on models with BatchNorms that cannot fold. Claim: "
        "it is not slower, as each layer is measured before it is replaced.",
        (
            Table(
                f"A batch of 2, {TURNS} turns.",
                columns,
                tuple(row(name, layout) for name in names or MODELS for layout in layouts),
            ),
        ),
        "larger models: `python -m tests.bench.simplify timm:nasnetalarge` takes minutes.",
        THREADS,
    )


if __name__ == "__main__":
    sys.exit(main(bench))

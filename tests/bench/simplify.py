"""What `fold(simplify=True)` gains over a fold alone: ``python -m tests.bench.simplify [NAME …]``.

Each model in both memory formats, the three versions in turn, so that a busy machine slows all alike.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from functools import partial

import torch

import bntools as bn
from tests.bench.turns import medians
from tests.zoo import build

MODELS = ("torchvision:densenet121", "timm:resnetv2_50", "timm:efficientvit_b0", "timm:nasnetalarge")
TURNS = 30
THREADS = 1


def row(name: str, layout: torch.memory_format) -> str:
    """A line of the table."""
    model, example = build(name)
    model, example = model.to(memory_format=layout), example.contiguous(memory_format=layout)
    folded = bn.fold(model, example, verify=False)
    simpler = bn.fold(model, example, simplify=True)
    ways = [partial(each, example) for each in (model, folded.model, simpler.model)]
    with torch.no_grad():
        before, after, reduced = medians(ways, TURNS, warm=3)
    counts = Counter(reduction.op.value for reduction in simpler.plan.reductions)
    sites = f"{len(folded.plan.edits)} | {len(folded.plan.refusals)} | {counts['shift']} | {counts['affine']}"
    words = "channels last" if layout is torch.channels_last else "contiguous"
    return (
        f"| {name} | {words} | {sites} | {before:.1f} | {after:.1f} | {reduced:.1f} | {reduced / after:.2f} |"
    )


def main() -> None:
    print(f"Milliseconds, medians of {TURNS} interleaved calls on {THREADS} thread, a batch of 2.\n")
    print(
        "| model | layout | folded | stay | to an addition | to a multiply-add | before | folded "
        "| simplified | ratio to folded |"
    )
    print("|---|---|" + "---:|" * 8)
    for name in sys.argv[1:] or MODELS:
        for layout in (torch.contiguous_format, torch.channels_last):
            print(row(name, layout), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    warnings.simplefilter("ignore")
    main()

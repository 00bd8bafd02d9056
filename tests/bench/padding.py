"""What padding with a value for each channel costs against the BatchNorm that goes by it.

``python -m tests.bench.padding``: microseconds, and the ratio that `fold(pad_exact=True)` decides by.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import nn

from bntools.core.faster import GAIN, pad_costs
from tests.bench.result import Result, Table, main
from tests.bench.turns import Spread

SHAPES = ((2, 64, 56, 56), (2, 256, 14, 14), (16, 64, 28, 28))
TURNS = 5


def row(shape: tuple[int, ...], layout: torch.memory_format, groups: int) -> tuple[str, ...]:
    x = torch.empty(shape, memory_format=layout)
    conv = nn.Conv2d(shape[1], shape[1], 3, padding=1, groups=groups).to(memory_format=layout)
    costs = [pad_costs(x.shape, x.stride(), torch.zeros(shape[1]), [conv]) for _ in range(TURNS)]
    norm, extra = (Spread([1e6 * cost[i] for cost in costs]) for i in (0, 1))
    words = "channels last" if layout is torch.channels_last else "contiguous"
    kind = "3×3" if groups == 1 else "3×3 depthwise"
    size = "×".join(map(str, shape))
    return size, words, kind, f"{norm:.0f}", f"{extra:.0f}", f"{extra.to(norm):.2f}"


def bench(names: Sequence[str] = ()) -> Result:
    torch.set_num_threads(1)
    rows = [
        row(shape, layout, groups)
        for shape in SHAPES
        for layout in (torch.contiguous_format, torch.channels_last)
        for groups in (1, shape[1])
    ]
    return Result(
        "What a convolution takes longer when it pads with a value for each channel, against the "
        "BatchNorm in front of it that goes by that. `fold(pad_exact=True)` does it below a ratio of "
        f"{GAIN}. Claim: on a CPU it rarely pays, so it is measured before it is done.",
        (
            Table(
                f"{TURNS} turns.",
                ("values", "layout", "convolution", "BatchNorm, µs", "padding, µs", "to BatchNorm"),
                tuple(rows),
            ),
        ),
        "GPUs, where a padding costs less.",
        threads=1,
    )


if __name__ == "__main__":
    sys.exit(main(bench))

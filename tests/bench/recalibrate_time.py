"""What `recalibrate` costs beside a plain pass in eval and torch's own ``update_bn``.

``python -m tests.bench.recalibrate_time [NAME …]``; all of them in turn over the same data.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import bntools as bn
from tests.bench.result import Result, Table, begun, main
from tests.bench.turns import spreads
from tests.zoo import build

MODELS = ("torchvision:resnet18", "torchvision:resnet50", "torchvision:mobilenet_v3_large")
SIZES = (8, 32)
SAMPLES = 192
SIDE = 160
TURNS = 3
THREADS = 2


def row(name: str, size: int) -> tuple[str, ...]:
    begun(f"{name}, {size}")
    model, twin = build(name)[0], build(name)[0]
    data = torch.randn(SAMPLES, 3, SIDE, SIDE).split(size)

    def plain(data: Sequence[Tensor]) -> None:
        for batch in data:
            model(batch)

    ways: list[Callable[[Any], Any]] = [
        plain,
        partial(bn.recalibrate, model, virtual_batch="all", inplace=True),
        partial(bn.recalibrate, model, virtual_batch=32, stop=False, inplace=True),
        partial(update_bn, model=twin),
    ]
    with torch.no_grad():
        for way in ways:
            way(data[:1])  # to warm up
        once, whole, groups, other = spreads([partial(way, data) for way in ways], TURNS, warm=0)
    gap = max(distances(bn.recalibrate(model, data, virtual_batch="all").model, twin))
    return (
        name, f"{size}", f"{once:.0f}", f"{whole.to(once):.2f}", f"{groups.to(once):.2f}",
        f"{other.to(once):.2f}", f"{whole.to(other):.2f}", f"{gap:.2f}",
    )  # fmt: skip


def distances(one: nn.Module, two: nn.Module) -> list[float]:
    """How far the means of each layer are apart, in units of σ, in the worst channel."""
    a, b = (dict(model.named_buffers()) for model in (one, two))

    def apart(key: str) -> Tensor:
        return (a[key] - b[key]).abs() / a[key.replace("running_mean", "running_var")].sqrt()

    return [float(apart(key).max()) for key in a if key.endswith("running_mean")]


def bench(names: Sequence[str] = ()) -> Result:
    torch.set_num_threads(THREADS)
    warnings.simplefilter("ignore")
    columns = (
        "model", "batch", "plain pass, ms", "one group, to plain", "groups of 32, to plain",
        "`update_bn`, to plain", "one group, to `update_bn`", "`update_bn` is off by, σ",
    )  # fmt: skip
    return Result(
        "`bn.recalibrate` against torch's `update_bn` and a plain pass in eval over the same images. "
        "Claim: lock-step is one pass, a little dearer than `update_bn`, whose statistics depend on "
        "the batches.",
        (
            Table(
                f"{SAMPLES} images of {SIDE}×{SIDE}, {TURNS} turns; the last column is the largest "
                "distance between the means of both, in the worst channel.",
                columns,
                tuple(row(name, size) for name in names or MODELS for size in SIZES),
            ),
        ),
        "fvcore's `update_bn_stats` and AIMET's `reestimate_bn_stats`, which need other environments.",
        THREADS,
    )


if __name__ == "__main__":
    sys.exit(main(bench))

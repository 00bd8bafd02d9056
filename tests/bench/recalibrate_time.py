"""What `recalibrate` costs beside a plain pass in eval and torch's own ``update_bn``.

``python -m tests.bench.recalibrate_time [NAME …]``; all of them in turn over the same data.
"""

from __future__ import annotations

import sys
import warnings

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import bntools as bn
from tests.bench.turns import medians
from tests.zoo import build

MODELS = ("torchvision:resnet18", "torchvision:resnet50", "torchvision:mobilenet_v3_large")
SIZES = (8, 32)
SAMPLES = 256
SIDE = 160
TURNS = 3


def row(name: str, size: int) -> str:
    """A line of the table."""
    model, _ = build(name)
    data = torch.randn(SAMPLES, 3, SIDE, SIDE).split(size)
    twin = build(name)[0]

    def plain() -> None:
        for batch in data:
            model(batch)

    ways = [
        plain,
        lambda: bn.recalibrate(model, data, virtual_batch="all", inplace=True),
        lambda: bn.recalibrate(model, data, virtual_batch=32, stop=False, inplace=True),
        lambda: update_bn(data, twin),
    ]
    with torch.no_grad():
        once, whole, groups, other = medians(ways, TURNS, warm=1)
    gap = max(distances(bn.recalibrate(model, data, virtual_batch="all").model, twin))
    return (
        f"| {name} | {size} | {once:.0f} | {whole / once:.2f} | {groups / once:.2f} | {other / once:.2f} "
        f"| {gap:.2f} |"
    )


def distances(one: nn.Module, two: nn.Module) -> list[float]:
    """How far the means of each layer are apart, in units of σ, in the worst channel."""
    a, b = (dict(model.named_buffers()) for model in (one, two))

    def apart(key: str) -> Tensor:
        return (a[key] - b[key]).abs() / a[key.replace("running_mean", "running_var")].sqrt()

    return [float(apart(key).max()) for key in a if key.endswith("running_mean")]


def main() -> None:
    print(
        f"{SAMPLES} images of {SIDE}×{SIDE}, medians of {TURNS} interleaved passes, "
        f"{torch.get_num_threads()} threads; ratios to a plain pass in eval.\n"
    )
    print(
        "| model | batch | plain pass, ms | one group | groups of 32 | update_bn "
        "| its means are off by at most, in σ |"
    )
    print("|---|" + "---:|" * 6)
    for name in sys.argv[1:] or MODELS:
        for size in SIZES:
            print(row(name, size), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()

"""What the outputs of a network are off by after a swap, against a copied and a fresh affine map.

``python -m tests.bench.swap_against_copy [NAME …]``; seasoned BatchNorms, recalibrated on the data.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Sequence

import torch
from torch import nn

import bntools as bn
from tests.bench.result import Result, Table, begun, main
from tests.zoo import build

MODELS = "torchvision:resnet18", "torchvision:mobilenet_v3_small", "torchvision:mobilenet_v3_large"
SAMPLES, SIDE = 64, 96
THREADS = 2


def row(name: str) -> tuple[str, ...]:
    model, _ = build(begun(name))
    data = torch.randn(SAMPLES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    # Recalibrated, or the data is nothing like what the statistics are of.
    model = bn.recalibrate(model, data.split(16)).model
    nets = [
        bn.swap(model, inputs=data).model,
        bn.swap(model, data=data.split(16)).model,
        bn.swap(model, data=data.split(16), tune=50).model,
    ]
    for copied in (True, False):
        twin = copy.deepcopy(nets[0])
        for path, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                fresh = {"weight": torch.ones_like(module.weight), "bias": torch.zeros_like(module.bias)}
                own = {"weight": module.weight, "bias": module.bias}
                twin.get_submodule(path).load_state_dict(own if copied else fresh)
        nets.append(twin)
    with torch.no_grad():
        want = model.eval()(data)
        off = [float((net.eval()(data) - want).norm() / want.norm()) for net in nets]
    return name, *(f"{each:.2f}" for each in off)


def bench(names: Sequence[str] = ()) -> Result:
    torch.set_num_threads(THREADS)
    warnings.simplefilter("ignore")
    return Result(
        "GroupNorms with the γ and β of `bn.swap` against those with γ and β copied, as helpers do that "
        "people copy, and with fresh ones. Claim: the outputs move much less.",
        (
            Table(
                f"`‖new − old‖/‖old‖` of the outputs on {SAMPLES} random images of {SIDE}×{SIDE}.",
                ("model", "closed form", "with data", "and 50 steps", "γ and β copied", "fresh"),
                tuple(row(name) for name in names or MODELS),
            ),
        ),
        "accuracy, which needs a trained network: [swap](swap.md) has it on digits.",
        THREADS,
    )


if __name__ == "__main__":
    sys.exit(main(bench))

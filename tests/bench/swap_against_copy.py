"""What the outputs of a network are off by after a swap, against a copied and a fresh affine map.

``python -m tests.bench.swap_against_copy``; random weights, seasoned BatchNorms, recalibrated on the data.
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn

import bntools as bn
from tests.zoo import build

MODELS = "torchvision:resnet18", "torchvision:mobilenet_v3_small", "torchvision:mobilenet_v3_large"
SAMPLES, SIDE = 64, 96


def row(name: str) -> str:
    """A line of the table."""
    model, _ = build(name)
    data = torch.randn(SAMPLES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    model = bn.recalibrate(
        model, data.split(16)
    ).model  # or the data is nothing like what the statistics are of
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
    return f"| {name.partition(':')[2]} | " + " | ".join(f"{each:.2f}" for each in off) + " |"


def main() -> None:
    print("| model | closed form | with data | and 50 steps | γ and β copied | fresh |")
    print("|---|" + "---:|" * 5)
    for name in MODELS:
        print(row(name), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()

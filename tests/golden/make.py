"""Write the golden files anew, after a change of the format on purpose: ``python -m tests.golden.make``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bntools as bn
from tests.must_fold import BatchNormReLU

FOLDER = Path(__file__).parent
ARTEFACT, PLAN = FOLDER / "tied.safetensors", FOLDER / "tied.plan.json"
INPUTS = torch.arange(16.0).reshape(2, 2, 2, 2) / 8 - 1


class Tied(nn.Module):
    """Two convolutions with one weight and one BatchNorm, one that leaves a ReLU behind, one that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1, bias=False)
        self.b.weight = self.a.weight
        self.bn = nn.BatchNorm2d(2, eps=0.0)
        self.c, self.act = nn.ConvTranspose2d(2, 3, 1, bias=False), BatchNormReLU(3, eps=0.25)
        self.last = nn.BatchNorm2d(3, eps=0.0)

    def forward(self, v: Tensor) -> Tensor:
        v = self.bn(self.a(v)) + self.bn(self.b(v))
        y: Tensor = self.last(self.act(self.c(v)))
        return y


def build() -> nn.Module:
    """Every folded number is exact on any machine: σ² + ε is 4 or 16, all else a few powers of two."""
    model = Tied().eval()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(((torch.arange(p.numel()) * 5 + i) % 11 - 5).reshape(p.shape) / 4)
        norms: tuple[Any, ...] = model.bn, model.act, model.last
        for norm in norms:
            sizes = torch.tensor([4.0, 16.0, 4.0])[: norm.num_features]
            norm.running_var.copy_(sizes - norm.eps)
            norm.running_mean.copy_(torch.tensor([0.5, -1.5, 3.0])[: norm.num_features])
            norm.weight.copy_(torch.tensor([-2.0, 1.0, 0.5])[: norm.num_features])
            norm.num_batches_tracked.fill_(77)
    return model


if __name__ == "__main__":
    surgery = bn.fold(build(), INPUTS)
    bn.save(surgery, ARTEFACT, force=True)
    PLAN.write_text(surgery.plan.to_json() + "\n", encoding="utf-8")

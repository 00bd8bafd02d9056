"""What the page's recipes work on: ``python -m tests.ci.models`` writes it into the working directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from tests.season import season

SHAPE = (2, 3, 224, 224)
SAMPLES = 16


def model(width: int = 6) -> nn.Module:
    """Takes images as the page's input is one; both of its BatchNorms fold, seasoned for such images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [
            nn.Conv2d(3, width, 7, stride=8, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
        ]
        return season(nn.Sequential(*layers).eval(), example=torch.randn(SHAPE))


def broken() -> nn.Module:
    """The same, but for one variance, which is negative."""
    ill = model()
    ill.get_buffer("1.running_var")[0] = -1
    return ill


def write(folder: Path) -> None:
    """``model.pt``, its twin ``broken.pt``, and ``calibration.npy``, far from what the model has seen."""
    torch.save(model(), folder / "model.pt")
    torch.save(broken(), folder / "broken.pt")
    draw = np.random.default_rng(0).normal(0.5, 1.5, (SAMPLES, *SHAPE[1:]))
    np.save(folder / "calibration.npy", draw.astype(np.float32))


if __name__ == "__main__":
    write(Path.cwd())

"""Small seasoned networks, also as factories for ``--arch tests.cli.nets:net``."""

from __future__ import annotations

import sys
import warnings

import torch
from torch import Tensor, nn

from tests.season import season

SHAPE = "2x3x8x8"
SPEC = "tests.cli.nets:net"


def net(width: int = 4) -> nn.Module:
    """Two BatchNorms that fold."""
    layers = [
        nn.Conv2d(3, width, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 5, 1),
        nn.BatchNorm2d(5),
    ]
    return _made(nn.Sequential(*layers))


def partly() -> nn.Module:
    """One BatchNorm that folds, and one that stays, behind a ReLU."""
    return _made(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)))


def normed() -> nn.Module:
    """A first layer whose weight is computed by weight_norm."""
    model = net()
    nn.utils.parametrizations.weight_norm(model.get_submodule("0"))
    return model


def plain() -> nn.Module:
    """No BatchNorm at all."""
    return _made(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))


def weak() -> nn.Module:
    """A BatchNorm that is the identity, on purpose: dropping it would not show."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-12)).eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nn.init.normal_(model.get_parameter("0.weight"))
    return model


def odd_names() -> nn.Module:
    """Names that mean something to GitHub, to Markdown, to Rich and to a terminal."""
    model = nn.Sequential()
    for name, layer in {
        "c[red]|": nn.Conv2d(3, 4, 3),
        "a|b%`": nn.BatchNorm2d(4),
        "r": nn.ReLU(),
        "[bold]%0A\x1b[2J\nz|": nn.BatchNorm2d(4),
    }.items():
        model.add_module(name, layer)
    return _made(model)


class Chatty(nn.Module):
    """Says something on every forward, in each way there is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        print("said on stdout")  # noqa: T201
        warnings.warn("warned about it", UserWarning, stacklevel=1)
        out: Tensor = self.bn(self.conv(x))
        return out


def chatty() -> nn.Module:
    return _made(Chatty())


class Quits(Chatty):
    """A forward that ends the program, and claims success."""

    def forward(self, x: Tensor) -> Tensor:
        sys.exit(0)


def quits() -> nn.Module:
    return _made(Quits())


def _made(model: nn.Module) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.5)
    return season(model.eval())

"""Small networks in which a sum adds up what layers side by side return: what becomes one layer, and twins.

Each is a builder and the names of the sites that must fold in the captured program; the others must stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import nn

from tests.must_fold import Apply


@dataclass(frozen=True)
class Case:
    """A network of one input of shape (2, 4, 9, 9), unless it says otherwise, and the sites that fold."""

    name: str
    build: Callable[[], nn.Module]
    fold: str
    stay: str = ""
    shape: tuple[int, ...] = (2, 4, 9, 9)


def _net(run: Callable[..., Any], **children: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Apply(run, **{name: build() for name, build in children.items()})


def _conv(kernel: Any = 3, channels: int = 4, **kwargs: Any) -> Callable[[], nn.Module]:
    padding = kwargs.pop("padding", None)
    return lambda: nn.Conv2d(
        4, channels, kernel, padding=kernel // 2 if padding is None else padding, **kwargs
    )


def _norm(channels: int = 4) -> nn.Module:
    return nn.BatchNorm2d(channels)


def _two(a: Callable[[], nn.Module], b: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """What a BatchNorm behind each of two layers returns, added up behind a relu that nothing passes."""
    return _net(lambda m, v: (lambda r: m.p(m.a(r)) + m.q(m.b(r)))(F.relu(v)), a=a, b=b, p=_norm, q=_norm)


def _one(run: Callable[..., Any], host: Callable[[], nn.Module] | None = None) -> Callable[[], nn.Module]:
    """``run(module, r)`` with r = relu(x) as one value, which has several readers."""
    return _net(lambda m, v: run(m, F.relu(v)), a=host or _conv(), bn=_norm)


CASES = [
    Case("conv-and-bn", _one(lambda m, r: m.a(r) + m.bn(r)), "bn"),
    Case("bn-and-conv", _one(lambda m, r: m.bn(r) + m.a(r)), "bn"),
    Case("bn-less-conv", _one(lambda m, r: m.bn(r) - m.a(r)), "bn"),
    Case("conv-less-bn", _one(lambda m, r: m.a(r) - m.bn(r)), "bn"),
    Case("added-in-place", _one(lambda m, r: m.a(r).add_(m.bn(r))), "bn"),
    Case("with-a-third", _one(lambda m, r: m.a(r) + r.sigmoid() + m.bn(r)), "bn"),
    Case("depthwise", _one(lambda m, r: m.a(r) + m.bn(r), _conv(groups=4)), "bn"),
    Case("grouped", _one(lambda m, r: m.a(r) + m.bn(r), _conv(groups=2)), "bn"),
    Case("large-kernel", _one(lambda m, r: m.a(r) + m.bn(r), _conv(7)), "bn"),
    Case("point", _one(lambda m, r: m.a(r) + m.bn(r), _conv(1)), "bn"),
    Case("dilated", _one(lambda m, r: m.a(r) + m.bn(r), _conv(padding=2, dilation=2)), "bn"),
    Case(
        "behind-the-sum",
        _net(
            lambda m, v: (lambda r: F.relu(m.bn(m.a(r) + m.b(r))) + r)(F.relu(v)),
            a=_conv(),
            b=_conv(1),
            bn=_norm,
        ),
        "bn",
    ),
    Case(
        "features",
        _net(
            lambda m, v: (lambda r: m.a(r) + m.bn(r))(F.relu(v)),
            a=lambda: nn.Linear(4, 4),
            bn=lambda: nn.BatchNorm1d(4),
        ),
        "bn",
        shape=(5, 4),
    ),
    Case("two-kernels", _two(_conv(3), _conv(5)), "p q"),
    Case(
        "rep-vgg",
        _net(
            lambda m, v: (lambda r: F.relu(m.p(m.a(r)) + m.q(m.b(r)) + m.bn(r)))(F.relu(v)),
            a=_conv(),
            b=_conv(1),
            p=_norm,
            q=_norm,
            bn=_norm,
        ),
        "p q bn",
    ),
    Case("rows-and-columns", _two(_conv((1, 3), padding=(0, 1)), _conv(3)), "p q"),
    # twins: the sum stays a sum, and a BatchNorm without a layer of its own stays
    Case("other-source", _net(lambda m, v: m.a(F.relu(v)) + m.bn(F.relu(-v)), a=_conv(), bn=_norm), "", "bn"),
    Case("bn-is-read", _one(lambda m, r: (lambda y: m.a(r) + y + y.sigmoid())(m.bn(r))), "", "bn"),
    Case("behind-an-activation", _one(lambda m, r: m.a(r) + F.relu(m.bn(r))), "", "bn"),
    Case("conv-behind-an-activation", _one(lambda m, r: F.relu(m.a(r)) + m.bn(r)), "", "bn"),
    Case("strided", _one(lambda m, r: m.a(r) + m.bn(r)[..., ::2, ::2], _conv(stride=2)), "", "bn"),
    Case("even-kernel", _one(lambda m, r: m.a(r) + m.bn(r)[..., 1:, 1:], _conv(2, padding=0)), "", "bn"),
    Case("multiplied", _one(lambda m, r: m.a(r) * m.bn(r)), "", "bn"),
    Case(
        "more-channels", _one(lambda m, r: m.a(r).sum(1, keepdim=True) + m.bn(r), _conv(channels=6)), "", "bn"
    ),
    Case(
        "transposed",
        _one(lambda m, r: m.a(r) + m.bn(r), lambda: nn.ConvTranspose2d(4, 4, 3, padding=1)),
        "",
        "bn",
    ),
    Case("circular", _one(lambda m, r: m.a(r) + m.bn(r), _conv(padding_mode="circular")), "", "bn"),
    Case("moved", _one(lambda m, r: m.a(r) + m.bn(r).roll(1, 2)), "", "bn"),
]

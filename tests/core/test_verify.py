"""A comparison that is blind to something would pass whatever stands there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bntools as bn
from bntools.core.verify import difference
from tests.must_fold import Apply, x
from tests.season import season


@dataclass
class Record:
    features: Tensor


class Mapping(dict[str, Tensor]):
    pass


WRAPS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda y: y,
    "record": Record,
    "object": lambda y: SimpleNamespace(features=y),
    "mapping": lambda y: Mapping(features=y),
    "numpy": lambda y: y.numpy(),
    "floats": lambda y: y.mean((1, 2, 3)).tolist(),
    "nested": lambda y: [{"a": (Record(y),)}],
}


@pytest.mark.parametrize("name", WRAPS)
def test_verify_sees_what_a_forward_may_return(name: str) -> None:
    def net(seed: int) -> nn.Module:
        forward = lambda m, v: WRAPS[name](m.bn(m.conv(v)).detach())  # noqa: E731
        torch.manual_seed(seed)
        return season(Apply(forward, conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)).eval())

    one, same, other = net(0), net(0), net(1)
    assert bn.verify(one, same, x(2, 3, 6, 6)).verdict is bn.Verdict.PASSED
    assert bn.verify(one, other, x(2, 3, 6, 6)).verdict is bn.Verdict.FAILED


def test_nothing_to_compare_is_inconclusive() -> None:
    net = Apply(lambda m, v: None).eval()
    assert bn.verify(net, net, x(2, 3)).verdict is bn.Verdict.INCONCLUSIVE


def test_a_nan_excuses_nothing() -> None:
    inputs = x(2, 3, 6, 6)
    inputs[0, 0, 0, 0] = math.nan
    layers = {"conv": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4)}

    def looks(m: Any, v: Tensor) -> Tensor:
        return m.bn(m.conv(v)) * (1 if isinstance(m.bn, nn.BatchNorm2d) else 2)

    with pytest.raises(bn.PromiseError):
        bn.fold(season(Apply(looks, **layers).eval()), inputs)
    right = season(Apply(lambda m, v: m.bn(m.conv(v)), **layers).eval())
    assert bn.fold(right, inputs).report.verdict is bn.Verdict.PASSED


def test_a_mask_is_no_scale() -> None:
    """-1e9 where a policy must not go would make every other difference vanish."""
    reference = torch.tensor([[-1e9, 0.5, -2.0], [-1e9, 1.5, 1.0]], dtype=torch.float64)
    moved = reference.clone()
    moved[0, 1] += 1e-3
    assert difference([moved], [reference]) == pytest.approx(1e-3 / 0.5)
    assert difference([reference], [reference]) == 0
    # Its twin: large values that differ are no mask.
    large = reference.clone()
    large[:, 0] *= 1 + 1e-12
    assert difference([large], [reference]) < 1e-11

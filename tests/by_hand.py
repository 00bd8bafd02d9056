"""Folds once more by hand: in float64 throughout, and without the proof's help."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

import bntools as bn


def folded(net: nn.Module, x: Tensor, **options: Any) -> bn.Surgery:
    """What `bn.fold` makes of a network, after the same in float64 has been compared with the network."""
    before = copy.deepcopy(net).double()(x.double())
    exact = bn.fold(copy.deepcopy(net).double(), x.double(), verify=False, **options).model
    assert (exact(x.double()) - before).abs().max() <= 1e-12 * before.abs().max()
    return bn.fold(net, x, **options)

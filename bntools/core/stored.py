"""The running statistics that a BatchNorm stores: read, written, and whether it normalises by them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bntools.core.moments import merged, moments_of
from bntools.core.names import own_tensor
from bntools.norms.switchable import SWITCHABLE

_PLAIN = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm
_PARTLY = tuple(SWITCHABLE.values())
_APART = 1e-2
"""Two results that differ by more than this share of the largest value are not the same map."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """The running statistics of a BatchNorm, in float64.

    Args:
        mean: μ, shape (C,).
        var: σ², unbiased, as it is stored, shape (C,).
    """

    mean: Tensor
    var: Tensor


def statistics_of(norm: nn.Module) -> Statistics:
    """Those that a BatchNorm holds, copied."""
    mean, var = own_tensor(norm, "running_mean"), own_tensor(norm, "running_var")
    assert mean is not None
    assert var is not None
    return Statistics(*(tensor.detach().to(torch.float64, copy=True) for tensor in (mean, var)))


def write(norm: nn.Module, mean: Tensor, var: Tensor) -> None:
    """Put statistics into the buffers of a BatchNorm, in place: others may hold them too."""
    with torch.no_grad():
        own_tensor(norm, "running_mean").copy_(mean)  # type: ignore[union-attr]
        own_tensor(norm, "running_var").copy_(var)  # type: ignore[union-attr]


def why_unfit(norm: nn.Module, x: Tensor) -> str:
    """Why a module is no BatchNorm of its input in eval; empty if it is.

    It returns the same for ``2x + b`` with the statistics ``2μ + b``, ``4σ²`` as for x with μ, σ².
    """
    old = statistics_of(norm)
    if x.ndim < 2 or x.shape[1] != len(old.mean) or not x.is_floating_point():
        return f"{len(old.mean)} channels are not what axis 1 of {list(x.shape)} holds"
    if type(norm) in _PLAIN:
        return ""
    kind = type(norm).__name__
    if isinstance(norm, _PARTLY):  # which at its start does so little else that no trial shows it
        return f"{kind} normalises by the sample as well"
    shape = (1, -1, *(1,) * (x.ndim - 2))
    found = merged([moments_of(x)])
    mean, var = found.mean, found.var + 100.0  # beside which ε is nothing
    offset = torch.linspace(-1, 1, len(mean), device=x.device, dtype=torch.float64)
    try:
        write(norm, mean, var)
        one = norm.forward(x)
        write(norm, 2 * mean + offset, 4 * var)
        two = norm.forward(2 * x + offset.reshape(shape).to(x.dtype))
        write(norm, mean + 10, var)
        three = norm.forward(x)
    except Exception as error:
        return f"{kind} does not run by itself: {type(error).__name__}"
    finally:
        write(norm, old.mean, old.var)
    if not isinstance(one, Tensor) or not isinstance(two, Tensor):
        return f"{kind} returns something else than one tensor"
    if torch.equal(one, three) or (one - two).abs().max() > _APART * one.abs().max():
        return f"{kind} normalises in a way of its own"
    return ""

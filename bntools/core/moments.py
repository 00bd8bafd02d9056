"""How many values there are, their mean and their spread, and how the parts of a whole add up.

Never as ``E[x²] − E[x]²``, which loses everything where the mean is large beside σ.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_SHORT = frozenset({torch.float16, torch.bfloat16})
_FAR = 30.0
"""From how many σ on a mean is large beside it."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Of some values in each of C channels.

    Args:
        n: how many in a channel; no whole number where old ones count for some.
        mean: μ, float64, shape (C,).
        m2: the sum of their squared distances from it, float64, shape (C,).

    Example:
        >>> both = merged([moments_of(torch.tensor([[1.0], [3.0]])), moments_of(torch.tensor([[8.0]]))])
        >>> both.n, both.mean.item(), round(both.var.item(), 3), both.unbiased.item()
        (3, 4.0, 8.667, 13.0)
    """

    n: float
    mean: Tensor
    m2: Tensor

    @property
    def var(self) -> Tensor:
        """The variance that a BatchNorm in training mode normalises by, ``m2/n``."""
        return self.m2 / self.n

    @property
    def unbiased(self) -> Tensor:
        """The one that it stores, ``m2/(n − 1)``."""
        return self.m2 / (self.n - 1)


def moments_of(x: Tensor) -> Moments:
    """The moments of all values of each channel.

    Args:
        x: shape (N, C, …), any floating dtype.

    Returns:
        what BatchNorm's own operator finds; on a CPU once more in float64 if a mean is large beside its σ,
        where float32 has too few digits for both.
    """
    x = x.float() if x.dtype in _SHORT else x
    mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
    if x.dtype == torch.float32 and not x.is_cuda and bool((mean.square() > _FAR**2 * var).any()):
        mean, var = torch.batch_norm_update_stats(x.double(), None, None, 0.0)
    n = x.numel() // max(x.shape[1], 1)
    return Moments(n, mean.double(), var.double() * n)


def merged(parts: Iterable[Moments]) -> Moments:
    """The moments of all values together (Chan, Golub and LeVeque 1979).

    ``δ = μ_b − μ``, ``μ += δ·n_b/n'``, ``M2 += M2_b + δ²·n·n_b/n'`` with ``n' = n + n_b``.

    Args:
        parts: at least one, each with at least one value.
    """
    first, *others = parts
    n, mean, m2 = first.n, first.mean, first.m2
    for part in others:
        delta, whole = part.mean - mean, n + part.n
        mean = mean + delta * (part.n / whole)
        m2 = m2 + part.m2 + delta.square() * (n * part.n / whole)
        n = whole
    return Moments(n, mean, m2)

"""The straight line that takes the values of each channel nearest to those of another, by least squares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_FLAT = 1e-9
"""Up to which variance values are all one, and nothing says the slope: those of a norm have one near 1."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Of some pairs ``(x, y)`` in each of C channels.

    Args:
        n: how many in a channel.
        x, y: their means, shape (C,).
        xx: the sum of the squared distances of x from its mean, shape (C,).
        xy: the sum of the products of both distances, shape (C,).

    Example:
        >>> pairs = pairs_of(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [5.0]]))
        >>> [value.item() for value in pairs.line(torch.ones(1))]
        [2.0, 3.0]
    """

    n: int
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor

    def line(self, slope: Tensor) -> tuple[Tensor, Tensor]:
        """The a and b for which ``Σ (a·x + b − y)²`` is least: ``a = xy/xx``, ``b = ȳ − a·x̄``.

        Args:
            slope: a where the values of x are all one, shape (C,).

        Returns:
            a and b, shape (C,).
        """
        flat = self.xx <= _FLAT * self.n
        a = torch.where(flat, slope, self.xy / torch.where(flat, 1.0, self.xx))
        return a, self.y - a * self.x

    def moved(self, scale: Tensor, shift: Tensor) -> Pairs:
        """The pairs ``(scale·x + shift, y)``, with both of shape (C,)."""
        return Pairs(self.n, scale * self.x + shift, self.y, scale.square() * self.xx, scale * self.xy)


def pairs_of(x: Tensor, y: Tensor) -> Pairs:
    """What there is to know of all pairs, channel by channel.

    Args:
        x, y: shape (N, C, …).
    """
    x, y = (values.double().transpose(0, 1).flatten(1) for values in (x, y))
    mean_x, mean_y = x.mean(1), y.mean(1)
    x, y = x - mean_x[:, None], y - mean_y[:, None]
    return Pairs(x.shape[1], mean_x, mean_y, x.square().sum(1), (x * y).sum(1))


def together(parts: Sequence[Pairs]) -> Pairs:
    """All pairs of all parts, as `bntools.core.moments.merged` does for moments.

    ``xy = Σ xy_b + n_b·(x̄_b − x̄)·(ȳ_b − ȳ)``.

    Args:
        parts: at least one.
    """
    if len(parts) == 1:
        return parts[0]
    n = sum(part.n for part in parts)
    x = sum((part.n * part.x for part in parts), torch.zeros_like(parts[0].x)) / n
    y = sum((part.n * part.y for part in parts), torch.zeros_like(parts[0].y)) / n
    xx, xy = torch.zeros_like(x), torch.zeros_like(x)
    for part in parts:
        xx = xx + part.xx + part.n * (part.x - x).square()
        xy = xy + part.xy + part.n * (part.x - x) * (part.y - y)
    return Pairs(n, x, y, xx, xy)

"""How many values there are, their mean and their spread, and how the parts of a whole add up.

Never as ``E[x²] − E[x]²``, which loses everything where the mean is large beside σ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_SHORT = frozenset({torch.float16, torch.bfloat16})
_FAR = 30.0
"""From how many σ on a mean is large beside it."""
_LARGE_MAP = 64
"""From how many values on a map is large."""
_PIECE = 16 << 20
"""How many bytes are looked at at once."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Of some values in each of C channels.

    Args:
        n: how many in a channel; no whole number where old ones count for some.
        mean: μ, shape (C,); or of each of R samples apart, shape (R, C), each with n of its own.
        m2: the sum of their squared distances from it, like *mean*.

    Example:
        >>> both = merged([moments_of(torch.tensor([[1.0], [3.0]])), moments_of(torch.tensor([[8.0]]))])
        >>> both.n, both.mean.item(), round(both.var.item(), 3), both.unbiased.item()
        (3, 4.0, 8.667, 13.0)
    """

    n: float
    mean: Tensor
    m2: Tensor

    def to(self, device: torch.device) -> Moments:
        """The same on another device."""
        return Moments(self.n, self.mean.to(device), self.m2.to(device))

    @property
    def rows(self) -> int:
        """How many samples are apart; 1 if all are taken together."""
        return len(self.mean) if self.mean.ndim > 1 else 1

    @property
    def var(self) -> Tensor:
        """The variance that a BatchNorm in training mode normalises by, ``m2/n``."""
        return self.m2 / self.n

    @property
    def unbiased(self) -> Tensor:
        """The one that it stores, ``m2/(n − 1)``."""
        return self.m2 / (self.n - 1)

    @property
    def is_far(self) -> bool:
        """Whether a mean is so large beside its σ that float32 has too few digits for both."""
        return bool((self.mean.square() > _FAR**2 * self.var).any())


def moments_of(x: Tensor) -> Moments:
    """The moments of the values of each channel, as torch's own operators find them.

    Args:
        x: shape (N, C, …), any floating dtype.

    Returns:
        on a CPU those of each sample apart where that is faster.
    """
    x = x.float() if x.dtype in _SHORT else x
    # Batch norm's operator adds value by value there; group norm's takes whole vectors, a sample at a time.
    if x.device.type == "cpu" and x.is_contiguous() and (size := x[0, 0].numel()) >= _LARGE_MAP:
        # Piece by piece, since it also makes what it normalises, and memory beyond 32 MB is new each time.
        pieces = [_by_map(piece) for piece in x.split(max(_PIECE // x[0].nbytes, 1))]
        mean, m2 = (torch.cat(each) for each in zip(*pieces, strict=True)) if len(pieces) > 1 else pieces[0]
        return Moments(size, mean, m2)
    mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
    n = x.numel() // max(x.shape[1], 1)
    return Moments(n, mean, var.mul_(n))


def _by_map(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the m2 of each map, shape (N, C)."""
    samples, channels = x.shape[:2]
    size = x[0, 0].numel()
    _, mean, rstd = torch.native_group_norm(x, None, None, samples, channels, size, channels, 0.0)
    return mean, rstd.square_().reciprocal_().mul_(size)


def merged(parts: Sequence[Moments]) -> Moments:
    """The moments of all values together (Chan, Golub and LeVeque 1979).

    ``μ = Σ n_b·μ_b / n``, ``M2 = Σ M2_b + n_b·(μ_b − μ)²`` with ``n = Σ n_b``.

    Args:
        parts: at least one, each with at least one value.
    """
    if len(parts) == 1 and parts[0].mean.ndim == 1 and parts[0].mean.dtype == torch.float64:
        return parts[0]
    means = torch.cat([part.mean.reshape(-1, part.mean.shape[-1]) for part in parts]).double()
    m2s = torch.cat([part.m2.reshape(-1, part.m2.shape[-1]) for part in parts]).double()
    n = sum(part.n * part.rows for part in parts)
    counts: float | Tensor = parts[0].n
    if any(part.n != counts for part in parts):
        counts = torch.cat([means.new_full((part.rows, 1), part.n) for part in parts])
    mean = (counts * means).sum(0) / n
    return Moments(n, mean, (m2s + counts * (means - mean).square()).sum(0))

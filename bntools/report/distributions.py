"""How γ, β, μ and σ² of a layer are spread, on axes that all layers share. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

BINS = 32
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_FAR = 10.0
"""Where an axis ends at the latest, in medians: one channel that is 1e19 must not flatten all others."""
_DECADES = 4.0
"""The same for a logarithmic axis, on either side of the median."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """One of the tensors of a layer.

    Args:
        key: its name in `bntools.findings.layer.NormLayer`.
        symbol, name: how people call it.
        positive: whether it is a size, which is looked at by its logarithm.
    """

    key: str
    symbol: str
    name: str
    positive: bool = False


QUANTITIES = (
    Quantity("gamma", "γ", "scale"),
    Quantity("beta", "β", "shift"),
    Quantity("mean", "μ", "running mean"),
    Quantity("var", "σ²", "running variance", positive=True),
    Quantity("divergence", "Δ", "drift", positive=True),
)
"""A column of the page each; the last where there was data."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Where a number stands between the two ends of an axis: ``(f(x) − f(low))/(f(high) − f(low))``, in 0…1.

    ``f(x) = asinh(x/unit)``, which is linear around 0 and a logarithm far from it; where *unit* is None,
    ``f(x) = log10(x)``.

    Args:
        low, high: the ends.
        unit: up to where it is about linear.
    """

    low: float
    high: float
    unit: float | None

    @classmethod
    def over(cls, values: Iterable[np.ndarray], *, positive: bool) -> Axis:
        """The axis that all *values* share, each of shape (C,); those that are no numbers do not count.

        Example:
            >>> Axis.over([np.array([-1.0, 2.0]), np.array([np.inf])], positive=False)
            Axis(low=-1.0, high=2.0, unit=1.5)
        """
        known = np.concatenate([np.zeros(0), *values])
        known = known[np.isfinite(known) & ((known > 0) if positive else (known != 0))]
        if not known.size:
            return cls(0.1, 10.0, None) if positive else cls(-1.0, 1.0, 1.0)
        middle = float(np.median(np.abs(known)))
        least, most = float(known.min()), float(known.max())
        if positive:
            low = 10 ** max(math.log10(least), math.log10(middle) - _DECADES)
            high = 10 ** min(math.log10(most), math.log10(middle) + _DECADES)
            return cls(low, high, None) if high > low else cls(low / 10, high * 10, None)
        return cls(max(min(least, 0.0), -_FAR * middle), min(max(most, 0.0), _FAR * middle), middle)

    def place(self, values: np.ndarray) -> np.ndarray:
        """In 0…1, shape as *values*; what lies beyond an end stands at the end."""
        low, high = self._bent(np.array([self.low, self.high]))
        with np.errstate(all="ignore"):  # log of 0 and below is the lower end
            bent = self._bent(values)
        placed: np.ndarray = np.clip(np.nan_to_num((bent - low) / (high - low), nan=0.0), 0.0, 1.0)
        return placed

    @property
    def origin(self) -> float:
        """The place of 0; of 1 on a logarithmic axis."""
        return float(self.place(np.array([0.0 if self.unit is not None else 1.0]))[0])

    def _bent(self, values: np.ndarray) -> np.ndarray:
        bent = np.log10(values) if self.unit is None else np.arcsinh(values / self.unit)
        return np.asarray(bent, dtype=np.float64)


def columns(axes: Mapping[str, Axis]) -> tuple[Quantity, ...]:
    """The quantities that have an axis."""
    return tuple(each for each in QUANTITIES if each.key in axes)


@dataclass(frozen=True, slots=True)
class Distribution:
    """The numbers of one tensor of one layer.

    Args:
        count: how many there are.
        lost: how many are NaN or infinite.
        below: of a variance, how many are below 0.
        quantiles: of the others, at `QUANTILES`; empty if there is none.
        bins: how many stand in each of `BINS` equal parts of the axis.
    """

    count: int
    lost: int
    below: int
    quantiles: tuple[float, ...]
    bins: tuple[int, ...]

    @classmethod
    def of(cls, values: np.ndarray, axis: Axis, *, positive: bool) -> Distribution:
        """That of *values*, shape (C,).

        Example:
            >>> found = Distribution.of(np.array([1.0, 3.0, np.nan]), Axis(0.0, 3.0, 1.0), positive=True)
            >>> found.count, found.lost, found.quantiles[3], sum(found.bins)
            (3, 1, 2.0, 2)
        """
        known = values[np.isfinite(values)]
        at = np.minimum((axis.place(known) * BINS).astype(int), BINS - 1)
        return cls(
            values.size,
            int(values.size - known.size),
            int((known < 0).sum()) if positive else 0,
            tuple(np.quantile(known, QUANTILES).tolist()) if known.size else (),
            tuple(np.bincount(at, minlength=BINS).tolist()),
        )

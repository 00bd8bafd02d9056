"""What a pass over data showed of a model, as the rules look at it. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from bntools.core.drift import Drift


@dataclass(frozen=True, slots=True, eq=False)
class Reached:
    """What came to one layer, in the model as it is, in eval.

    Args:
        least, most: how often a batch calls it.
        values: how many values a channel has got.
        low, high: the least and the largest of each channel, float64, shape (C,).
        grouping: how much further the means of the batches are from one another than those of batches drawn
            at random: the ratio of the variances, 1 for such; None where that cannot be told.
        divergence: of each channel, how far the statistics of the data are from those stored, see
            `bntools.findings.checkup`, shape (C,); None where there are none of the data.
        chance: the mean over channels of what the divergence would be, had nothing moved, from so many
            samples; None where that is unknown.
    """

    least: int
    most: int
    values: int
    low: np.ndarray
    high: np.ndarray
    grouping: float | None = None
    divergence: np.ndarray | None = None
    chance: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """What a pass over data showed.

    Args:
        samples, batches: how much was run.
        stops: the paths of the layers that could have been reached.
        reached: those that were.
        some: a few of the samples, as the data gave them; None if it gave none.
        drift: as a recalibration would report it; None where NaN or infinity stood in its way.
        skipped: the numbers of the batches that held NaN or infinity, and were left out.
        left_out: names of the samples that were left out before there were batches.
        poisoned: the first layer that NaN or infinity has reached, and the number of the batch.
    """

    samples: int
    batches: int
    stops: tuple[str, ...]
    reached: Mapping[str, Reached]
    some: Any = None
    drift: Drift | None = None
    skipped: tuple[int, ...] = ()
    left_out: tuple[str, ...] = ()
    poisoned: tuple[str, int] | None = None

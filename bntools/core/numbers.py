"""The numbers behind a plan. A file holds the tensors that they led to, and not them. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class Take:
    """What one call of a host takes in: ``new = s·old + t`` behind it, ``old = r·new + v`` in front of it.

    Args:
        s, t: for each output channel, in float64.
        r, v: for each input channel; None if nothing is taken in there.
        slope, mean: of a BatchNorm that stays, its own scale and μ; None for other layers.
    """

    s: np.ndarray
    t: np.ndarray
    r: np.ndarray | None = None
    v: np.ndarray | None = None
    slope: np.ndarray | None = None
    mean: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What a fold leaves standing for the value x that a module returned: ``s·x + t``.

    Args:
        tap: the path of the module, with ``#2`` for its second call.
        s, t: of shapes that broadcast over x; NaN where anything may stand.
    """

    tap: str
    s: np.ndarray
    t: np.ndarray


@dataclass(frozen=True, slots=True)
class Maps:
    """All numbers of a plan.

    Args:
        takes: by the call of the host.
        reduced: by the name of a site that is reduced, its scale and its shift.
        seen: by the name of a site, or of another module that was asked for.
    """

    takes: Mapping[int, Take]
    seen: Mapping[str, Seen]
    reduced: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

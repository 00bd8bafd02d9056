"""Measure whether a promise was kept: observe a model before and after, and compare.

The claim is algebraic, so it is checked in float64, where a right fold differs by 1e-15 to 1e-10 of the
outputs' scale and a wrong one by far more; no float32 tolerance separates the two. Each edited site is
looked at by itself as well, so that a dead branch or a flat output hides nothing, and a failure has a
place. A check that would not have seen the BatchNorms disappear proves nothing: that is its power.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

from bntools.core.bisect import Divergence
from bntools.core.lanes import aligned
from bntools.core.numbers import Seen
from bntools.core.observe import Observation, Sample, difference, difference_of, largest

TOLERANCE = 1e-8
"""The largest difference in float64, as a share of the largest reference value, that rounding can explain."""
POWER = 10 * TOLERANCE
"""A check has power if bypassing the edited layers would have moved the values by more than this."""


class Verdict(StrEnum):
    """What a check found."""

    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    UNVERIFIED = "unverified"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class SiteCheck:
    """One edited site: the error of its fold and the power of the check, both as a share of the scale."""

    name: str
    error: float
    power: float


@dataclass(frozen=True, slots=True)
class Report:
    """How a promise was checked and what came of it.

    Args:
        verdict: of the whole check.
        error: the largest difference in float64, as a share of the largest reference output.
        tolerance: the largest that rounding can explain.
        power: how far the outputs move if the edited layers are bypassed, in the same unit.
        sites: each edited site by itself.
        shipped_error: the difference in the dtype that ships, against the float64 reference.
        noise: the original's own difference from that reference: its rounding noise.
        agreement: the share of rows whose largest output is at the same place, None if outputs are no rows.
        inputs: what was run, in words.
        broken: the first site, in order of execution, that is wrong.
        why: a sentence, unless the check passed.
        runtime: what ran a file, if one was checked.
        place: where the values begin to differ, if a check of a whole file or model failed and it was found.
        notes: what the reader should know.
    """

    verdict: Verdict
    error: float = 0.0
    tolerance: float = TOLERANCE
    power: float = 0.0
    sites: tuple[SiteCheck, ...] = ()
    shipped_error: float | None = None
    noise: float | None = None
    agreement: float | None = None
    inputs: tuple[str, ...] = ()
    broken: str = ""
    why: str = ""
    runtime: str = ""
    place: Divergence | None = None
    notes: tuple[str, ...] = ()


UNASKED = Report(Verdict.SKIPPED, why="verification was switched off")
UNCHANGED = Report(Verdict.SKIPPED, why="nothing was changed")


def compare(
    before: Sequence[Observation],
    after: Sequence[Observation],
    bypassed: Observation,
    sites: Mapping[str, Seen],
) -> Report:
    """Judge a fold by runs in float64 on the same inputs.

    Args:
        before: the original.
        after: the folded model.
        bypassed: the original without its BatchNorms on the first input, which shows what a difference
            looks like.
        sites: the edited sites in order of execution, each with what must stand where.

    Returns:
        ``failed`` if outputs or a site differ by more than `TOLERANCE`; ``inconclusive`` if nothing differs
        but bypassing would not have shown either; else ``passed``.
    """
    pairs = list(zip(before, after, strict=True))
    error = max((difference(a.outputs, b.outputs) for b, a in pairs), default=0.0)
    power = difference(bypassed.outputs, before[0].outputs)
    checks = tuple(_check(name, seen, pairs) for name, seen in sites.items())
    broken = next((c.name for c in checks if c.error > TOLERANCE), "")
    weak = [c.name for c in checks if c.power <= POWER]
    verdict, why = Verdict.PASSED, ""
    if broken or error > TOLERANCE:
        worst = max([error, *(c.error for c in checks)])
        verdict, why = (
            Verdict.FAILED,
            f"{broken or 'the outputs'} differ by {worst:.1e} of the scale in float64",
        )
        why += f", {TOLERANCE:.0e} at most can be rounding"
    elif sites and not any(o.is_floating_point() and o.isfinite().any() for b in before for o in b.outputs):
        verdict, why = Verdict.INCONCLUSIVE, "on these inputs no output is a finite number"
    elif sites and power <= POWER:
        verdict, why = Verdict.INCONCLUSIVE, "the outputs would not move without the BatchNorms either"
    elif weak:
        verdict, why = (
            Verdict.INCONCLUSIVE,
            f"{weak[0]} is the identity on these inputs: a wrong fold would not show",
        )
    return Report(verdict, error, TOLERANCE, power, checks, broken=broken, why=why)


def _check(name: str, seen: Seen, pairs: Sequence[tuple[Observation, Observation]]) -> SiteCheck:
    error = power = 0.0
    for before, after in pairs:
        old, new, own = before.taps.get(seen.tap), after.taps.get(seen.tap), before.taps.get(name)
        if old is None and new is None:  # a path that these inputs do not take
            continue
        if old is None or new is None or old.shape != new.shape:
            return SiteCheck(name, math.inf, power)
        stands, size = _stands(old, seen)
        known = ~stands.isnan() | old.values.isnan()
        error = max(error, difference_of(new.values[known], stands[known], size))
        power = max(power, own.power if own is not None else 0.0)
    return SiteCheck(name, error, power)


def _stands(sample: Sample, seen: Seen) -> tuple[Tensor, float]:
    """``s·x + t`` for the values of a sample, and how large its terms are: they may cancel."""
    if seen.s.size == 1 and seen.s.flat[0] == 1 and seen.t.flat[0] == 0:
        return sample.values, sample.scale
    places = np.unravel_index(sample.at.numpy(), sample.shape)

    def numbers(of: np.ndarray) -> Tensor:
        wide = aligned(of, len(sample.shape))
        index = tuple(np.minimum(place, n - 1) for place, n in zip(places, wide.shape, strict=True))
        return torch.from_numpy(np.ascontiguousarray(wide[index])).to(sample.values.device)

    scaled, shift = sample.values * numbers(seen.s), numbers(seen.t)
    return scaled + shift, largest(scaled) + largest(shift)

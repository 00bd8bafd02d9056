"""The numbers of a solution: which map every label has, once it is decided which BatchNorms go.

This stands apart from the search: it works in shifts and not in shares of scales, and checks each requirement
by itself. What does not hold is named, and then those BatchNorms stay.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from bntools.core.flow import Edge, Flow, Pin
from bntools.core.forest import Array, Forest
from bntools.core.lanes import GROUND
from bntools.core.problem import Problem, in_a_row, together

_CLOSE = 1e-9
_ROUNDED = 1e-12
AMPLIFIED = 32.0
"""How many times larger than a value's own size the shift may be that a reader has to take off it again."""
SPREAD = 2.0**24
"""How far from 1 the scale of a value may be that is both made and read by layers that stay."""


@dataclass(frozen=True, slots=True)
class Solution:
    """For each label, ``new = s·old + t`` where something makes the new value, ``old = r·new + v`` where it
    is read.

    One of the two is missing where a BatchNorm has a scale of 0: what it reads is made constant (s = 0), or
    what it returns is known to be (r = 0).

    Args:
        s, t, r, v: by label.
    """

    s: Array
    t: Array
    r: Array
    v: Array


def settle(
    problem: Problem, gone: Mapping[int, Edge], sizes: Mapping[int, tuple[Array, Array]]
) -> tuple[Solution, set[int], set[int]]:
    """The maps of all labels, the BatchNorms whose ties do not hold, and those that would cost too much
    precision.

    Args:
        problem: with all of *gone* let go.
        gone: the BatchNorms that go, by the index of their call.
        sizes: how large the values in front of each and behind it are, in its statistics' own terms.
    """
    flow, maps = problem.flow, problem.maps
    votes = _votes(flow, gone)
    s = _scales(problem, votes)
    shifts = problem.held.copy()  # the same equations: there u = t/s, here t, and one s where they tie
    one, two = (together([tie[i] for tie in problem.stays]) for i in (0, 1))
    shifts.tie(one, two, 1.0, 0.0)
    broken: set[int] = set()
    x, y, _, shift, owner = in_a_row(gone, maps)
    tied = ~problem.constant[y]
    wrong = shifts.tie(x[tied], y[tied], 1.0, (s[y] * shift)[tied])
    broken.update(owner[tied][wrong].tolist())
    t = _shifts(problem, shifts, votes)
    with np.errstate(divide="ignore", invalid="ignore"):
        r, v = 1 / s, -t / s
    r[y[~tied]], v[y[~tied]] = 0.0, shift[~tied]
    s[y[~tied]] = t[y[~tied]] = np.nan  # what is never read may be anything
    solution = Solution(s, t, r, v)
    broken |= _wrong(problem, gone, solution)
    return solution, broken, _dear(problem, gone, solution, sizes)


def _anchors(forest: Forest, votes: Array) -> Array:
    """For each root, the label below it that keeps its map: the one with the most votes, and of those the
    last.
    """
    labels = np.arange(len(votes))
    root, a, _ = forest.find(labels)
    rank = np.where(a != 0, labels + len(votes) * votes, -1)
    best = np.full(len(votes), -1)
    np.maximum.at(best, root, rank)
    found: Array = np.where(best < 0, labels, best % len(votes))
    return found


def _votes(flow: Flow, gone: Collection[int]) -> Array:
    """How many layers make or read each label or one with the same scale; a BatchNorm that goes is none.

    Where all but a few layers agree on a map, those few are to change.
    """
    votes = np.zeros(flow.count, np.int64)
    staying = {taker.host.weight_key: taker for index, taker in flow.takers.items() if index not in gone}
    for taker in staying.values():
        for labels in (taker.columns, taker.rows):
            if labels is not None:
                np.add.at(votes, labels, 1)
    total: Array = np.bincount(flow.classes, votes, flow.count).astype(np.int64)[flow.classes]
    return total


def _scales(problem: Problem, votes: Array) -> Array:
    labels = np.arange(problem.flow.count)
    root, a, _ = problem.scales.find(labels)
    slope = a[_anchors(problem.scales, votes)]  # s(anchor) = slope·s(root), and is to be 1 or −1
    sign = np.where(problem.signs == 2, -1.0, 1.0)
    with np.errstate(divide="ignore"):
        free = np.where(problem.signs == 0, 1 / slope, sign / np.abs(slope))
    free[GROUND] = 1.0
    free = problem.products.solve(problem.scales, problem.signs, free)
    found: Array = a * free[root]
    return found


def _shifts(problem: Problem, shifts: Forest, votes: Array) -> Array:
    labels = np.arange(problem.flow.count)
    root, a, b = shifts.find(labels)
    anchor = _anchors(shifts, votes)
    free = np.where(root[anchor] == labels, -b[anchor] / a[anchor], 0.0)
    free[GROUND] = 0.0
    _, roots, values = problem.sums.solve(shifts, free)
    free[roots] = values
    found: Array = a * free[root] + b
    return found


def _wrong(problem: Problem, gone: Mapping[int, Edge], found: Solution) -> set[int]:
    """BatchNorms next to a requirement that the numbers do not meet."""
    flow, s, t = problem.flow, found.s, found.t
    slack = _ROUNDED * np.nanmax(np.abs(t))  # shifts that cancel leave what was rounded
    bad = np.zeros(flow.count, bool)
    for tie in flow.ties:
        off = _apart(s[tie.a], s[tie.b])
        off |= np.abs(t[tie.a] - t[tie.b]) > _CLOSE * np.abs(t[tie.a]) + slack if tie.shift else False
        bad[tie.a[off]] = bad[tie.b[off]] = True
    for total in flow.totals:
        size = np.abs(t[total.out])
        shift = -t[total.out]
        for factor, term in total.terms:
            off = _apart(s[total.out], s[term])
            bad[term[off]] = True
            shift, size = shift + factor * t[term], size + np.abs(factor * t[term])
        off = np.abs(shift) > _CLOSE * size + slack
        for _, term in ((1.0, total.out), *total.terms):
            bad[term[off]] = True
    for each in flow.products:
        off = _apart(s[each.out], s[each.one] * s[each.two])
        for labels in (each.out, each.one, each.two):
            bad[labels[off]] = True
    for pin in flow.pins:
        at = pin.labels
        off = np.zeros(at.shape, bool)
        if pin.what & Pin.SCALE:
            off |= _apart(s[at], np.ones(at.shape))
        if pin.what & Pin.SIGN:
            off |= s[at] < 0
        if pin.what & Pin.SHIFT:
            off |= np.abs(t[at]) > _CLOSE * np.abs(s[at]) + slack
        bad[at[off]] = True
    takers = [each for call, each in flow.takers.items() if call not in gone and each.columns is not None]
    columns = together([taker.columns for taker in takers if taker.columns is not None])
    bad[columns[~np.isfinite(found.r[columns]) | ~np.isfinite(found.v[columns])]] = True
    rows = together([taker.rows for taker in takers])
    bad[rows[~np.isfinite(s[rows]) | ~np.isfinite(t[rows])]] = True
    for call in flow.edges.keys() - gone.keys():
        for one, two in flow.holds(call):
            off = _apart(s[one], s[two]) | (np.abs(t[one] - t[two]) > _CLOSE * np.abs(t[one]) + slack)
            bad[one[off]] = bad[two[off]] = True
    near = _near(problem, np.flatnonzero(bad)) if bad.any() else bad
    x, y, scale, shift, owner = in_a_row(gone, problem.maps)
    gap, size = np.abs(t[x] - t[y] - s[y] * shift), np.abs(t[x]) + np.abs(t[y])
    off = _apart(s[x], s[y] * scale) | (gap > _CLOSE * size + slack)
    off = (off & ~problem.constant[y]) | near[x] | near[y]
    return set(owner[off].tolist())


def _apart(a: Array, b: Array) -> Array:
    apart: Array = ~(np.abs(a - b) <= _CLOSE * (np.abs(a) + np.abs(b)))
    return apart


def _near(problem: Problem, labels: Array) -> Array:
    """All labels that are tied to one of these."""
    roots = np.unique(problem.scales.find(labels)[0])
    near = np.isin(problem.scales.find(np.arange(problem.flow.count))[0], roots)
    near[GROUND] = False
    return near


def _dear(
    problem: Problem, gone: Mapping[int, Edge], found: Solution, sizes: Mapping[int, tuple[Array, Array]]
) -> set[int]:
    """BatchNorms for which a value would be made so large or so shifted that its reader gets it back
    imprecisely.
    """
    read = np.zeros(problem.flow.count, bool)
    staying = [taker for call, taker in problem.flow.takers.items() if call not in gone]
    read[together([taker.columns for taker in staying if taker.columns is not None])] = True
    dear: set[int] = set()
    ends = in_a_row(gone, sizes)
    for labels, size in zip(ends[:2], ends[2:4], strict=True):
        inside = read[labels] & (found.r[labels] != 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            shifted = np.abs(found.v[labels]) > AMPLIFIED * size
            far = np.abs(np.log2(np.abs(found.s[labels]))) > np.log2(SPREAD)
        dear.update(ends[4][inside & (shifted | far)].tolist())
    return dear

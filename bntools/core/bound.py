"""Which BatchNorms go, and how many go together at most, as far as that can be seen without trying."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from bntools.core.forest import Array
from bntools.core.lanes import GROUND
from bntools.core.problem import Item, Problem

_CLOSE = 1e-9
_SOME = 64
"""How many channels of each BatchNorm are looked at: what holds for some of them holds for all."""


def bound(problem: Problem, items: Sequence[Item]) -> int:
    """No more of some items than this can go together.

    One whose output is known says what its input has to be. Of those that read one number and want different
    things of it, no two can go together: of the BatchNorms in a dense block, say, which all read what the
    first layer made.

    Args:
        problem: the equations, as they stand before any of the items goes.
        items: what could go.
    """
    if len(items) < 2:
        return len(items)
    item, root, group = _wanted(problem, items)
    most = len(items)
    while len(item):
        _, place, want = np.unique(group, return_index=True, return_counts=True)
        root_of = root[place]
        asked, largest = np.bincount(root), np.zeros(root.max() + 1, np.int64)
        np.maximum.at(largest, root_of, want)
        worst = int(np.argmax(asked - largest))
        if asked[worst] == largest[worst]:
            break
        most -= int(asked[worst] - largest[worst])
        rest = ~np.isin(item, item[root == worst])  # each item counts once
        item, root, group = item[rest], root[rest], group[rest]
    return most


def is_free(problem: Problem, item: Item) -> bool:
    """Whether it is plain to see that nothing is in the way of an item as things stand.

    So it is if no number that it ties is known in front of it or tied to another of them, and both ends of a
    tie do not want different signs.
    """
    if len(item.calls) > 1:
        return False
    edge = problem.flow.edges[item.calls[0]]
    scale = problem.maps[item.calls[0]][0][edge.channel]
    if not scale.all() or problem.constant[edge.x].any():
        return False
    for forest in (problem.scales, problem.shifts):
        (x, a, _), (y, c, _) = forest.find(edge.x), forest.find(edge.y)
        ends = np.sort(np.concatenate((x, y[y != GROUND])))
        if not a.all() or not c.all() or ends[0] == GROUND or (ends[1:] == ends[:-1]).any():
            return False
        if forest is problem.scales:
            one, two = problem.signs[x], problem.signs[y]
            flipped = np.where(two == 0, 0, np.where(scale * c / a > 0, two, 3 - two))
            if ((one | flipped) == 3).any():
                return False
    return True


def _wanted(problem: Problem, items: Sequence[Item]) -> tuple[Array, Array, Array]:
    """Which item wants something of which number, and a name for what it wants: the same for the same."""
    wants = [want for number, item in enumerate(items) for want in _wants(problem, number, item)]
    item, root, value, size = (np.concatenate([want[i] for want in wants]) for i in range(4))
    _, root = np.unique(root, return_inverse=True)
    _, first = np.unique(root * len(items) + item, return_index=True)
    first = first[np.lexsort((value[first], root[first]))]
    item, root, value, size = (each[first] for each in (item, root, value, size))
    sizes = np.zeros(root.max(initial=0) + 1)
    np.maximum.at(sizes, root, size)
    # Neighbours want the same if they are close; the ends of a row of such need not, and then less is known.
    other = (np.diff(root) != 0) | (np.diff(value) > _CLOSE * sizes[root[1:]])
    return item, root, np.cumsum(np.concatenate(([False], other)))[: len(root)]


def _wants(problem: Problem, number: int, item: Item) -> Iterator[tuple[Array, ...]]:
    """What an item wants of the roots of what it reads: its number, the root, the value, the size of the
    terms.
    """
    for call in item.calls:
        edge = problem.flow.edges[call]
        scale, shift = (numbers[edge.channel] for numbers in problem.maps[call])
        live = np.flatnonzero(scale)[:_SOME]
        x, y, scale, shift = edge.x[live], edge.y[live], scale[live], shift[live]
        for forest, slope, offset, start in (
            (problem.scales, scale, np.zeros_like(shift), 0),  # s_x = S·s_y
            (problem.shifts, 1 / scale, shift / scale, problem.flow.count),  # u_x = (u_y + T)/S
        ):
            known = forest.value(y)
            root, a, b = forest.find(x)
            says = ~np.isnan(known) & (root != GROUND) & (a != 0)
            root, a, b, known, slope, offset = (each[says] for each in (root, a, b, known, slope, offset))
            value = (slope * known + offset - b) / a
            size = (np.abs(slope * known) + np.abs(offset) + np.abs(b)) / np.abs(a)
            yield np.full(len(root), number), root + start, value, size

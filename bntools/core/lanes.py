"""Which entries of a value share an affine map: an array of labels that broadcasts over it.

A fold lets a value hold ``s·x + t`` where the model has x. Along most axes s and t are constant: a lane has
size 1 there, and the size of the value along the others. Two entries with one label have one map. What only
moves entries about, moves labels about.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Lane = np.ndarray
"""Labels, int64; each axis has the size of the value's, or 1 where the map is constant."""

GROUND = 0
"""The label of what no fold changes: s = 1, t = 0."""

_MOST = 1 << 21


def ground(rank: int) -> Lane:
    """The lane of a value that no fold changes."""
    return np.zeros((1,) * rank, np.int64)


def is_ground(lane: Lane) -> bool:
    return lane.size == 1 and int(lane.flat[0]) == GROUND


def distinct(lane: Lane) -> Lane:
    """The labels in order, each once. Nearly always that is what they are, which is quicker to see.

    Example:
        >>> distinct(np.array([3, 1, 3])).tolist()
        [1, 3]
    """
    labels = lane.reshape(-1)
    return labels if (labels[1:] > labels[:-1]).all() else np.unique(labels)


def varies(lane: Lane) -> list[int]:
    """The axes along which labels differ."""
    return [axis for axis, size in enumerate(lane.shape) if size > 1]


def along(lane: Lane, axis: int, size: int) -> Lane | None:
    """The labels along one axis, or None if they differ along another one too."""
    if any(n > 1 for i, n in enumerate(lane.shape) if i != axis):
        return None
    labels = lane.reshape(-1)
    return labels if len(labels) == size else np.broadcast_to(labels, (size,))


def spread(labels: Lane, axis: int, rank: int) -> Lane:
    """The lane whose labels differ along one axis only."""
    return labels.reshape([-1 if i == axis else 1 for i in range(rank)])


def aligned(lane: Lane, rank: int) -> Lane:
    """A lane of fewer axes, as broadcasting takes it: from the right."""
    return lane.reshape((1,) * (rank - lane.ndim) + lane.shape)


def compressed(lane: Lane) -> Lane:
    """The same labels with size 1 along every axis on which they do not differ."""
    for axis, size in enumerate(lane.shape):
        first = lane.take([0], axis) if size > 1 else lane
        if size > 1 and (lane == first).all():
            lane = first
    return lane


def reshaped(lane: Lane, x: Sequence[int], y: Sequence[int]) -> Lane | None:
    """The lane of ``v.reshape(y)`` for a value of shape *x*; None where other sizes would give another one.

    A reshape keeps the linear order. Axes fall into runs, each of which becomes a run of the other shape;
    where labels differ in a run, they are written out and reshaped with it. An axis of size 1 may have been
    longer on other inputs: if it goes from one side of the labelled run to the other, or a batch of one in
    front of it has nowhere to go, the labels would mix.

    Example:
        >>> reshaped(np.array([[[5]], [[6]]]).reshape(1, 2, 1), (3, 2, 2), (3, 4)).tolist()
        [[5, 5, 6, 6]]
    """
    if is_ground(lane):
        return ground(len(y))
    if 0 in x or math.prod(x) != math.prod(y):
        return None
    wide, out = [1] * len(x), [1] * len(y)
    for came, went in _runs(x, y):
        if all(lane.shape[axis] == 1 for axis in came):
            continue
        if _ones_cross(x, came, y, went):
            return None
        for axis in came:
            wide[axis] = x[axis]
        for axis in went:
            out[axis] = y[axis]
    if math.prod(wide) > _MOST:
        return None
    return compressed(np.broadcast_to(lane, wide).reshape(out))


def _runs(x: Sequence[int], y: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of axes with equal products; axes of size 1 are in none."""
    one, two = ([axis for axis, size in enumerate(shape) if size != 1] for shape in (x, y))
    runs = []
    while one and two:
        came, went = [one.pop(0)], [two.pop(0)]
        while (a := math.prod(x[i] for i in came)) != (b := math.prod(y[i] for i in went)):
            if a < b:
                came.append(one.pop(0))
            else:
                went.append(two.pop(0))
        runs.append((came, went))
    return runs


def _ones_cross(x: Sequence[int], came: list[int], y: Sequence[int], went: list[int]) -> bool:
    if x[0] == 1 and came[0] > 0 and went[0] == 0:
        return True
    before = list(y[: went[0]]).count(1) - list(x[: came[0]]).count(1)
    behind = list(y[went[-1] + 1 :]).count(1) - list(x[came[-1] + 1 :]).count(1)
    return before * behind < 0

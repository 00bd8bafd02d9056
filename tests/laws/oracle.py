"""How many BatchNorms can go at most, by trying every subset and solving its equations as dense matrices.

It takes what the operators require from the package, and shares nothing with its search: logarithms of scales
and shifts are two linear systems, signs are a third one over the field of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from bntools.core.flow import Flow, Pin
from bntools.core.problem import Item

Row = dict[int, float]


def largest(flow: Flow, maps: dict[int, Any], items: Sequence[Item], least: int) -> int:
    """The size of the largest set that can go, if it is larger than *least*; else *least*."""
    for size in range(len(items), least, -1):
        for some in combinations(items, size):
            if feasible(flow, maps, items, some):
                return size
    return least


def feasible(flow: Flow, maps: dict[int, Any], items: Sequence[Item], gone: Sequence[Item]) -> bool:
    """Whether all of *gone* can go at once while the others stay."""
    scales, shifts, signs = _fixed(flow)
    for item in items:
        for call in item.calls:
            edge = flow.edges[call]
            if item in gone:
                scale, _ = maps[call]
                for x, y, channel in zip(edge.x, edge.y, edge.channel, strict=True):
                    scales.append((_row((x, 1), (y, -1)), float(np.log(abs(scale[channel])))))
                    signs.append(((int(x), int(y)), bool(scale[channel] < 0)))
            else:
                for labels in (edge.x, edge.y):
                    for label, channel in zip(labels, edge.channel, strict=True):
                        # As a layer it has one map for each channel; one that cannot change has none.
                        like = labels[edge.channel == channel][0] if call in flow.takers else 0
                        scales.append((_row((label, 1), (like, -1)), 0.0))
                        signs.append(((int(label), int(like)), False))
                        shifts.append((_row((label, 1), (like, -1)), 0.0))
    logs = _solved(scales, flow.count)
    negative = _bits(signs, flow.count)
    if logs is None or negative is None:
        return False
    s = np.exp(logs) * np.where(negative, -1, 1)
    for item in gone:
        for call in item.calls:
            edge = flow.edges[call]
            for x, y, channel in zip(edge.x, edge.y, edge.channel, strict=True):
                shifts.append((_row((x, 1), (y, -1)), float(s[y] * maps[call][1][channel])))
    return _solved(shifts, flow.count) is not None


def _fixed(flow: Flow) -> tuple[list[Any], list[Any], list[Any]]:
    """What holds whatever goes: rows for the scales, the shifts and the signs."""
    scales: list[tuple[Row, float]] = [({0: 1.0}, 0.0)]
    shifts: list[tuple[Row, float]] = [({0: 1.0}, 0.0)]
    signs: list[tuple[tuple[int, ...], bool]] = [((0,), False)]
    for tie in flow.ties:
        for a, b in zip(tie.a.tolist(), tie.b.tolist(), strict=True):
            scales.append((_row((a, 1), (b, -1)), 0.0))
            signs.append(((a, b), False))
            if tie.shift:
                shifts.append((_row((a, 1), (b, -1)), 0.0))
    for total in flow.totals:
        terms = [(np.broadcast_to(np.asarray(f, float), t.shape), t) for f, t in total.terms]
        for i, out in enumerate(total.out.tolist()):
            shifts.append((_row((out, -1), *((int(t[i]), float(f[i])) for f, t in terms)), 0.0))
            for _, term in terms:
                scales.append((_row((out, 1), (int(term[i]), -1)), 0.0))
                signs.append(((out, int(term[i])), False))
    for each in flow.products:
        for three in zip(each.out.tolist(), each.one.tolist(), each.two.tolist(), strict=True):
            scales.append((_row(*zip(three, (-1, 1, 1), strict=True)), 0.0))
            signs.append((three, False))
    for pin in flow.pins:
        for label in pin.labels.tolist():
            if pin.what & Pin.SCALE:
                scales.append(({label: 1.0}, 0.0))
            if pin.what & Pin.SHIFT:
                shifts.append(({label: 1.0}, 0.0))
            if pin.what & (Pin.SCALE | Pin.SIGN):
                signs.append(((label,), False))
    return scales, shifts, signs


def _row(*terms: tuple[Any, float]) -> Row:
    row: Row = {}
    for label, factor in terms:
        row[int(label)] = row.get(int(label), 0.0) + factor
    return row


def _solved(rows: Sequence[tuple[Row, float]], count: int) -> np.ndarray | None:
    matrix, right = np.zeros((len(rows), count)), np.zeros(len(rows))
    for i, (row, value) in enumerate(rows):
        for label, factor in row.items():
            matrix[i, label] = factor
        right[i] = value
    found = np.linalg.lstsq(matrix, right, rcond=None)[0]
    gap = np.abs(matrix @ found - right)
    return found if gap.max() <= 1e-7 * (1 + np.abs(right).max()) else None


def _bits(rows: Sequence[tuple[tuple[int, ...], bool]], count: int) -> np.ndarray | None:
    """Whether each label is negative, such that an odd or an even number of each row are."""
    matrix = np.zeros((len(rows), count + 1), bool)
    for i, (labels, odd) in enumerate(rows):
        for label in labels:
            matrix[i, label] ^= True
        matrix[i, count] = odd
    found, top = np.zeros(count, bool), 0
    pivots = []
    for column in range(count):
        below = np.flatnonzero(matrix[top:, column])
        if len(below):
            matrix[[top, top + below[0]]] = matrix[[top + below[0], top]]
            others = np.flatnonzero(matrix[:, column])
            matrix[others[others != top]] ^= matrix[top]
            pivots.append(column)
            top += 1
    if matrix[top:, count].any():
        return None
    found[pivots] = matrix[:top, count]
    return found

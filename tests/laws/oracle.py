"""How many BatchNorms can go at most, by trying every subset and solving its equations as dense matrices.

It takes what the operators require from the package, and shares nothing with its search: logarithms of scales
and shifts are two linear systems, signs are bits that spread along the ties.
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
    sizes = {len(item.calls) for item in items}
    assert sizes <= {1, 2, 3}
    for size in range(len(items), least, -1):
        for some in combinations(items, size):
            if feasible(flow, maps, items, some):
                return size
    return least


def feasible(flow: Flow, maps: dict[int, Any], items: Sequence[Item], gone: Sequence[Item]) -> bool:
    """Whether all of *gone* can go at once while the others stay."""
    scales, shifts, signs, positive = _fixed(flow)
    for item in items:
        for call in item.calls:
            edge = flow.edges[call]
            if item in gone:
                scale, _ = maps[call]
                for x, y, channel in zip(edge.x, edge.y, edge.channel, strict=True):
                    scales.append((_row((x, 1), (y, -1)), float(np.log(abs(scale[channel])))))
                    signs.append((int(x), int(y), float(np.sign(scale[channel]))))
            elif item.rigid:
                for label in (*edge.x, *edge.y):
                    scales.append((_row((label, 1)), 0.0))
                    signs.append((int(label), 0, 1.0))
                    shifts.append((_row((label, 1)), 0.0))
    logs = _solved(scales, flow.count)
    sign = _spread(signs, positive, flow.count)
    if logs is None or sign is None:
        return False
    s = np.exp(logs) * sign
    for item in gone:
        for call in item.calls:
            edge = flow.edges[call]
            for x, y, channel in zip(edge.x, edge.y, edge.channel, strict=True):
                shifts.append((_row((x, 1), (y, -1)), float(s[y] * maps[call][1][channel])))
    return _solved(shifts, flow.count) is not None


def _fixed(flow: Flow) -> tuple[list[Any], list[Any], list[Any], set[int]]:
    """What holds whatever goes: rows for the scales and the shifts, ties of signs, labels that are
    positive.
    """
    scales: list[tuple[Row, float]] = [({0: 1.0}, 0.0)]
    shifts: list[tuple[Row, float]] = [({0: 1.0}, 0.0)]
    signs: list[tuple[int, int, float]] = []
    positive = {0}
    for tie in flow.ties:
        for a, b in zip(tie.a.tolist(), tie.b.tolist(), strict=True):
            scales.append((_row((a, 1), (b, -1)), 0.0))
            signs.append((a, b, 1.0))
            if tie.shift:
                shifts.append((_row((a, 1), (b, -1)), 0.0))
    for total in flow.totals:
        terms = [(np.broadcast_to(np.asarray(f, float), t.shape), t) for f, t in total.terms]
        for i, out in enumerate(total.out.tolist()):
            shifts.append((_row((out, -1), *((int(t[i]), float(f[i])) for f, t in terms)), 0.0))
            for _, term in terms:
                scales.append((_row((out, 1), (int(term[i]), -1)), 0.0))
                signs.append((out, int(term[i]), 1.0))
    for pin in flow.pins:
        for label in pin.labels.tolist():
            if pin.what & Pin.SCALE:
                scales.append(({label: 1.0}, 0.0))
                signs.append((label, 0, 1.0))
            if pin.what & Pin.SHIFT:
                shifts.append(({label: 1.0}, 0.0))
            if pin.what & Pin.SIGN:
                positive.add(label)
    return scales, shifts, signs, positive


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


def _spread(ties: Sequence[tuple[int, int, float]], positive: set[int], count: int) -> np.ndarray | None:
    near: dict[int, list[tuple[int, float]]] = {}
    for a, b, sign in ties:
        near.setdefault(a, []).append((b, sign))
        near.setdefault(b, []).append((a, sign))
    found = np.zeros(count)
    for start in [*sorted(positive), *range(count)]:
        if found[start]:
            if start in positive and found[start] < 0:
                return None
            continue
        found[start], waiting = 1.0, [start]
        while waiting:
            at = waiting.pop()
            for other, sign in near.get(at, ()):
                if not found[other]:
                    found[other] = found[at] * sign
                    waiting.append(other)
                elif found[other] != found[at] * sign:
                    return None
    return found

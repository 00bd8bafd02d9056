"""From numbers to a plan: which layers change, and which BatchNorm goes where."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from bntools.core.calls import Call, Value
from bntools.core.flow import Flow, Taker
from bntools.core.forest import Array, components
from bntools.core.host import Host
from bntools.core.lanes import GROUND
from bntools.core.maps import Norm
from bntools.core.numbers import Maps, Seen, Take
from bntools.core.plan import Edit, Op, Reduction, Side
from bntools.core.reduce import Reducible, draw_reductions
from bntools.core.settle import Solution
from bntools.core.sites import BatchNorm

_CLOSE = 1e-12


@dataclass(frozen=True, slots=True)
class _Change:
    """A layer that takes something in, and on which sides."""

    taker: Taker
    take: Take
    rows: bool
    columns: bool


def draw_edits(
    flow: Flow,
    gone: Mapping[int, BatchNorm],
    solution: Solution,
    watch: Collection[str] = (),
    reduce: Reducible = MappingProxyType({}),
) -> tuple[tuple[Edit, ...], tuple[Host, ...], tuple[Reduction, ...], Maps]:
    """The edits, hosts, reductions and numbers of a plan.

    Args:
        flow: of the capture.
        gone: the BatchNorms that go, by the index of their call.
        solution: the map of every label.
        watch: paths of other modules of which it is to be known what stands for what they return.
        reduce: BatchNorms that stay, and what is faster than each of them.
    """
    reductions, reduced = draw_reductions(flow, reduce, solution)
    staying = flow.takers.keys() - gone.keys()
    norms = flow.graph.capture.norms
    changes = [
        change
        for index, taker in flow.takers.items()
        if index in staying and (change := _change(taker, solution, norms))
    ]
    ops = {reduction.site.at: reduction.op for reduction in reductions}
    away = {**gone, **{index: bn for index, (bn, _) in reduce.items() if index in ops}}
    kept = [change for change in changes if change.taker.call.index not in ops]
    level = {index for index in away if ops.get(index) is Op.SHIFT and index in flow.edges}
    reach = _Reach(flow, gone.keys() | level, solution, changes)
    rows: dict[int, list[str]] = defaultdict(list)
    columns: dict[int, list[str]] = defaultdict(list)
    edits = []
    for index in sorted(gone.keys() | level):
        bn = away[index]
        on_rows, on_columns, side = reach.of(index)
        for change in on_rows:
            rows[change.taker.call.index].append(bn.site.name)
        for change in on_columns:
            columns[change.taker.call.index].append(bn.site.name)
        if index in level:
            continue
        calls = {c.taker.call.index: c.taker for c in (*on_rows, *on_columns)}
        into = tuple(dict.fromkeys(calls[i].host.path for i in sorted(calls)))
        through = _through(flow, bn.call, staying | calls.keys(), side)
        edits.append(Edit(bn.site, side, into, through, bn.paths, bn.keeps))
    hosts = tuple(
        _host(c, tuple(rows[c.taker.call.index]), tuple(columns[c.taker.call.index]), flow.padded)
        for c in kept
    )
    seen = {bn.site.name: _seen(flow, bn.site.name, bn.returned, solution) for bn in away.values()}
    for module in flow.graph.capture.modules:
        if module.path in watch and len(module.outputs) == 1:
            seen[module.path] = _seen(flow, module.path, module.outputs[0], solution)
    takes = {change.taker.call.index: change.take for change in kept}
    return tuple(edits), hosts, reductions, Maps(takes, seen, reduced)


def _change(taker: Taker, solution: Solution, norms: Mapping[int, Norm]) -> _Change | None:
    s, t = solution.s[taker.rows], solution.t[taker.rows]
    rows = not _identity(s, t)
    r = v = None
    if taker.columns is not None:
        r, v = solution.r[taker.columns], solution.v[taker.columns]
    columns = r is not None and v is not None and not _identity(r, v)
    if not rows and not columns:
        return None
    ones, zeros = np.ones_like(s), np.zeros_like(t)
    s, t = (s, t) if rows else (ones, zeros)
    norm = norms.get(taker.call.index)
    slope, mean = (norm.scale, norm.mean) if norm is not None else (None, None)
    take = Take(s, t, r, v, slope, mean) if columns else Take(s, t)
    return _Change(taker, take, rows, columns)


def _identity(scale: Array, shift: Array) -> bool:
    return bool((np.abs(scale - 1) <= _CLOSE).all() and (np.abs(shift) <= _CLOSE).all())


def _host(change: _Change, rows: tuple[str, ...], columns: tuple[str, ...], padded: Collection[int]) -> Host:
    """A bias is made where a shift has to go, and not where none has; so is something else to pad with."""
    take, host = change.take, change.taker.host
    shifts = np.any(take.t) or np.any(take.v if take.v is not None else 0) or take.slope is not None
    new_bias = host.new_bias if shifts and host.layout != "table" else ""
    bias = () if host.layout == "table" else host.bias
    shifted = take.v is not None and bool(np.any(take.v))
    pad = f"{host.path}.pad_value" if shifted and change.taker.call.index in padded else ""
    return replace(host, bias=bias, new_bias=new_bias, rows=rows, columns=columns, pad=pad)


class _Reach:
    """Which changes a BatchNorm has a part in.

    Labels that are tied in scale form classes, and so do the channels of a layer; the BatchNorms that go
    stand between two of them. What one has a part in lies on its side of classes with a map.
    """

    def __init__(self, flow: Flow, gone: Collection[int], solution: Solution, changes: list[_Change]) -> None:
        self._edges = {index: flow.edges[index] for index in gone}
        lanes = [change.taker.rows for change in changes]
        lanes += [
            change.taker.columns for change in changes if change.columns and change.taker.columns is not None
        ]
        lanes += [lane for edge in self._edges.values() for lane in (edge.x, edge.y)]
        with np.errstate(invalid="ignore"):
            still = (np.abs(solution.s - 1) <= _CLOSE) & (np.abs(solution.t) <= _CLOSE)
        wires = [(lane, lane[np.argmax(lane != GROUND)]) for lane in lanes if len(lane)]
        wires += [tie for index in flow.edges.keys() - self._edges.keys() for tie in flow.holds(index)]
        self._class = components(flow.count, wires, flow.near)
        self._moved = ~still
        self._rows: dict[int, list[_Change]] = defaultdict(list)
        self._columns: dict[int, list[_Change]] = defaultdict(list)
        self._near: dict[int, list[int]] = defaultdict(list)
        for change in changes:
            if change.rows:
                self._rows[self._class_of(change.taker.rows)].append(change)
            if change.columns:
                self._columns[self._class_of(change.taker.columns)].append(change)
        self._classes = {
            index: {self._class_of(edge.x), self._class_of(edge.y)} - {-1}
            for index, edge in self._edges.items()
        }
        for index, classes in self._classes.items():
            for root in classes:
                self._near[root].append(index)

    def _class_of(self, lane: Array | None) -> int:
        """The class of what has a map in a lane; -1 if nothing has."""
        assert lane is not None
        moved = self._moved[lane]
        return int(self._class[lane[np.argmax(moved)]]) if moved.any() else -1

    def of(self, index: int) -> tuple[list[_Change], list[_Change], Side]:
        """The changes of output channels and of input channels, and where they are."""
        rows: dict[int, _Change] = {}
        columns: dict[int, _Change] = {}
        waiting, seen = [*self._classes[index]], set[int]()
        while waiting:
            near = waiting.pop()
            if near in seen:
                continue
            seen.add(near)
            rows.update({id(c): c for c in self._rows[near]})
            columns.update({id(c): c for c in self._columns[near]})
            for other in self._near[near]:
                waiting += self._classes[other]
        side = Side.BOTH if rows and columns else Side.DOWNSTREAM if columns else Side.UPSTREAM
        return list(rows.values()), list(columns.values()), side


def _through(flow: Flow, bn: Call, stop: Collection[int], side: Side) -> tuple[str, ...]:
    """The operators between a BatchNorm and the layers that take it in, from the BatchNorm on."""
    graph = flow.graph
    found: dict[str, None] = {}
    waiting: list[Value] = [*bn.outputs] if side is Side.DOWNSTREAM else [bn.args["input"]]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop(0)
        if side is Side.DOWNSTREAM:
            near = graph.readers_of(value)
        else:
            near = [graph.made[value.id]] if value.id in graph.made else []
        for call in near:
            if call.index in seen or call.index in stop:
                continue
            seen.add(call.index)
            found[call.op] = None
            ends = call.outputs if side is Side.DOWNSTREAM else call.reads()
            waiting += [v for v in ends if isinstance(v, Value) and v.id in flow.lanes]
    return tuple(found)


def _seen(flow: Flow, tap: str, value: Value, solution: Solution) -> Seen:
    """What stands for a value that a module returned."""
    lane = flow.lane(value)
    return Seen(tap, np.asarray(solution.s[lane]), np.asarray(solution.t[lane]))

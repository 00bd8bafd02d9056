"""What a fold may change, as equations: each label is a number's map, and each operator ties labels together.

In the folded model an entry holds ``s·x + t`` where the model has x. An operator says which pairs (s, t) at
its outputs go with which at its inputs; whatever it does not say keeps s = 1 and t = 0. A BatchNorm that goes
ties its input to its output by ``s_x = S·s_y``, ``t_x = t_y + s_y·T``; one that stays is a layer with
weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntFlag

import numpy as np

from bntools.core.calls import Call, Stored, Value
from bntools.core.forest import Array, components
from bntools.core.graph import BlockedError, Graph
from bntools.core.host import Host
from bntools.core.lanes import GROUND, Lane, aligned, distinct, ground, is_ground


class Pin(IntFlag):
    """What is required of a label."""

    SCALE = 1
    """s = 1."""
    SIGN = 2
    """s > 0."""
    SHIFT = 4
    """t = 0."""
    FIXED = SCALE | SHIFT
    SCALED = SIGN | SHIFT
    """A positive factor passes, and nothing else."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """Labels with a requirement, and the call or the words that say why."""

    labels: Lane
    what: Pin
    call: Call | None
    why: BlockedError | None = None


@dataclass(frozen=True, slots=True)
class Tie:
    """Two lanes of one map; without *shift*, of one scale only. *call* and *other* share what they read."""

    a: Lane
    b: Lane
    shift: bool = True
    call: Call | None = None
    other: Call | None = None


Factor = float | np.ndarray


@dataclass(frozen=True, slots=True)
class Total:
    """``out = Σ factor·term``: all have one scale, and the shifts add up in the same way.

    A factor is a number, or one for each label.
    """

    out: Lane
    terms: tuple[tuple[Factor, Lane], ...]


@dataclass(frozen=True, slots=True)
class Product:
    """``out = one·two``, by *call*, of values that both move: their scales multiply, and none has a shift."""

    call: Call
    out: Lane
    one: Lane
    two: Lane


@dataclass(frozen=True, slots=True)
class Taker:
    """A call of a layer with weights, which takes maps in on either side.

    Args:
        call: of the layer.
        host: its tensors.
        rows: the labels of its output channels.
        columns: the labels of its input channels; None if nothing can be taken in there.
    """

    call: Call
    host: Host
    rows: Lane
    columns: Lane | None


@dataclass(frozen=True, slots=True)
class Edge:
    """A BatchNorm's input and output labels, in pairs.

    There is one pair a channel, or several where the labels of its input differ within a channel.

    Args:
        x, y: the labels.
        channel: of each pair, in order.
    """

    x: Lane
    y: Lane
    channel: np.ndarray

    @property
    def mixed(self) -> bool:
        """Whether some channel has several pairs."""
        return len(self.channel) > 0 and len(self.channel) > self.channel[-1] + 1

    @property
    def first(self) -> np.ndarray:
        """The place of each channel's first pair."""
        return np.flatnonzero(np.diff(self.channel, prepend=-1)) if self.mixed else self.channel


@dataclass(slots=True)
class Flow:
    """The lanes of a capture, and what is required of their labels.

    Attributes:
        lanes: by the id of each value.
        count: of labels; number 0 is `bntools.core.lanes.GROUND`.
        takers: by the index of the call.
        edges: by the index of the call of each BatchNorm that could go.
        blocked: why the layer of a call cannot take anything in, by the index of the call.
        stopped: the indices of calls through which nothing passes.
        sums_to_one: the axis along which a value's entries add up to one, by its id.
        padded: the calls of convolutions that may pad with a value for each channel.
        classes: of labels that have one scale whatever goes, the smallest; known when all else is.
        near: of labels whose scales have to do with one another, the smallest.
    """

    graph: Graph
    bake: bool = False
    lanes: dict[int, Lane] = field(default_factory=dict)
    count: int = 1
    pins: list[Pinned] = field(default_factory=list)
    ties: list[Tie] = field(default_factory=list)
    totals: list[Total] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    takers: dict[int, Taker] = field(default_factory=dict)
    edges: dict[int, Edge] = field(default_factory=dict)
    blocked: dict[int, BlockedError] = field(default_factory=dict)
    stopped: set[int] = field(default_factory=set)
    sums_to_one: dict[int, int] = field(default_factory=dict)
    padded: frozenset[int] = frozenset()
    classes: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    near: Array = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def sums(self) -> list[Total]:
        """The totals of several terms."""
        return [total for total in self.totals if len(total.terms) > 1]

    def lane(self, x: object) -> Lane:
        """The lane of an argument; of a parameter, a number or an input of the model it is the ground."""
        if isinstance(x, Value):
            known = self.lanes.get(x.id)
            return ground(len(x.shape)) if known is None else known
        return ground(len(x.shape)) if isinstance(x, Stored) else ground(0)

    def fresh(self, shape: Sequence[int]) -> Lane:
        """Labels that no value has yet."""
        count = int(np.prod(shape))
        lane = np.arange(self.count, self.count + count).reshape(tuple(shape))
        self.count += count
        return lane

    def pin(self, lane: Lane, what: Pin, call: Call | None, why: BlockedError | None = None) -> None:
        """Require something of the labels of a lane."""
        if what and not is_ground(lane):
            labels = distinct(lane)
            self.pins.append(Pinned(labels[labels != GROUND], what, call, why))

    def tie(
        self, a: Lane, b: Lane, *, shift: bool = True, call: Call | None = None, other: Call | None = None
    ) -> None:
        """Require one map of two lanes of the same shape."""
        if not np.array_equal(a, b):
            self.ties.append(Tie(a.ravel(), b.ravel(), shift, call, other))

    def total(self, call: Call, terms: Iterable[tuple[Factor, Lane]]) -> Lane:
        """The lane of what *call* returns, a weighted sum of its terms.

        Terms that stay as they are hold the others' scale at 1.
        """
        rank = len(call.outputs[0].shape)
        terms = [(factor, aligned(lane, rank)) for factor, lane in terms]
        moved = [(factor, lane) for factor, lane in terms if not is_ground(lane)]
        if not moved:
            return ground(rank)
        if len(moved) < len(terms):
            for _, lane in moved:
                self.pin(lane, Pin.SCALE, call)
        if len(moved) == 1 and np.all(moved[0][0] == 1):
            return moved[0][1]
        sizes = np.broadcast_shapes(*(lane.shape for _, lane in moved))
        out = self.fresh(sizes)
        wide = tuple(
            (factor if np.ndim(factor) == 0 else np.broadcast_to(factor, sizes).ravel(), lane)
            for factor, lane in ((f, np.broadcast_to(lane, sizes).ravel()) for f, lane in moved)
        )
        self.totals.append(Total(out.ravel(), wide))
        return out

    def multiply(self, call: Call, one: Lane, two: Lane) -> Lane:
        """The lane of what *call* returns, a product of two values that both move."""
        one, two = (aligned(lane, len(call.outputs[0].shape)) for lane in (one, two))
        out = self.fresh(np.broadcast_shapes(one.shape, two.shape))
        for lane in (one, two, out):
            self.pin(lane, Pin.SHIFT, call)
        one, two = (np.broadcast_to(lane, out.shape).ravel() for lane in (one, two))
        self.products.append(Product(call, out.ravel(), one, two))
        return out

    def holds(self, call: int) -> list[tuple[Lane, Lane]]:
        """What a BatchNorm ties together if it stays: as a layer it has one map for each channel, or none."""
        edge = self.edges[call]
        if call not in self.takers:
            return [(labels, np.full(len(labels), GROUND)) for labels in (edge.x, edge.y)]
        if not edge.mixed:
            return []
        return [(labels, labels[edge.first[edge.channel]]) for labels in (edge.x, edge.y)]

    def close(self) -> None:
        """Work out what belongs together: all ties are there."""
        ties = [(tie.a, tie.b) for tie in self.ties]
        ties += [(total.out, term) for total in self.totals for _, term in total.terms]
        self.classes = components(self.count, ties)
        factors = [(each.out, factor) for each in self.products for factor in (each.one, each.two)]
        self.near = components(self.count, factors, self.classes) if factors else self.classes

    def opaque(self, call: Call) -> None:
        """An operator of which nothing is known: what it reads and makes stays as it is."""
        self.stopped.add(call.index)
        for read in call.reads():
            self.pin(self.lane(read), Pin.FIXED, call)

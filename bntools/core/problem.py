"""The equations of a flow, and what stands against letting a BatchNorm go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bntools.core.flow import Edge, Flow, Pin
from bntools.core.forest import Array, Forest
from bntools.core.lanes import GROUND
from bntools.core.products import Products
from bntools.core.sums import Sums

Mark = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Item:
    """BatchNorms that go together or not at all: the calls of one module.

    Args:
        calls: their indices.
        rigid: whether it ties something together if it stays.
    """

    calls: tuple[int, ...]
    rigid: bool


@dataclass(frozen=True, slots=True)
class Conflict:
    """Why a BatchNorm does not go with the others: which requirement cannot be met, in which channel of which
    call.

    Args:
        call: its index.
        what: of the requirements.
        pair: the first pair of labels.
        flat: whether its scale is 0.
    """

    call: int
    what: Pin
    pair: int
    flat: bool = False


def together(arrays: Sequence[Array]) -> Array:
    """All labels of several arrays in a row."""
    return np.concatenate(arrays) if arrays else np.zeros(0, np.int64)


def tie_shifts(shifts: Forest, flow: Flow) -> None:
    """What holds for the shifts whatever goes, but for the sums of several."""
    alike = [tie for tie in flow.ties if tie.shift]
    shifts.tie(together([tie.a for tie in alike]), together([tie.b for tie in alike]), 1.0, 0.0)
    single = [(total.out, *total.terms[0]) for total in flow.totals if len(total.terms) == 1]
    factors = [np.broadcast_to(np.asarray(factor, float), out.shape) for out, factor, _ in single]
    outs, terms = together([out for out, _, _ in single]), together([term for _, _, term in single])
    shifts.tie(outs, terms, np.concatenate([np.zeros(0), *factors]), 0.0)
    pinned = [pin.labels for pin in flow.pins if pin.what & Pin.SHIFT]
    shifts.tie(together(pinned), GROUND, 1.0, 0.0)


def in_a_row(
    edges: Mapping[int, Edge], maps: Mapping[int, tuple[Array, Array]]
) -> tuple[Array, Array, Array, Array, Array]:
    """Of many BatchNorms the labels x and y, the scale and the shift between them, and the call that each is
    of.
    """
    x, y = together([edge.x for edge in edges.values()]), together([edge.y for edge in edges.values()])
    scale, shift = (
        np.concatenate([np.zeros(0), *(maps[call][i][edge.channel] for call, edge in edges.items())])
        for i in (0, 1)
    )
    return x, y, scale, shift, np.repeat([*edges], [len(edge.x) for edge in edges.values()])


class Problem:
    """The equations of a flow, and the BatchNorms that have been let go so far.

    Scales are one forest, with ``s_x = S·s_y``. Shifts are another, as ``u = t/s``, whose equations hold no
    scale: ``u_y = S·u_x − T``.

    Args:
        flow: of a capture.
        maps: the scale S and the shift T of each BatchNorm, by the index of its call.
    """

    def __init__(self, flow: Flow, maps: Mapping[int, tuple[Array, Array]]) -> None:
        self.flow, self.maps = flow, maps
        self.scales, self.shifts = Forest(flow.count, 1.0), Forest(flow.count, 0.0)
        self.signs = np.zeros(flow.count, np.int8)  # 1: some label wants to be positive; 2: negative
        self.signs[GROUND] = 1
        self.reads = np.zeros(flow.count, np.int64)
        self.plain = np.ones(flow.count, bool)  # a label of which nothing is required
        self.constant = np.zeros(flow.count, bool)
        self._bad = np.zeros(flow.count, bool)  # only while a tie is made
        self._log: list[tuple[Array, Array, Array]] = []
        self._constants: list[Array] = []
        self.stays: list[tuple[Array, Array]] = []  # what is alike because of those that stay
        self._base()
        self.held = self.shifts.copy()  # what holds of them whatever goes
        self.sums = Sums(flow.sums)
        self.products = Products(flow.products)

    def _base(self) -> None:
        """What holds whatever goes."""
        flow = self.flow
        readers = [
            t.columns
            for t in flow.takers.values()
            if t.columns is not None and t.call.index not in flow.edges
        ]
        scaled, signed = (
            [pin.labels for pin in flow.pins if pin.what & what] for what in (Pin.SCALE, Pin.SIGN)
        )
        factors = [lane for each in flow.products for lane in (each.out, each.one, each.two)]
        reads = [*readers, *(edge.x for edge in flow.edges.values()), *scaled, *factors]
        np.add.at(self.reads, together(reads), 1)
        alike = [(total.out, term) for total in flow.totals for _, term in total.terms]
        ties = [*((tie.a, tie.b) for tie in flow.ties), *alike]
        one, two = (together([tie[i] for tie in ties]) for i in (0, 1))
        self.plain[one] = self.plain[two] = False
        self.plain[together([*(pin.labels for pin in flow.pins), *factors])] = False
        self._tie(one, two, 1.0)
        self._tie(together(scaled), GROUND, 1.0)
        tie_shifts(self.shifts, flow)
        root, a, _ = self.scales.find(together(signed))
        np.bitwise_or.at(self.signs, root, np.where(a > 0, 1, 2).astype(np.int8))

    def _tie(self, x: Array, y: Array | int, a: Array | float) -> Array:
        """Tie scales; what is wanted of a root goes over to the one above it. Returns where it cannot be."""
        mark = self.scales.mark()
        wrong = self.scales.tie(x, y, a, 0.0)
        bad = np.zeros(0, np.int64)
        for child in self.scales.since(mark):
            parent, slope = self.scales.parent[child], self.scales.a[child]
            self._log.append((parent, self.signs[parent].copy(), self.reads[parent].copy()))
            want = self.signs[child]
            want = np.where(slope > 0, want, ((want & 1) << 1) | (want >> 1)) * (slope != 0)
            np.bitwise_or.at(self.signs, parent, want.astype(np.int8))
            np.add.at(self.reads, parent, self.reads[child])
            dead = (slope == 0) & (self.reads[child] > 0)
            bad = np.concatenate((bad, child[(self.signs[parent] == 3) | dead]))
        if len(bad):
            self._bad[roots := self.scales.find(bad)[0]] = True
            wrong = wrong | self._bad[self.scales.find(x)[0]]
            self._bad[roots] = False
        return wrong

    def mark(self) -> Mark:
        """A point to go back to."""
        return self.scales.mark(), self.shifts.mark(), len(self._log), len(self._constants), len(self.stays)

    def back(self, mark: Mark) -> None:
        """Forget everything since *mark*."""
        scales, shifts, log, constants, stays = mark
        del self.stays[stays:]
        self.scales.back(scales)
        self.shifts.back(shifts)
        while len(self._log) > log:
            at, signs, reads = self._log.pop()
            self.signs[at], self.reads[at] = signs, reads
        while len(self._constants) > constants:
            self.constant[self._constants.pop()] = False

    def take(self, item: Item) -> Conflict | None:
        """Let an item go; if that cannot be, nothing has changed, and the first reason is returned."""
        mark = self.mark()
        for call in item.calls:
            conflict = self._go(call, self.flow.edges[call])
            if conflict is not None:
                self.back(mark)
                return conflict
        return None

    def conflict(self, item: Item) -> Conflict | None:
        """What is in the way of an item as things stand; it is not let go."""
        mark = self.mark()
        conflict = self.take(item)
        self.back(mark)
        return conflict

    def take_all(self, items: Sequence[Item]) -> set[Item]:
        """Let many items go at once, and return those with which something is wrong: at least one of those
        that do not go together. Then the equations hold for nothing, and are to be taken back.
        """
        edges = {call: self.flow.edges[call] for item in items for call in item.calls}
        x, y, scale, shift, owner = in_a_row(edges, self.maps)
        self._unread(x)
        live = scale != 0
        wrong = ~live
        wrong[live] = self._tie(x[live], y[live], scale[live]) | self.constant[x[live]]
        wrong[live] |= self.shifts.tie(y[live], x[live], scale[live], -shift[live])
        bad = set(owner[wrong].tolist())
        return {item for item in items if not bad.isdisjoint(item.calls)}

    def leave(self, item: Item) -> bool:
        """Let an item stay, with what it then holds together.

        Returns:
            whether that can be; if not, nothing has changed.
        """
        if not item.rigid:
            return True
        mark = self.mark()
        for call in item.calls:
            for one, two in self.flow.holds(call):
                if self._tie(one, two, 1.0).any() or self.shifts.tie(one, two, 1.0, 0.0).any():
                    self.back(mark)
                    return False
                self.stays.append((one, two))
        return True

    def level(self, call: int) -> bool:
        """Let the layers around a BatchNorm take its scale in, so that a shift is all that it does.

        Returns:
            whether that can be; if not, nothing has changed.
        """
        edge, mark = self.flow.edges[call], self.mark()
        scale = self.maps[call][0][edge.channel]
        if not scale.all() or self.constant[edge.x].any() or self.constant[edge.y].any():
            return False
        if not self._tie(edge.x, edge.y, scale).any() and not self.unmet():
            return True
        self.back(mark)
        return False

    def unmet(self) -> Pin:
        """What of the sums and products cannot be met any more, if anything: their shifts or their scales."""
        if self.sums.unmet(self.shifts):
            return Pin.SHIFT
        return Pin.SCALE if self.products.unmet(self.scales, self.signs) else Pin(0)

    def _go(self, call: int, edge: Edge) -> Conflict | None:
        scale, shift = (numbers[edge.channel] for numbers in self.maps[call])
        self._unread(edge.x)
        live = np.flatnonzero(scale)
        x, y, s = edge.x[live], edge.y[live], scale[live]
        taken = self.constant[x]
        wrong = self._tie(x, y, s) | taken
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            a, b = self.scales.value(x[at : at + 1])[0], self.scales.value(y[at : at + 1])[0] * s[at]
            sign = not abs(abs(a) - abs(b)) > 1e-9 * abs(b)  # nor if they are not known
            return Conflict(call, Pin.SIGN if sign else Pin.SCALE, int(live[at]))
        wrong = self.shifts.tie(y, x, s, -shift[live])
        if wrong.any():
            return Conflict(call, Pin.SHIFT, int(live[np.flatnonzero(wrong)[0]]))
        for pair in np.flatnonzero(scale == 0):
            if not self._go_flat(int(edge.x[pair]), int(edge.y[pair])):
                return Conflict(call, Pin.SCALE, int(pair), flat=True)
        return None

    def _unread(self, x: Array) -> None:
        """There is one less that reads these."""
        root = self.scales.find(x)[0]
        self._log.append((root, self.signs[root].copy(), self.reads[root].copy()))
        np.subtract.at(self.reads, root, 1)

    def _go_flat(self, x: int, y: int) -> bool:
        """A channel with S = 0 returns T whatever it reads.

        Either nobody else reads it, and it is made to be that constant; or its readers take the constant in,
        and it has no map that anything else could be tied to.
        """
        one, two = np.array([x]), np.array([y])
        root = int(self.scales.find(one)[0][0])
        if root == GROUND and self.scales.value(one)[0] == 0:
            return True
        if root != GROUND and self.reads[root] == 0 and int(self.shifts.find(one)[0][0]) != GROUND:
            return not self._tie(one, GROUND, 0.0).any()
        if self.constant[x] or not self.plain[y] or self.scales.size[y] > 1 or self.scales.parent[y] != y:
            return False
        self.constant[two] = True
        self._constants.append(two)
        return True

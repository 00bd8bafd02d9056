"""Why a BatchNorm stays: the first thing in its way in front of it, and the first behind it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from itertools import count

import numpy as np

from bntools.core.calls import Call, Stored, Value
from bntools.core.carry import MOVES
from bntools.core.flow import Flow, Pin, Pinned
from bntools.core.forest import Array, components
from bntools.core.graph import BlockedError, where
from bntools.core.lanes import GROUND, distinct, varies
from bntools.core.plan import Refusal
from bntools.core.problem import Conflict
from bntools.core.reasons import Reason
from bntools.core.sites import BatchNorm

STAYS_ELSEWHERE = "its module is called again in another place, and stays there"
_LIMITS = {Pin.SIGN: ", and passes no negative scale", Pin.SHIFT: ", and passes no shift"}


class Explainer:
    """Says why sites stay.

    Args:
        flow: of the capture.
        gone: the BatchNorms that go, by the index of their call.
    """

    def __init__(self, flow: Flow, gone: Mapping[int, BatchNorm]) -> None:
        self.flow, self.graph, self.gone = flow, flow.graph, gone
        self._calls = {call.index: call for call in self.graph.capture.calls}
        self._pins = _Index([pin.labels for pin in flow.pins])
        self._shared = [tie for tie in flow.ties if tie.call is not None]
        self._ties = _Index([np.concatenate((tie.a, tie.b)) for tie in self._shared])
        wires = [(flow.edges[i].x, flow.edges[i].y) for i in gone]
        self._class = components(flow.count, wires, flow.near)  # all that a scale would go to
        self._held = _Index([distinct(self._class[pin.labels]) for pin in flow.pins])
        self._readers = _Index([flow.edges[i].x for i in gone])

    def refusal(self, bn: BatchNorm, conflict: Conflict | None) -> Refusal:
        """Why a site that could go by itself stays."""
        if conflict is None:
            front = self._on_another_axis(bn)
            return Refusal(bn.site, front.reason, front.detail)
        if conflict.call != bn.call.index:
            return Refusal(bn.site, Reason.SHARED_BN, STAYS_ELSEWHERE)
        front = self._front(bn, conflict)
        return Refusal(bn.site, front.reason, front.detail, self._behind(bn, conflict))

    def _on_another_axis(self, bn: BatchNorm) -> BlockedError:
        """Several of its channels have one map, or one channel has several."""
        x = bn.call.args["input"]
        every = varies(self.flow.lane(x))
        at = [axis for axis in every if axis != 1]
        way = [call for call, _ in self._back(x) if call is not None]
        maker = next((call for call in way if call.index in self.flow.takers), None)
        if maker is not None:
            alone = len(at) == 1 and every in (at, [1, *varies(self.flow.lane(maker.outputs[0]))])
            if way[0] is maker or alone:
                axis = f"axis {at[0]}" if at else "another"
                what = f"it normalises axis 1, and the channels of {where(maker)} lie on {axis}"
                return BlockedError(Reason.OTHER_AXIS, what)
        mixer = where(way[0]) if way else "what stands in front of it"
        return BlockedError(Reason.BLOCKED, f"{mixer} mixes the channels")

    # In front of it

    def _front(self, bn: BatchNorm, conflict: Conflict) -> BlockedError:
        x, labels = bn.call.args["input"], self.flow.edges[bn.call.index].x
        pins = self._relevant(self._pins.of(labels), conflict)
        way: list[Call] = []
        for call, blocked in self._back(x):
            if call is None and (passed := next((c for c in way if c.op not in MOVES), None)):
                return BlockedError(Reason.BLOCKED, f"{where(passed)} stands in front of it")
            if blocked is not None:
                return blocked
            assert call is not None
            way.append(call)
            for pin in pins:
                if pin.call is call:
                    if pin.why is not None:
                        return pin.why
                    limit = "" if pin.what & Pin.SCALE else _LIMITS[conflict.what]
                    return BlockedError(Reason.BLOCKED, f"{where(call)} stands in front of it{limit}")
        if conflict.flat:
            reader = self._reader(labels[conflict.pair], bn.call)
            if reader is not None:
                what = f"{where(reader)} reads the same values, of which its zero scale would leave nothing"
                return BlockedError(Reason.READ_ELSEWHERE, what)
        for pin in pins:
            if pin.call is None and pin.why is not None:
                return BlockedError(pin.why.reason, f"the values it reads are {pin.why.detail}")
        for pin in pins:
            if pin.call is not None and pin.call is not bn.call:
                if x.memory in pin.call.writes:
                    what = f"{where(pin.call)} writes into the values it reads"
                    return BlockedError(Reason.WRITTEN_IN_PLACE, what)
                return BlockedError(Reason.READ_ELSEWHERE, f"{where(pin.call)} reads the same values")
        for number in self._readers.of(labels[labels != GROUND]):
            other = [*self.gone.values()][number]
            what = f"{where(other.call)} reads the same values, and its map is another one"
            return BlockedError(Reason.READ_ELSEWHERE, what)
        if len(distinct(self._class[labels])) < len(labels):
            return self._on_another_axis(bn)
        for number in self._ties.of(labels):
            return self._another_reader(self._shared[number].call, self._shared[number].other, way)
        for each in self.flow.products:
            if each.call in way:
                what = f"{where(each.call)} stands in front of it, whose factors cannot take its scale in"
                return BlockedError(Reason.BLOCKED, what)
        carrier = next((call for call in way if call.index not in self.flow.takers), None)
        far = self._far(labels, conflict, bn.call.index, -1)
        if carrier is not None and far:
            return BlockedError(
                Reason.BLOCKED, f"{where(carrier)} stands in front of it, and ties it to {far}"
            )
        if far:
            return BlockedError(Reason.READ_ELSEWHERE, f"its map would reach {far}")
        return BlockedError(Reason.BLOCKED, "what stands in front of it takes in another BatchNorm")

    def _reader(self, label: int, bn: Call) -> Call | None:
        """Another layer that reads a label."""
        return next(
            (
                taker.call
                for taker in self.flow.takers.values()
                if taker.call is not bn and taker.columns is not None and (taker.columns == label).any()
            ),
            None,
        )

    def _another_reader(self, one: Call | None, two: Call | None, way: Sequence[Call]) -> BlockedError:
        assert one is not None
        assert two is not None
        mine, theirs = (one, two) if one in way else (two, one)
        tensors = [t for t in mine.reads() if isinstance(t, Stored)]
        shared = next((t for t in tensors if any(t.memory == r.memory for r in theirs.reads())), tensors[0])
        what = f"{where(theirs)} reads {shared.keys[0]} too, without the same BatchNorm"
        return BlockedError(Reason.SHARED_HOST, what)

    def _back(self, x: object) -> Iterator[tuple[Call | None, BlockedError | None]]:
        """The calls on the way back from a value, the nearest first; one that ends it comes with the
        reason.
        """
        waiting: list[tuple[int, int, object]] = []
        seen, order = set[int](), count()

        def wait(values: Iterable[object]) -> None:
            for value in values:  # of those made by one call, the last comes first
                heappush(waiting, (-self.graph.made_at(value), -next(order), value))

        wait([x])
        while waiting:
            *_, value = heappop(waiting)
            call = self.graph.made.get(value.id) if isinstance(value, Value) else None
            if call is None:
                source = "a parameter" if isinstance(value, Stored) else "an input of the model"
                yield None, BlockedError(Reason.NO_HOST, f"it reads {source}")
                continue
            if call.index in seen:
                continue
            seen.add(call.index)
            reads = [r for r in call.reads() if isinstance(r, Value)]
            if call.index in self.gone:
                wait(reads[:1])
            elif call.index in self.flow.blocked and call.index not in self.flow.edges:
                yield call, self.flow.blocked[call.index]
            elif call.index in self.flow.takers or call.index in self.flow.edges:
                yield call, None
            elif call.index in self.flow.stopped:
                reason = Reason.BLOCKED if reads else Reason.NO_HOST
                yield call, BlockedError(reason, f"{where(call)} stands in front of it")
            else:
                yield call, None
                wait([r for r in reads if r.id in self.flow.lanes] or reads[:1])

    # Behind it

    def _behind(self, bn: BatchNorm, conflict: Conflict) -> str:
        labels = self.flow.edges[bn.call.index].y
        pins = self._relevant(self._pins.of(labels), conflict)
        for pin in sorted(pins, key=lambda p: p.call.index if p.call is not None else 1 << 60):
            if pin.call is None and pin.why is not None:
                return f"what it returns is {pin.why.detail}"
            if pin.call is not None:
                limit = "" if pin.what & Pin.SCALE else _LIMITS[conflict.what]
                return f"{where(pin.call)} stands behind it{limit}"
        far = self._far(labels, conflict, bn.call.index, 1)
        return f"its map would reach {far}" if far else ""

    def _far(self, labels: Array, conflict: Conflict, at: int, way: int) -> str:
        """The nearest requirement of anything that a scale would go to."""
        classes = distinct(self._class[labels])
        pins = self._relevant(self._held.of(classes[classes != GROUND]), conflict)
        calls = [pin.call for pin in pins if pin.call is not None]
        if calls:
            return where(min(calls, key=lambda c: ((c.index - at) * way < 0, abs(c.index - at))))
        return next((f"what is {pin.why.detail}" for pin in pins if pin.why is not None), "")

    def _relevant(self, numbers: Sequence[int], conflict: Conflict) -> list[Pinned]:
        return [p for n in numbers if (p := self.flow.pins[n]).what & (Pin.SCALE | conflict.what)]


class _Index:
    """Which of many sets of labels hold one of some labels."""

    def __init__(self, sets: Sequence[Array]) -> None:
        none = np.zeros(0, np.int64)
        labels = np.concatenate([none, *sets])
        numbers = np.repeat(np.arange(len(sets)), [len(each) for each in sets]) if sets else none
        order = np.argsort(labels, kind="stable")
        self._labels, self._numbers = labels[order], numbers[order]

    def of(self, labels: Array) -> list[int]:
        """The numbers of the sets, in order."""
        labels = distinct(labels)
        start, end = (np.searchsorted(self._labels, labels, side) for side in ("left", "right"))
        lengths = end - start
        offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        found: list[int] = distinct(self._numbers[np.repeat(start, lengths) + offsets]).tolist()
        return found

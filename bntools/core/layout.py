"""Whether somebody behind a BatchNorm relies on how it lays out its output in memory.

A BatchNorm returns memory of its own; where it has gone, its reader gets the memory of the layer in front,
perhaps with its axes in another order. Most operators compute the same on both.
"""

from __future__ import annotations

from collections.abc import Sequence

from bntools.core.affine import HOSTS, MAY_COPY, OWN_LAYOUT, VIEWS
from bntools.core.calls import Call, Value
from bntools.core.graph import BlockedError, Graph, where
from bntools.core.reasons import Reason
from bntools.core.reshapes import PERMUTES


def check_layout(graph: Graph, bn: Call) -> None:
    """Refuse a fold behind which a view would fail, or a write would reach a view and not a copy.

    Args:
        graph: of the capture.
        bn: the call of the BatchNorm.

    Raises:
        BlockedError: if somebody relies on the layout.
    """
    came, left = bn.args["input"], bn.outputs[0]
    # An axis of size 1 has a stride that means nothing, unless it was longer on other inputs.
    permuted = _permuted(graph, came)
    if _strides(came, all_axes=permuted) == _strides(left, all_axes=permuted):
        return
    reached = {left.id}
    for call in graph.capture.calls:
        read = [r for r in call.reads() if isinstance(r, Value) and r.id in reached]
        if not read:
            continue
        if call.op in VIEWS:
            raise BlockedError(
                Reason.LAYOUT, f"{where(call)} needs the memory laid out as the BatchNorm does"
            )
        if call.op in MAY_COPY:
            _check_unwritten(graph, call, (*read, *call.outputs))
        if call.op not in OWN_LAYOUT:
            reached.update(v.id for v in call.outputs)


def _check_unwritten(graph: Graph, call: Call, values: Sequence[Value]) -> None:
    """Refuse what returns a view or a copy by the layout, if somebody writes into either afterwards."""
    for writer in (each for value in values for each in graph.writers[value.memory]):
        if writer.index > call.index:
            what = f"{where(writer)} writes into what {where(call)} returns or reads"
            raise BlockedError(Reason.LAYOUT, f"{what}: one memory or two by the layout")


def _permuted(graph: Graph, value: Value) -> bool:
    """Whether the axes of a value may have another order in memory than they have in the value."""
    waiting, seen = [value], set[int]()
    while waiting:
        call = graph.made.get(waiting.pop().id)
        if call is None or call.index in seen or call.op in OWN_LAYOUT or call.op in HOSTS:
            continue
        if call.op in PERMUTES:
            return True
        seen.add(call.index)
        waiting += [r for r in call.reads() if isinstance(r, Value)]
    return False


def _strides(value: Value, *, all_axes: bool) -> list[int]:
    sizes = zip(value.shape, value.strides, strict=False)
    return [stride for size, stride in sizes if all_axes or size > 1]

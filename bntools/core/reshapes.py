"""Operators that give the entries of a value other axes: what they do to it, they do to its labels.

Proof obligation of each rule: every entry of the output is an entry of the input, and the lane returned gives
it the label that it had there, whatever the sizes of the axes along which the lane is constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bntools.core.calls import Call
from bntools.core.flow import Flow
from bntools.core.lanes import Lane, aligned, ground, reshaped

Lanes = Lane | Sequence[Lane] | None
Rule = Callable[[Call, Flow], Lanes]
"""From a call, the lanes of what it returns; None if nothing is known of it on these arguments."""


def source(call: Call) -> Any:
    """The value that an operator of one value works on."""
    for name in ("self", "input", "x"):
        if name in call.args:
            return call.args[name]
    return None


def same(call: Call, flow: Flow) -> Lanes:
    """``y = x``."""
    _sum_alike(call, flow, range(len(call.outputs[0].shape)))
    return flow.lane(source(call))


def _sum_alike(call: Call, flow: Flow, order: Sequence[int]) -> None:
    """What adds up to one along an axis does so along that axis wherever it goes."""
    axis = flow.sums_to_one.get(getattr(source(call), "id", -1))
    if axis is not None:
        flow.sums_to_one[call.outputs[0].id] = list(order).index(axis)


def dropout(call: Call, flow: Flow) -> Lanes:
    """In eval it is the identity; in training it drops values at random."""
    if call.args["train"] is not False:
        return None
    _sum_alike(call, flow, range(len(call.outputs[0].shape)))
    return [flow.lane(source(call)), *(ground(len(v.shape)) for v in call.outputs[1:])]


def cast(call: Call, flow: Flow) -> Lanes:
    """A wider or narrower floating type rounds, which the promise allows; an integer type truncates."""
    x = source(call)
    return same(call, flow) if x.floating and call.outputs[0].floating else None


def reshape(call: Call, flow: Flow) -> Lanes:
    """The linear order stays: see `bntools.core.lanes.reshaped`."""
    x, y = source(call), call.outputs[0]
    if "dtype" in call.args:  # the bits as another type
        return None
    lane = flow.lane(x)
    if call.op == "squeeze" and "dim" in call.args:  # which axis goes is said, so nothing can cross
        dims = axes_of(call.args["dim"], len(x.shape))
        gone = [d for d in dims if x.shape[d] == 1]
        return np.squeeze(lane, tuple(gone))
    return reshaped(lane, x.shape, y.shape)


def unsqueeze(call: Call, flow: Flow) -> Lanes:
    """A new axis of size 1."""
    lane = flow.lane(source(call))
    return np.expand_dims(lane, call.args["dim"] % (lane.ndim + 1))


def permute(call: Call, flow: Flow) -> Lanes:
    """The order of the axes changes, nothing else."""
    order = _order(call)
    _sum_alike(call, flow, order)
    return flow.lane(source(call)).transpose(order)


def _order(call: Call) -> list[int]:
    a, rank = call.args, len(source(call).shape)
    order = list(range(rank))
    if call.op == "permute":
        return axes_of(a["dims"], rank)
    if call.op in ("movedim", "moveaxis"):
        src, dst = (axes_of(a[name], rank) for name in ("source", "destination"))
        rest = iter(d for d in range(rank) if d not in src)
        return [src[dst.index(d)] if d in dst else next(rest) for d in range(rank)]
    if call.op in ("t", "numpy_T"):
        return order[::-1]
    if rank > 1:
        one, two = next(
            ((a[i] % rank, a[j] % rank) for i, j in (("dim0", "dim1"), ("axis0", "axis1")) if i in a),
            (rank - 2, rank - 1),  # mT and adjoint
        )
        order[one], order[two] = two, one
    return order


def expand(call: Call, flow: Flow) -> Lanes:
    """An axis of size 1 becomes longer by saying its one entry again."""
    return aligned(flow.lane(source(call)), len(call.outputs[0].shape))


def repeat(call: Call, flow: Flow) -> Lanes:
    """Every entry again and again: labels are tiled along the axes on which they differ."""
    y = call.outputs[0].shape
    lane = aligned(flow.lane(source(call)), len(y))
    times = [y[axis] // n if n > 1 else 1 for axis, n in enumerate(lane.shape)]
    return np.tile(lane, times) if math.prod(times) * lane.size < 1 << 21 else None


def axes_of(dims: Any, rank: int) -> list[int]:
    """Axes, counted from the front."""
    return [d % rank for d in listed(dims)]


def listed(value: Any) -> list[Any]:
    """One thing or several, as a list."""
    return list(value) if isinstance(value, tuple | list) else [value]


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("alias", "clone", "contiguous", "detach", "lift_fresh", "positive"), same),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"), dropout),
    "native_dropout": dropout,
    **dict.fromkeys(("to", "_to_copy", "type_as"), cast),
    **dict.fromkeys(("reshape", "view", "_unsafe_view", "flatten", "unflatten", "squeeze"), reshape),
    **dict.fromkeys(("reshape_as", "view_as", "ravel"), reshape),
    "unsqueeze": unsqueeze,
    **dict.fromkeys(("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis"), permute),
    **dict.fromkeys(("t", "numpy_T", "mT", "adjoint"), permute),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), expand),
    **dict.fromkeys(("repeat", "tile"), repeat),
}

PERMUTES = frozenset(op for op, rule in RULES.items() if rule is permute)
"""Operators behind which the same memory has its axes in another order."""

"""Operators that compute, and still carry some maps: sums, means, pools, gates, activations.

Proof obligation of each rule: with ``x' = s·x + t`` at the inputs, s and t by the labels of their lanes, the
operator returns ``y' = s·y + t`` by the labels of the lane returned, for all s and t that meet what is
pinned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bntools.core.calls import Call, Capture, Stored, Value
from bntools.core.flow import Flow, Pin
from bntools.core.lanes import Lane, aligned, ground, is_ground
from bntools.core.maps import RESHAPES
from bntools.core.reshapes import Lanes, Rule, axes_of, listed, source

_MOST = 1 << 14
"""How many maps of two values that both move are multiplied; else the value with more of them moves alone."""


def add(call: Call, flow: Flow) -> Lanes:
    """``Σ k_i·(s·x_i + t_i) = s·Σ k_i·x_i + Σ k_i·t_i``: one scale, and the shifts add up."""
    alpha = call.args.get("alpha", 1)
    sign = -1 if call.op.startswith(("sub", "rsub")) else 1
    if not isinstance(alpha, int | float) or alpha == 0:
        return None
    if (
        isinstance(call.args["other"], int | float)
        and call.args["other"] == 0
        and not call.op.startswith("rsub")
    ):
        return flow.lane(call.args["self"])
    one, two = (1.0, float(sign * alpha)) if not call.op.startswith("rsub") else (-float(alpha), 1.0)
    return flow.total(call, [(one, flow.lane(call.args["self"])), (two, flow.lane(call.args["other"]))])


def negate(call: Call, flow: Flow) -> Lanes:
    """``−(s·x + t) = s·(−x) − t``."""
    return flow.total(call, [(-1.0, flow.lane(source(call)))])


def multiply(call: Call, flow: Flow) -> Lanes:
    """``k·(s·x + t) = s·kx + k·t`` for a number k, or a parameter with one for each channel.

    ``m·(s·x) = s·mx`` for a value m, which carries no shift, and ``(s·x)·(s'·y) = ss'·xy`` where both move.
    """
    one, two = call.args["self"], call.args["other"]
    for x, k in ((one, two), (two, one)):
        factors = _factors(call, flow, x, k) if isinstance(x, Value) else None
        if factors is not None and (x is one or not call.op.startswith("div")):
            return flow.total(call, [(1 / factors if call.op.startswith("div") else factors, flow.lane(x))])
    for x, k in ((one, two), (two, one)):
        if isinstance(k, int | float) and not isinstance(k, bool):
            factor = 1 / k if call.op.startswith("div") and k != 0 else float(k)
            usable = factor != 0 and call.args.get("rounding_mode") is None and x is one
            return flow.total(call, [(factor, flow.lane(x))]) if usable else None
    if call.op.startswith("div") and (
        call.args.get("rounding_mode") is not None or not is_ground(flow.lane(two))
    ):
        return None
    lanes = sorted((flow.lane(one), flow.lane(two)), key=lambda lane: (is_ground(lane), -lane.size))
    if is_ground(lanes[1]) or math.prod(np.broadcast_shapes(*(lane.shape for lane in lanes))) > _MOST:
        return scaled(call, flow, *lanes)
    return flow.multiply(call, *lanes)


def _factors(call: Call, flow: Flow, x: Value, k: object) -> np.ndarray | None:
    """A parameter's numbers for each label of x; None if it differs where those do not, or has a zero."""
    graph = flow.graph
    numbers = numbers_of(graph.capture, graph.made, k)
    if isinstance(k, Stored) and graph.writers[k.memory]:
        return None
    lane, rank = flow.lane(x), len(call.outputs[0].shape)
    if numbers is None or is_ground(lane) or not numbers.all() or call.args.get("rounding_mode") is not None:
        return None
    wide, numbers = (aligned(each, rank) for each in (lane, numbers))
    fits = all(n == 1 or n == m for n, m in zip(numbers.shape, wide.shape, strict=True))
    return np.broadcast_to(numbers, wide.shape) if fits else None


def numbers_of(capture: Capture, made: Mapping[int, Call], k: object) -> np.ndarray | None:
    """The numbers of a parameter, or of one in another shape."""
    if isinstance(k, Stored):
        return capture.numbers.get(k.keys[0])
    maker = made.get(k.id) if isinstance(k, Value) else None
    if maker is None or maker.op not in RESHAPES or not isinstance(k, Value):
        return None
    numbers = numbers_of(capture, made, source(maker))
    return None if numbers is None or numbers.size != np.prod(k.shape) else numbers.reshape(k.shape)


def channel_numbers(
    capture: Capture, made: Mapping[int, Call], call: Call
) -> tuple[Value, np.ndarray] | None:
    """A product of a value with a number or with a parameter of one for each channel of axis 1: both of
    them.
    """
    if call.op.rstrip("_") not in ("mul", "multiply") or len(call.outputs[0].shape) < 2:
        return None
    for x, k in ((call.args["self"], call.args["other"]), (call.args["other"], call.args["self"])):
        if not isinstance(x, Value) or x.shape != call.outputs[0].shape:
            continue
        channels, rank = x.shape[1], len(x.shape)
        number = isinstance(k, int | float) and not isinstance(k, bool)
        numbers = np.asarray(float(k)) if number else numbers_of(capture, made, k)
        if numbers is not None:
            wide = aligned(numbers, rank)
            if all(n == 1 for axis, n in enumerate(wide.shape) if axis != 1):
                return x, np.broadcast_to(wide.ravel(), (channels,)).copy()
    return None


def scaled(call: Call, flow: Flow, lane: Lane, other: Lane) -> Lane:
    """A factor passes, and nothing else, since what it meets is another number for each entry."""
    flow.pin(other, Pin.FIXED, call)
    flow.pin(lane, Pin.SHIFT, call)
    return aligned(lane, len(call.outputs[0].shape))


def activation(call: Call, flow: Flow) -> Lanes:
    """``f(s·x) = s·f(x)`` for s > 0 where f is linear on either side of zero."""
    lane = flow.lane(source(call))
    flow.pin(lane, Pin.SCALED, call)
    flow.pin(flow.lane(call.args.get("weight")), Pin.FIXED, call)
    return lane


def clamp(call: Call, flow: Flow) -> Lanes:
    """``max(x, 0)`` is ReLU; no other bound scales with x."""
    low, high = call.args.get("min"), call.args.get("max")
    zero = {low, high} <= {0, None} and (low is None) != (high is None) if not _tensors(low, high) else False
    return activation(call, flow) if zero else None


def average(call: Call, flow: Flow) -> Lanes:
    """A mean over entries of one map has that map; zeros that are counted have no shift."""
    a = call.args
    lane = _over(call, flow)
    if lane is None:
        return None
    counted = a.get("count_include_pad", True) and any(listed(a.get("padding", 0)))
    if counted or a.get("divisor_override") is not None:
        flow.pin(lane, Pin.SHIFT, call)
    return _shrunk(call, lane)


def largest(call: Call, flow: Flow) -> Lanes:
    """The largest of ``s·x + t`` is s times the largest x, plus t, for s > 0; its place is the same."""
    lane = None if "other" in call.args else _over(call, flow)
    if lane is None:
        return None
    flow.pin(lane, Pin.SIGN, call)
    out = _shrunk(call, lane)
    return [out, *(ground(len(v.shape)) for v in call.outputs[1:])]


def summed(call: Call, flow: Flow) -> Lanes:
    """A sum of n entries has n times the shift, and n is another one on other inputs."""
    lane = _over(call, flow)
    if lane is None:
        return None
    flow.pin(lane, Pin.SHIFT, call)
    return _shrunk(call, lane)


def resize(call: Call, flow: Flow) -> Lanes:
    """Interpolation: every entry is a mean of entries of its channel, with weights that add up to one."""
    lane = flow.lane(source(call))
    return lane if all(n == 1 for n in lane.shape[2:]) else None


def sample(call: Call, flow: Flow) -> Lanes:
    """Interpolation at points that are given; beyond the border stands zero, or what stands at the border."""
    lane = flow.lane(call.args["input"])
    if any(n > 1 for n in lane.shape[2:]):
        return None
    flow.pin(flow.lane(call.args["grid"]), Pin.FIXED, call)
    if call.args["padding_mode"] == 0:
        flow.pin(lane, Pin.SHIFT, call)
    return lane


def softmax(call: Call, flow: Flow) -> Lanes:
    """Nothing passes; what comes out adds up to one along the axis."""
    flow.opaque(call)
    rank = len(call.outputs[0].shape)
    flow.sums_to_one[call.outputs[0].id] = call.args["dim"] % rank
    return ground(rank)


def product(call: Call, flow: Flow) -> Lanes:
    """``A·(s·v) = s·(A·v)`` for a map by the columns of v; the shift passes too if the rows of A add up to
    one.
    """
    left, right = (call.args[n] for n in (("self", "other") if call.op == "matmul" else ("self", "mat2")))
    if min(len(left.shape), len(right.shape)) < 2:
        return None
    one, two = flow.lane(left), flow.lane(right)
    if is_ground(one) == is_ground(two):
        return None
    (lane, axis), (weights, along) = ((two, -2), (left, -1)) if is_ground(one) else ((one, -1), (right, -2))
    if lane.shape[axis] > 1:
        return None
    if flow.sums_to_one.get(getattr(weights, "id", -1)) != len(weights.shape) + along:
        flow.pin(lane, Pin.SHIFT, call)
    return aligned(lane, len(call.outputs[0].shape))


def attention(call: Call, flow: Flow) -> Lanes:
    """The values are averaged with weights that add up to one, whatever queries and keys say."""
    for name in ("query", "key", "attn_mask"):
        if call.args.get(name) is not None:
            flow.pin(flow.lane(call.args[name]), Pin.FIXED, call)
    lane, mask = flow.lane(call.args["value"]), call.args.get("attn_mask")
    if lane.shape[-2] > 1 or call.args.get("dropout_p") or call.args.get("enable_gqa"):
        return None
    if mask is not None and not mask.floating:  # a row that masks everything adds up to nothing
        flow.pin(lane, Pin.SHIFT, call)
    return lane


def _pooled(call: Call) -> list[int]:
    """The axes over which a pool or a reduction goes."""
    x = source(call)
    rank = len(x.shape)
    if "pool" in call.op:
        return list(range(rank - int(call.op.removesuffix("_with_indices")[-2]), rank))
    dims = call.args.get("dim")
    return axes_of(dims, rank) if dims not in (None, (), []) else list(range(rank))


def _over(call: Call, flow: Flow) -> Lane | None:
    """The lane of what is pooled, if its labels do not differ along the axes that it is pooled over."""
    lane = flow.lane(source(call))
    return None if any(lane.shape[axis] > 1 for axis in _pooled(call)) else lane


def _shrunk(call: Call, lane: Lane) -> Lane:
    """The lane without the axes that a reduction takes away."""
    y = call.outputs[0].shape
    if "pool" in call.op or len(y) == lane.ndim:
        return lane
    return np.squeeze(lane, tuple(sorted(_pooled(call))))


def _tensors(*values: Any) -> bool:
    return any(isinstance(v, Value | Stored) for v in values)


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("add", "sub", "subtract", "rsub"), add),
    **dict.fromkeys(("neg", "negative"), negate),
    **dict.fromkeys(("mul", "multiply", "div", "divide", "true_divide"), multiply),
    **dict.fromkeys(("relu", "leaky_relu", "prelu", "_prelu_kernel", "abs"), activation),
    **dict.fromkeys(("clamp", "clip", "clamp_min", "clamp_max"), clamp),
    **{f"{kind}avg_pool{n}d": average for kind in ("", "adaptive_") for n in (1, 2, 3)},
    "mean": average,
    **{f"{kind}max_pool{n}d": largest for kind in ("", "adaptive_") for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices": largest for n in (2, 3)},
    **dict.fromkeys(("amax", "amin", "max", "min"), largest),
    "sum": summed,
    **{f"upsample_{mode}": resize for mode in ("nearest1d", "nearest2d", "nearest3d", "linear1d")},
    **{f"upsample_{mode}": resize for mode in ("bilinear2d", "bicubic2d", "trilinear3d")},
    **{f"_upsample_{mode}_aa": resize for mode in ("bilinear2d", "bicubic2d")},
    **{f"_upsample_nearest_exact{n}d": resize for n in (1, 2, 3)},
    **dict.fromkeys(("grid_sampler", "grid_sampler_2d", "grid_sampler_3d"), sample),
    **dict.fromkeys(("softmax", "_softmax"), softmax),
    **dict.fromkeys(("matmul", "bmm", "mm"), product),
    "scaled_dot_product_attention": attention,
}

"""Operators that take the entries of values apart and put them together.

Proof obligation of each rule: every entry of the output is an entry of the input, and the lane returned gives
it the label that it had there, whatever the sizes of the axes along which the lane is constant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bntools.core.calls import Call
from bntools.core.flow import Flow, Pin
from bntools.core.lanes import Lane, ground, is_ground, reshaped
from bntools.core.reshapes import Lanes, Rule, axes_of, listed, source


def select(call: Call, flow: Flow) -> Lanes:
    """One entry of an axis, which goes."""
    lane = flow.lane(source(call))
    axis = call.args["dim"] % lane.ndim
    return np.asarray(lane.take(call.args["index"] if lane.shape[axis] > 1 else 0, axis))


def unbind(call: Call, flow: Flow) -> Lanes:
    """Each entry of an axis."""
    lane = flow.lane(source(call))
    axis = call.args["dim"] % lane.ndim
    return [np.asarray(lane.take(i if lane.shape[axis] > 1 else 0, axis)) for i in range(len(call.outputs))]


def cut(call: Call, flow: Flow) -> Lanes:
    """Every step-th entry of an axis from a start on."""
    lane = flow.lane(source(call))
    axis = call.args["dim"] % lane.ndim
    if lane.shape[axis] == 1:
        return lane
    if call.op == "narrow":
        start, stop, step = call.args["start"], call.args["start"] + call.args["length"], 1
    else:
        start, stop, step = call.args["start"], call.args["end"], call.args.get("step", 1)
    if not all(isinstance(n, int | None) for n in (start, stop, step)):
        return None
    part = [slice(None)] * lane.ndim
    part[axis] = slice(start, stop, step)
    return lane[tuple(part)]


def split(call: Call, flow: Flow) -> Lanes:
    """An axis in parts, one behind the other."""
    lane = flow.lane(source(call))
    axis = call.args.get("dim", 0) % lane.ndim
    if lane.shape[axis] == 1:
        return [lane] * len(call.outputs)
    ends = np.cumsum([y.shape[axis] for y in call.outputs])
    return np.split(lane, ends[:-1], axis)


def join(call: Call, flow: Flow) -> Lanes:
    """Values one behind the other along an axis.

    Along the axis of the channels, the labels stand one behind the other as well. Along another one, the
    values must have one map, since no reader would have another for each part.
    """
    values = list(call.args["tensors"])
    rank = len(call.outputs[0].shape)
    axis = call.args.get("dim", 0) % rank
    if call.op == "stack":
        lanes = [np.expand_dims(flow.lane(v), axis) for v in values]
        sizes = [1] * len(values)
    else:
        if any(len(v.shape) != rank for v in values):  # an empty vector, which torch leaves out
            return None
        lanes, sizes = [flow.lane(v) for v in values], [v.shape[axis] for v in values]
    if all(is_ground(lane) for lane in lanes):
        return ground(rank)
    across = np.broadcast_shapes(*(lane.shape[:axis] + lane.shape[axis + 1 :] for lane in lanes))
    if any(n > 1 for n in across) and all(lane.shape[axis] == 1 for lane in lanes):
        wide = [np.broadcast_to(lane, (*across[:axis], 1, *across[axis:])) for lane in lanes]
        for lane in wide[1:]:
            flow.tie(wide[0], lane)
        return wide[0]
    shapes = [(*across[:axis], n, *across[axis:]) for n in sizes]
    parts = [
        lane if lane.shape == shape else np.broadcast_to(lane, shape)
        for lane, shape in zip(lanes, shapes, strict=True)
    ]
    return np.concatenate(parts, axis)


def pad(call: Call, flow: Flow) -> Lanes:
    """Reflect, replicate and circular padding say entries again; zeros have no shift.

    Channels that are padded with zeros are new ones, of any scale.
    """
    mode = (
        call.args.get("mode", "constant")
        if call.op == "pad"
        else ("constant" if "constant" in call.op else "")
    )
    amounts = call.args.get("pad", call.args.get("padding"))
    lane, y = flow.lane(source(call)), call.outputs[0].shape
    padded = {len(y) - 1 - i // 2 for i, n in enumerate(amounts) if n}
    if mode != "constant":
        return None if any(lane.shape[axis] > 1 for axis in padded) else lane
    if (call.args.get("value") or 0) != 0:
        return None
    if not any(lane.shape[axis] > 1 for axis in padded):
        flow.pin(lane, Pin.SHIFT, call)
        return lane
    width = [
        (amounts[2 * (len(y) - 1 - axis)], amounts[2 * (len(y) - 1 - axis) + 1])
        if lane.shape[axis] > 1 and axis in padded
        else (0, 0)
        for axis in range(len(y))
    ]
    if any(n < 0 for pair in width for n in pair):
        return None
    if padded - {axis for axis, pair in enumerate(width) if any(pair)}:
        flow.pin(lane, Pin.SHIFT, call)
    kept = np.pad(lane, width, constant_values=-1)
    new = flow.fresh(kept.shape)
    flow.pin(new[kept == -1], Pin.SHIFT, call)
    return np.where(kept == -1, new, kept)


def reorder(call: Call, flow: Flow) -> Lanes:
    """Roll and flip along axes on which the labels do not differ, or along those on which they do."""
    lane = flow.lane(source(call))
    dims = axes_of(call.args["dims"], lane.ndim)
    if call.op == "flip":
        return np.flip(lane, tuple(dims))
    if not dims:  # a roll of the flattened value
        return lane if is_ground(lane) else None
    shifts = call.args["shifts"]
    rolled: Lane = np.roll(lane, shifts if isinstance(shifts, tuple) else (shifts,), tuple(dims))
    return rolled


def shuffle(call: Call, flow: Flow) -> Lanes:
    """Pixel and channel shuffle: a reshape, a permutation and a reshape."""
    x, lane = source(call), flow.lane(source(call))
    shape = list(x.shape)
    if call.op in ("channel_shuffle", "native_channel_shuffle"):
        g = call.args["groups"]
        steps: list[Any] = [(shape[0], g, shape[1] // g, *shape[2:]), [0, 2, 1, *range(3, len(shape) + 1)]]
    else:
        *lead, c, h, w = shape
        n = len(lead)
        r = call.args.get("upscale_factor") or call.args["downscale_factor"]
        if call.op == "pixel_shuffle":
            steps = [(*lead, c // r**2, r, r, h, w), [*range(n + 1), n + 3, n + 1, n + 4, n + 2]]
        else:
            steps = [(*lead, c, h // r, r, w // r, r), [*range(n + 1), n + 2, n + 4, n + 1, n + 3]]
    first = reshaped(lane, shape, steps[0])
    if first is None:
        return None
    middle = [steps[0][d] for d in steps[1]]
    return reshaped(first.transpose(steps[1]), middle, call.outputs[0].shape)


def windows(call: Call, flow: Flow) -> Lanes:
    """``Tensor.unfold``: an axis becomes one of windows, and the last one runs through the window."""
    lane = flow.lane(source(call))
    if lane.shape[call.args["dimension"] % max(1, lane.ndim)] > 1:
        return None
    return lane[..., None]


def patches(call: Call, flow: Flow) -> Lanes:
    """``im2col``: the entries of each window stand behind their channel, zeros where it hangs over the
    edge.
    """
    x = source(call)
    if len(x.shape) != 4:
        return None
    lane = flow.lane(x)
    if max(lane.shape[0], lane.shape[2], lane.shape[3]) > 1:
        return None
    if any(listed(call.args["padding"])):
        flow.pin(lane, Pin.SHIFT, call)
    count = math.prod(listed(call.args["kernel_size"]))
    return np.repeat(np.broadcast_to(lane.ravel(), (x.shape[1],)), count).reshape(1, -1, 1)


RULES: Mapping[str, Rule] = {
    "select": select,
    "unbind": unbind,
    **dict.fromkeys(("slice", "narrow"), cut),
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split"), split),
    **dict.fromkeys(("unsafe_split", "unsafe_chunk"), split),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), join),
    **dict.fromkeys(("pad", "constant_pad_nd"), pad),
    **{f"{mode}_pad{n}d": pad for mode in ("reflection", "replication") for n in (1, 2, 3)},
    **dict.fromkeys(("roll", "flip"), reorder),
    **dict.fromkeys(
        ("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle"), shuffle
    ),
    "unfold": windows,
    "im2col": patches,
}

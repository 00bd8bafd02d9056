"""What ONNX operators do that give the entries of values other axes, in torch's words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Attributes = Mapping[str, Any]
Rule = Callable[..., Any]
OPSET, CONSTANT = "opset", "constant"
"""Among the attributes: the version of the operator, and the numbers of the inputs that are constants."""

DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
}
"""By ONNX's number of the type."""


def ints(value: Any) -> list[int]:
    """Whole numbers, from an attribute or an input."""
    if isinstance(value, Tensor):
        return [int(n) for n in value.reshape(-1).tolist()]
    return [int(n) for n in value] if isinstance(value, list | tuple) else [int(value)]


def axes_of(a: Attributes, given: Any) -> list[int] | None:
    """Axes were an attribute, and became an input."""
    found = given if given is not None else a.get("axes")
    return None if found is None else ints(found)


def number(value: Any) -> float | None:
    """A number, from an attribute or an input; None if it is left out."""
    return None if value is None else float(value.reshape(-1)[0]) if hasattr(value, "reshape") else value


def _cast(a: Attributes, x: Tensor) -> Any:
    dtype = DTYPES.get(a["to"])
    if dtype is None or (x.is_floating_point() and not dtype.is_floating_point):
        return NotImplemented  # of what does not fit, each has its own idea
    return x.to(dtype)


def _reshape(a: Attributes, x: Tensor, shape: Any = None) -> Any:
    sizes = ints(shape if shape is not None else a["shape"])
    if not a.get("allowzero"):
        sizes = [x.shape[at] if size == 0 else size for at, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(a: Attributes, x: Tensor) -> Tensor:
    axis = a.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _squeeze(a: Attributes, x: Tensor, axes: Any = None) -> Tensor:
    dims = axes_of(a, axes)
    return x.squeeze() if dims is None else x.squeeze(tuple(dims))


def _unsqueeze(a: Attributes, x: Tensor, axes: Any = None) -> Tensor:
    dims = axes_of(a, axes) or []
    rank = x.ndim + len(dims)
    for axis in sorted(d % rank for d in dims):
        x = x.unsqueeze(axis)
    return x


def _transpose(a: Attributes, x: Tensor) -> Tensor:
    return x.permute(a.get("perm") or list(range(x.ndim))[::-1])


def _expand(a: Attributes, x: Tensor, shape: Any) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(ints(shape))))


def _concat(a: Attributes, *values: Tensor) -> Tensor:
    return torch.cat(values, a["axis"])


def _split(a: Attributes, x: Tensor, sizes: Any = None) -> tuple[Tensor, ...]:
    axis, count = a.get("axis", 0), a["outputs"]
    given = sizes if sizes is not None else a.get("split")
    if given is not None:
        return tuple(x.split(ints(given), axis))
    each = -(-x.shape[axis] // count)
    return tuple(x.split([each] * (count - 1) + [x.shape[axis] - each * (count - 1)], axis))


def _split_to_sequence(a: Attributes, x: Tensor, sizes: Any = None) -> tuple[Tensor, ...]:
    axis = a.get("axis", 0)
    if sizes is None:
        parts = x.split(1, axis)
        return parts if a.get("keepdims", 1) else tuple(part.squeeze(axis) for part in parts)
    return tuple(x.split(int(sizes) if sizes.ndim == 0 else ints(sizes), axis))


def _slice(
    a: Attributes, x: Tensor, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None
) -> Any:
    starts, ends = (ints(v if v is not None else a[k]) for v, k in ((starts, "starts"), (ends, "ends")))
    dims = axes_of(a, axes) or list(range(len(starts)))
    strides = ints(steps) if steps is not None else [1] * len(starts)
    if any(step < 1 for step in strides):
        return NotImplemented
    for start, end, axis, step in zip(starts, ends, dims, strides, strict=True):
        size = x.shape[axis]
        first, last = (min(max(n + size if n < 0 else n, 0), size) for n in (start, end))
        x = x[(slice(None),) * (axis % x.ndim) + (slice(first, max(first, last), step),)]
    return x


def _pad(a: Attributes, x: Tensor, pads: Any = None, value: Any = None, axes: Any = None) -> Any:
    widths, mode = ints(pads if pads is not None else a["pads"]), a.get("mode", "constant")
    dims = ints(axes) if axes is not None else list(range(x.ndim))
    each = {d % x.ndim: (widths[i], widths[len(dims) + i]) for i, d in enumerate(dims)}
    behind = [n for axis in reversed(range(x.ndim)) for n in each.get(axis, (0, 0))]
    if mode == "constant":
        return F.pad(x, behind, value=number(value) or a.get("value", 0.0))
    while len(behind) > 2 and behind[-2:] == [0, 0]:
        behind = behind[:-2]
    known = {"reflect": "reflect", "edge": "replicate"}.get(mode)
    if known is None or x.ndim not in (3, 4, 5) or len(behind) > 2 * (x.ndim - 2):
        return NotImplemented
    return F.pad(x, [*behind, *[0] * (2 * (x.ndim - 2) - len(behind))], known)


def _gather(a: Attributes, x: Any, index: Any) -> Any:
    axis = a.get("axis", 0)
    if 1 in a[CONSTANT] and index.ndim == 0:
        return x.select(axis, int(index))
    return NotImplemented


def _depth_to_space(a: Attributes, x: Tensor) -> Any:
    return F.pixel_shuffle(x, a["blocksize"]) if a.get("mode", "DCR") == "CRD" else NotImplemented


RULES: Mapping[str, Rule] = {
    "Identity": lambda a, x: x.alias() if hasattr(x, "alias") else torch.ops.aten.alias(x),
    "Shape": lambda a, x: torch.tensor(list(x.shape)[a.get("start", 0) : a.get("end")], dtype=torch.int64),
    "Cast": _cast,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Expand": _expand,
    "Concat": _concat,
    "Split": _split,
    "SplitToSequence": _split_to_sequence,
    "SequenceAt": lambda a, values, at: values[int(at)],
    "Slice": _slice,
    "Pad": _pad,
    "Gather": _gather,
    "DepthToSpace": _depth_to_space,
}

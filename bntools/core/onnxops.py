"""What ONNX operators compute, in torch's words, so that a capture sees those that it has rules for.

Each takes the attributes of a node and its inputs in order, None for one that is left out. One that returns
``NotImplemented`` has no such words for these attributes; then ONNX's own reference runs the node.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bntools.core import onnxshapes
from bntools.core.onnxshapes import CONSTANT, OPSET, Attributes, Rule, axes_of, ints, number
from bntools.core.onnxwindows import KERNEL, alike, padded


def _along(a: Attributes, x: Tensor, scale: Tensor) -> list[int] | None:
    """The shape of a scale for each entry of an axis; None for one by blocks."""
    if scale.ndim > 1 or a.get("block_size"):
        return None
    axis = a.get("axis", 1)
    return [-1 if at == axis % x.ndim else 1 for at in range(x.ndim)] if scale.ndim else []


def _dequantize(a: Attributes, x: Tensor, scale: Tensor, zero: Any = None) -> Any:
    shape = _along(a, x, scale)
    if shape is None:
        return NotImplemented
    whole = x.to(torch.int32) - (zero.to(torch.int32).reshape(shape) if zero is not None else 0)
    return whole.to(scale.dtype) * scale.reshape(shape)


def _quantize(a: Attributes, x: Tensor, scale: Tensor, zero: Any = None) -> Any:
    shape, dtype = _along(a, x, scale), zero.dtype if zero is not None else torch.uint8
    if shape is None or a.get("output_dtype") or dtype not in (torch.uint8, torch.int8):
        return NotImplemented
    whole = torch.round(x / scale.reshape(shape)) + (zero.reshape(shape) if zero is not None else 0)
    info = torch.iinfo(dtype)
    return torch.clamp(whole, info.min, info.max).to(dtype)


def _dropout(a: Attributes, x: Tensor, ratio: Any = None, training: Any = None) -> Any:
    trains = training is not None and not (2 in a[CONSTANT] and not bool(training))
    return NotImplemented if trains or a["outputs"] > 1 else F.dropout(x, training=False)


_TURNED: Mapping[str, Rule] = {"add": torch.add, "mul": torch.mul, "sub": torch.rsub}


def _arithmetic(name: str) -> Rule:
    def compute(a: Attributes, x: Any, y: Any) -> Any:
        floats = any(isinstance(v, float) or v.is_floating_point() for v in (x, y))
        if name == "div" and not floats:
            return torch.div(x, y, rounding_mode="trunc")
        if isinstance(x, float):  # torch wants the value first
            return torch.mul(torch.reciprocal(y), x) if name == "div" else _TURNED[name](y, x)
        return getattr(torch, name)(x, y)

    return compute


def _sum(a: Attributes, *values: Tensor) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def _clip(a: Attributes, x: Tensor, low: Any = None, high: Any = None) -> Any:
    if not x.is_floating_point():
        return NotImplemented
    low, high = (number(v) if v is not None else a.get(k) for v, k in ((low, "min"), (high, "max")))
    return torch.clamp(x, low, high) if low is not None or high is not None else x.clone()


def _prelu(a: Attributes, x: Tensor, slope: Any) -> Any:
    channels = x.shape[1] if x.ndim > 1 else 1
    plain = slope.numel() in (1, channels) and all(
        n == 1 for axis, n in enumerate(slope.shape) if axis != slope.ndim - x.ndim + 1
    )
    return F.prelu(x, slope.reshape(-1)) if plain else torch.where(x > 0, x, x * slope)


def _reduced(name: str) -> Rule:
    def reduce(a: Attributes, x: Tensor, axes: Any = None) -> Any:
        dims, keep = axes_of(a, axes), bool(a.get("keepdims", 1))
        if not dims:
            if dims is not None and a.get("noop_with_empty_axes"):
                return NotImplemented
            dims = list(range(x.ndim))
        if not x.is_floating_point() or 0 in (x.shape[d] for d in dims):
            return NotImplemented
        return getattr(torch, name)(x, dims, keepdim=keep)

    return reduce


def _pool(a: Attributes, x: Tensor, kind: str) -> Any:
    rank = x.ndim - 2
    kernel, strides = a[KERNEL], list(a.get("strides") or [1] * rank)
    dilations, ceil = list(a.get("dilations") or [1] * rank), bool(a.get("ceil_mode", 0))
    if rank not in (1, 2, 3) or a["outputs"] > 1 or (kind == "avg" and set(dilations) != {1}):
        return NotImplemented
    pads = alike(a, rank)
    if pads is None or any(2 * p > k for p, k in zip(pads, kernel, strict=True)):
        if ceil:  # which of the last windows count is a matter of where the edge was
            return NotImplemented
        if kind == "avg" and not a.get("count_include_pad", 0):
            pool = getattr(F, f"avg_pool{rank}d")
            return pool(padded(a, x), kernel, strides) / pool(padded(a, torch.ones_like(x)), kernel, strides)
        x, pads = padded(a, x, float("-inf") if kind == "max" else 0.0), [0] * rank
    if kind == "max":
        return getattr(F, f"max_pool{rank}d")(x, kernel, strides, pads, dilations, ceil_mode=ceil)
    return getattr(F, f"avg_pool{rank}d")(x, kernel, strides, pads, ceil, bool(a.get("count_include_pad", 0)))


def _softmax(a: Attributes, x: Tensor) -> Tensor:
    if a[OPSET] >= 13:
        return torch.softmax(x, a.get("axis", -1))
    axis = a.get("axis", 1) % x.ndim  # of all axes from that one on, as if they were one
    flat = x.reshape(*x.shape[:axis], -1)
    return torch.softmax(flat, -1).reshape(x.shape)


def _resize(a: Attributes, x: Tensor, *rest: Any) -> Any:
    """Nearest by whole factors, and linear between centres or corners; the rest has too many dialects."""
    if a[OPSET] == 10 or a["op"] == "Upsample":
        scales, sizes = (rest[0] if rest else a.get("scales")), None
    else:
        _, scales, sizes = (*rest, None, None, None)[:3]
    if a.get("axes") or a.get("antialias") or a.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return NotImplemented
    scales = None if scales is None else [float(n) for n in torch.as_tensor(scales).reshape(-1)]
    rank = x.ndim - 2
    if sizes is not None:
        target = ints(sizes)
        scales = [t / s for t, s in zip(target, x.shape, strict=True)]
    elif scales and len(scales) == x.ndim:
        target = [math.floor(s * n) for s, n in zip(scales, x.shape, strict=True)]
    else:
        return NotImplemented
    if rank not in (1, 2, 3) or target[:2] != list(x.shape[:2]):
        return NotImplemented
    mode = a.get("mode", "nearest")
    old = a[OPSET] < 11 or a["op"] == "Upsample"
    place = "asymmetric" if old else a.get("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        near = "floor" if old else a.get("nearest_mode", "round_prefer_floor")
        whole = all(s == int(s) for s in scales[2:])
        fits = (place, near) in {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor")}
        return F.interpolate(x, target[2:], mode="nearest") if whole and fits else NotImplemented
    corners = place == "align_corners"
    exact = all(t == s * n for t, s, n in zip(target, scales, x.shape, strict=True))
    centres = place == "half_pixel" or (place == "pytorch_half_pixel" and min(target[2:]) > 1)
    if mode != "linear" or not exact or not (corners or centres):
        return NotImplemented
    return F.interpolate(
        x, target[2:], mode=("linear", "bilinear", "trilinear")[rank - 1], align_corners=corners
    )


def _gelu(a: Attributes, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=a.get("approximate", "none"))


def _hard_sigmoid(a: Attributes, x: Tensor) -> Tensor:
    return torch.clamp(x * a.get("alpha", 0.2) + a.get("beta", 0.5), 0, 1)


def _layer_norm(a: Attributes, x: Tensor, scale: Any, bias: Any = None) -> Any:
    axis = a.get("axis", -1) % x.ndim
    if a["outputs"] > 1 or list(scale.shape) != list(x.shape[axis:]):
        return NotImplemented
    return F.layer_norm(x, x.shape[axis:], scale, bias, a.get("epsilon", 1e-5))


ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
"""Operators of two values, either of which may be a number."""

RULES: Mapping[str, Rule] = {
    **onnxshapes.RULES,
    "Dropout": _dropout,
    "DequantizeLinear": _dequantize,
    "QuantizeLinear": _quantize,
    **{op: _arithmetic(op.lower()) for op in sorted(ARITHMETIC)},
    "Neg": lambda a, x: torch.neg(x),
    "Sum": _sum,
    "MatMul": lambda a, x, y: torch.matmul(x, y),
    "Relu": lambda a, x: torch.relu(x),
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "PRelu": _prelu,
    "Clip": _clip,
    "Sigmoid": lambda a, x: torch.sigmoid(x),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda a, x: F.hardswish(x),
    "Tanh": lambda a, x: torch.tanh(x),
    "Erf": lambda a, x: torch.erf(x),
    "Gelu": _gelu,
    "Mish": lambda a, x: F.mish(x),
    "Elu": lambda a, x: F.elu(x, a.get("alpha", 1.0)),
    "Softmax": _softmax,
    "LayerNormalization": _layer_norm,
    "AveragePool": lambda a, x: _pool(a, x, "avg"),
    "MaxPool": lambda a, x: _pool(a, x, "max"),
    "GlobalAveragePool": lambda a, x: x.mean(list(range(2, x.ndim)), keepdim=True),
    "GlobalMaxPool": lambda a, x: x.amax(list(range(2, x.ndim)), keepdim=True),
    "ReduceMean": _reduced("mean"),
    "ReduceSum": _reduced("sum"),
    "ReduceMax": _reduced("amax"),
    "Resize": _resize,
    "Upsample": _resize,
}
"""By the type of the operator, in ONNX's standard domain."""

"""How each operator carries a per-channel affine map: three tables, one line an operator.

A BatchNorm in eval is ``y_c = s_c·x_c + t_c`` with c along one axis. `HOSTS` can take that map into
their weights. `CARRIERS` let it pass: applying it behind them, along *axis* of their output, equals
applying it in front of them, along the axis of the input that their rule returns. `ACTIVATIONS` only
name the ``torch.nn`` class that an operator behind a BatchNorm is kept as. An operator in no table
stops a fold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bntools.core.calls import Call, Stored, Value


@dataclass(frozen=True, slots=True)
class Lane:
    """A value, and its axis along which the channels of the map lie."""

    value: Value | Stored
    axis: int


@dataclass(frozen=True, slots=True)
class HostCall:
    """How one call of a host reads its weights.

    Args:
        axis: of its output, along which its channels lie.
        layout: of its weight, see `bntools.core.algebra.fold_weight`.
        weight, bias: the tensors, None where absent.
        groups: of a transposed convolution, else 1.
    """

    axis: int
    layout: str
    weight: Stored | Value | None
    bias: Stored | Value | None
    groups: int = 1


def _convolution(call: Call) -> HostCall:
    weight = call.args["weight"]
    axis = len(call.outputs[0].shape) - (len(weight.shape) - 2) - 1  # an unbatched input has no axis N
    if call.args.get("transposed", call.op.startswith("conv_transpose")):
        return HostCall(axis, "transposed", weight, call.args["bias"], call.args["groups"])
    return HostCall(axis, "rows", weight, call.args["bias"])


def _linear(call: Call) -> HostCall:
    return HostCall(len(call.outputs[0].shape) - 1, "rows", call.args["weight"], call.args["bias"])


def _embedding(call: Call) -> HostCall:
    # E' = E·s + t: the table takes the shift in as well, there is no bias.
    return HostCall(len(call.outputs[0].shape) - 1, "table", call.args["weight"], None)


def _norm(call: Call) -> HostCall:
    return HostCall(1, "vector", call.args["weight"], call.args["bias"])


def _layer_norm(call: Call) -> HostCall | None:
    if len(call.args["normalized_shape"]) != 1:
        return None  # a weight for each element is no map by channels
    return HostCall(len(call.outputs[0].shape) - 1, "vector", call.args["weight"], call.args["bias"])


HOSTS: Mapping[str, Callable[[Call], HostCall | None]] = {
    "conv1d": _convolution,
    "conv2d": _convolution,
    "conv3d": _convolution,
    "conv_transpose1d": _convolution,
    "conv_transpose2d": _convolution,
    "conv_transpose3d": _convolution,
    "convolution": _convolution,
    "linear": _linear,
    "embedding": _embedding,
    "batch_norm": _norm,
    "instance_norm": _norm,
    "group_norm": _norm,
    "layer_norm": _layer_norm,
}

Rule = Callable[[Call, int], Lane | str]
"""From a call and the axis of the channels in its output, the lane in its input, or why there is none."""


def _same(call: Call, axis: int) -> Lane | str:
    """The values go through untouched."""
    return Lane(_input(call), axis)


def _dropout(call: Call, axis: int) -> Lane | str:
    """In eval it is the identity."""
    return Lane(_input(call), axis) if call.args["train"] is False else "drops values at random"


def _cast(call: Call, axis: int) -> Lane | str:
    """A wider or narrower floating type rounds, which the promise allows; an integer type truncates."""
    x = _input(call)
    return Lane(x, axis) if x.floating and call.outputs[0].floating else "leaves the floating types"


def _reshape(call: Call, axis: int) -> Lane | str:
    """A reshape keeps the linear order, so an axis survives if its size and its stride do.

    The digit that ``axis`` stands for is ``(i // stride) % size`` of the linear index i in both shapes.
    """
    x, y = _input(call), call.outputs[0].shape
    if "dtype" in call.args:
        return "reads the bits as another type"
    stride = math.prod(y[axis + 1 :])
    for candidate in sorted(range(len(x.shape)), key=lambda a: a != axis):
        if x.shape[candidate] != y[axis] or math.prod(x.shape[candidate + 1 :]) != stride:
            continue
        if (call.op == "squeeze" and "dim" in call.args) or not _ones_cross(x.shape, candidate, y, axis):
            return Lane(x, candidate)
    return f"mixes the channels, from {list(x.shape)} to {list(y)}"


def _ones_cross(x: tuple[int, ...], one: int, y: tuple[int, ...], other: int) -> bool:
    """Whether axes of size 1 go from one side of the channels to the other: at other sizes they mix.

    So does a batch of 1 in front of the channels, if nothing is left in front that could take a larger one.
    """
    if x[0] == 1 and one > 0 and other == 0:
        return True
    before = y[:other].count(1) - x[:one].count(1)
    behind = y[other + 1 :].count(1) - x[one + 1 :].count(1)
    return before * behind < 0


def _permute(call: Call, axis: int) -> Lane | str:
    """The order of the axes changes, nothing else."""
    x = _input(call)
    rank = len(x.shape)
    order = list(range(rank))
    a = call.args
    if call.op == "permute":
        order = [d % rank for d in a["dims"]]
    elif call.op in ("movedim", "moveaxis"):
        source, target = (
            [d % rank for d in (v if isinstance(v, tuple) else (v,))] for v in (a["source"], a["destination"])
        )
        rest = iter(d for d in range(rank) if d not in source)
        order = [source[target.index(d)] if d in target else next(rest) for d in range(rank)]
    elif call.op in ("t", "numpy_T"):
        order.reverse()
    elif rank:
        one, two = _pair(call, rank)
        order[one], order[two] = two, one
    return Lane(x, order[axis])


def _pair(call: Call, rank: int) -> tuple[int, int]:
    a = call.args
    for one, two in (("dim0", "dim1"), ("axis0", "axis1")):
        if one in a:
            return a[one] % rank, a[two] % rank
    return rank - 2, rank - 1  # mT and adjoint


def _input(call: Call) -> Value | Stored:
    x: Value | Stored = call.args["self"] if "self" in call.args else call.args["input"]
    return x


CARRIERS: Mapping[str, Rule] = {
    **dict.fromkeys(("alias", "clone", "contiguous", "detach", "lift_fresh", "positive"), _same),
    **dict.fromkeys(
        ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout"), _dropout
    ),
    **dict.fromkeys(("to", "_to_copy", "type_as"), _cast),
    **dict.fromkeys(
        ("reshape", "view", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"), _reshape
    ),
    **dict.fromkeys(("reshape_as", "view_as", "ravel"), _reshape),
    **dict.fromkeys(("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis"), _permute),
    **dict.fromkeys(("t", "numpy_T", "mT", "adjoint"), _permute),
}

PERMUTES = frozenset(op for op, rule in CARRIERS.items() if rule is _permute)
"""Operators behind which the same memory has its axes in another order."""

VIEWS = frozenset({"view", "view_as", "as_strided", "_unsafe_view", "view_as_complex"})
"""Operators that work on some layouts in memory and not on others."""

MAY_COPY = frozenset(
    {"reshape", "reshape_as", "flatten", "unflatten", "ravel", "contiguous", "to", "_to_copy"}
)
"""Operators that return a view of some layouts in memory, and a copy of others."""

OWN_LAYOUT = frozenset({"linear", "matmul", "mm", "bmm", "addmm", "embedding"})
"""Operators that return the same layout in memory whatever they read."""

ACTIVATIONS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "relu": ("ReLU", ()),
    "relu_": ("ReLU", ()),
    "relu6": ("ReLU6", ()),
    "relu6_": ("ReLU6", ()),
    "leaky_relu": ("LeakyReLU", ("negative_slope",)),
    "leaky_relu_": ("LeakyReLU", ("negative_slope",)),
    "silu": ("SiLU", ()),
    "silu_": ("SiLU", ()),
    "gelu": ("GELU", ("approximate",)),
    "hardtanh": ("Hardtanh", ("min_val", "max_val")),
    "hardtanh_": ("Hardtanh", ("min_val", "max_val")),
    "hardswish": ("Hardswish", ()),
    "hardswish_": ("Hardswish", ()),
    "hardsigmoid": ("Hardsigmoid", ()),
    "hardsigmoid_": ("Hardsigmoid", ()),
    "mish": ("Mish", ()),
    "mish_": ("Mish", ()),
    "sigmoid": ("Sigmoid", ()),
    "tanh": ("Tanh", ()),
    "selu": ("SELU", ()),
    "selu_": ("SELU", ()),
    "celu": ("CELU", ("alpha",)),
    "celu_": ("CELU", ("alpha",)),
    "softplus": ("Softplus", ("beta", "threshold")),
}

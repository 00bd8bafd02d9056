"""Which operators have weights that take a per-channel affine map in, and where those keep their channels.

`HOSTS` can take a map in behind them, and most in front of them as well. `ACTIVATIONS` only name the
``torch.nn`` class that an operator behind a BatchNorm is kept as. How all other operators carry a map stands
in `bntools.core.moves` and `bntools.core.mixes`; one that stands nowhere carries none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bntools.core.calls import BY_BATCH, Call, Stored, Value


@dataclass(frozen=True, slots=True)
class HostCall:
    """How one call of a host reads its input and its weights.

    Args:
        axis: of its output, along which its channels lie.
        layout: of its weight, see `bntools.core.algebra.fold_weight`.
        weight, bias: the tensors, None where absent.
        groups: of a convolution, else 1.
        reads: the axis of its input along which its input channels lie; None if it takes nothing in there.
        shifts: whether a shift of its input adds the same to every entry of an output channel.
    """

    axis: int
    layout: str
    weight: Stored | Value | None
    bias: Stored | Value | None
    groups: int = 1
    reads: int | None = None
    shifts: bool = False


def _convolution(call: Call) -> HostCall:
    """Zeros that pad the input have no shift, so with padding the border would see another one."""
    a, weight = call.args, call.args["weight"]
    axis = len(call.outputs[0].shape) - (len(weight.shape) - 2) - 1  # an unbatched input has no axis N
    one = all(k == 1 for k in weight.shape[2:])
    if a.get("transposed", call.op.startswith("conv_transpose")):
        # Each output sees the input through another part of the kernel, but for a kernel of one.
        plain = one and _only(a["stride"], 1) and _only(a["padding"], 0) and _only(a["output_padding"], 0)
        return HostCall(axis, "transposed", weight, a["bias"], a["groups"], axis, plain)
    padded = (
        (a["padding"] == "same" and not one) if isinstance(a["padding"], str) else not _only(a["padding"], 0)
    )
    return HostCall(axis, "rows", weight, a["bias"], a["groups"], axis, not padded)


def _only(value: Any, number: int) -> bool:
    return all(each == number for each in (value if isinstance(value, tuple) else (value,)))


def _linear(call: Call) -> HostCall:
    last = len(call.outputs[0].shape) - 1
    return HostCall(last, "rows", call.args["weight"], call.args["bias"], 1, last, True)


def _embedding(call: Call) -> HostCall:
    # E' = E·s + t: the table takes the shift in as well, there is no bias.
    return HostCall(len(call.outputs[0].shape) - 1, "table", call.args["weight"], None)


def _batch_norm(call: Call) -> HostCall:
    """By running statistics it is a layer of one weight a channel; by the batch's it undoes what it reads."""
    still = call.args.get("running_mean") is not None and not call.args.get(BY_BATCH[call.op])
    return HostCall(1, "vector", call.args["weight"], call.args["bias"], 1, 1 if still else None, still)


def _group_norm(call: Call) -> HostCall:
    return HostCall(1, "vector", call.args["weight"], call.args["bias"])


def _layer_norm(call: Call) -> HostCall | None:
    if len(call.args["normalized_shape"]) != 1:
        return None  # a weight for each element is no map by channels
    return HostCall(len(call.outputs[0].shape) - 1, "vector", call.args["weight"], call.args["bias"])


HOSTS: Mapping[str, Callable[[Call], HostCall | None]] = {
    **{f"conv{n}d": _convolution for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _convolution for n in (1, 2, 3)},
    "convolution": _convolution,
    "linear": _linear,
    "embedding": _embedding,
    "batch_norm": _batch_norm,
    "instance_norm": _batch_norm,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
}

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

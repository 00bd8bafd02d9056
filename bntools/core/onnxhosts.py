"""The ONNX nodes that have weights of their own, as operators of torch, and where each weight lies.

``Conv``, ``ConvTranspose``, ``Gemm``, ``MatMul`` with the addition behind it, ``BatchNormalization``, also
where it is spelt out as multiplications and additions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bntools.core.onnxfile import STANDARD
from bntools.core.onnxops import ARITHMETIC
from bntools.core.onnxshapes import Attributes
from bntools.core.onnxwindows import KERNEL, alike
from bntools.core.operator import Input, Operator

if TYPE_CHECKING:
    import onnx_ir as ir

    from bntools.core.onnxgraph import OnnxGraph


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a tensor of an operator lies in the file.

    Args:
        node: that reads it.
        at: the number of the input.
        shape: that it has there, None if it is not there.
        turned: whether it stands there with its two axes exchanged.
    """

    node: ir.Node
    at: int
    shape: tuple[int, ...] | None
    turned: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """What an operator stands for in the file.

    Args:
        nodes: in order; the first reads what the operator reads, the last makes what it returns.
        slots: by the operator's names of its tensors; none for a BatchNorm that is spelt out.
        reads, rank: the name of the value that such a one reads, and how many axes that has.
    """

    nodes: tuple[ir.Node, ...]
    slots: Mapping[str, Slot]
    reads: str = ""
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Lowered:
    """An operator, the values that it reads, and what it stands for.

    With *edges* the first value is to be padded by these attributes before.
    """

    operator: Operator
    reads: tuple[ir.Value | None, ...]
    place: Place
    edges: Attributes | None = None


def lowered(node: ir.Node, a: Attributes, known: OnnxGraph) -> Lowered | None:
    """The operator that a node stands for, None if it is none of these, or not in a way that is known."""
    make = MAKERS.get(node.op_type)
    made = make(node, a, known) if make is not None else None
    return made if made is not None else _spelt(node, known)


def _tensor(array: np.ndarray) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.from_numpy(np.array(array, order="C")), requires_grad=False)


def _own(
    node: ir.Node, known: OnnxGraph, names: Mapping[str, int], reads: list[ir.Value | None]
) -> tuple[dict[str, Tensor | None], dict[str, Any], dict[str, Slot]] | None:
    """The tensors of a node by the operator's names: constants as its own, others as values that it reads."""
    own: dict[str, Tensor | None] = {}
    args: dict[str, Any] = {}
    slots: dict[str, Slot] = {}
    for name, at in names.items():
        value = node.inputs[at] if at < len(node.inputs) else None
        array = known.constant(value)
        if array is not None:
            if array.dtype.kind != "f":
                return None
            own[name], slots[name] = _tensor(array), Slot(node, at, array.shape)
        elif value is not None:
            args[name] = Input(len(reads))
            reads.append(value)
        else:
            own[name], slots[name] = None, Slot(node, at, None)
    return own, args, slots


def _conv(node: ir.Node, a: Attributes, known: OnnxGraph) -> Lowered | None:
    reads = [node.inputs[0]]
    found = _own(node, known, {"weight": 1, "bias": 2}, reads)
    rank, weight = known.rank(node.inputs[1]), known.constant(node.inputs[1])
    if found is None or rank not in (3, 4, 5):
        return None
    own, given, slots = found
    n, transposed = rank - 2, node.op_type == "ConvTranspose"
    if KERNEL not in a and weight is not None:
        a = {**a, KERNEL: list(weight.shape[2:])}
    pads = alike(a, n)
    unlike = pads is None
    if unlike and (transposed or KERNEL not in a):
        return None
    if transposed and (a.get("output_shape") or a.get("auto_pad", "NOTSET").startswith("SAME")):
        return None
    args = {
        "input": Input(0),
        **given,
        "stride": list(a.get("strides") or [1] * n),
        "padding": pads or [0] * n,
        "dilation": list(a.get("dilations") or [1] * n),
        "groups": a.get("group", 1),
    }
    if transposed:
        args["output_padding"] = list(a.get("output_padding") or [0] * n)
        target = getattr(torch.ops.aten, f"conv_transpose{n}d")
        target = target.default if n == 1 else target.input
    else:
        target = getattr(torch.ops.aten, f"conv{n}d").default
    operator = Operator(target, args, own, kind=node.op_type)
    return Lowered(operator, tuple(reads), Place((node,), slots), dict(a) if unlike else None)


def _gemm(node: ir.Node, a: Attributes, known: OnnxGraph) -> Lowered | None:
    """``α·x·B + β·c``: with α in the weight and β in the bias it is a linear layer."""
    weight = known.constant(node.inputs[1])
    value = node.inputs[2] if len(node.inputs) > 2 else None
    bias = known.constant(value)
    if weight is None or weight.ndim != 2 or weight.dtype.kind != "f" or a.get("transA"):
        return None
    turned = not a.get("transB")
    weight = weight.T if turned else weight
    count = len(weight)
    if value is not None and (
        bias is None or bias.size not in (1, count) or bias.shape[:-1] not in ((), (1,))
    ):
        return None
    row = None if bias is None else np.broadcast_to(bias.reshape(-1), (count,))
    dtype = weight.dtype
    own = {
        "weight": _tensor((weight.astype(np.float64) * a.get("alpha", 1.0)).astype(dtype)),
        "bias": None if row is None else _tensor((row.astype(np.float64) * a.get("beta", 1.0)).astype(dtype)),
    }
    slots = {"weight": Slot(node, 1, weight.shape, turned), "bias": Slot(node, 2, None)}
    return _linear(own, node, Place((node,), slots))


def _matmul(node: ir.Node, a: Attributes, known: OnnxGraph) -> Lowered | None:
    """With a matrix behind it, and with the addition of a row if there is one, it is a linear layer."""
    weight, rank = known.constant(node.inputs[1]), known.rank(node.inputs[0])
    if weight is None or weight.ndim != 2 or weight.dtype.kind != "f" or rank is None or rank < 2:
        return None
    slots = {"weight": Slot(node, 1, weight.shape[::-1], turned=True)}
    after = known.only_reader(node.outputs[0])
    if after is not None and after.op_type == "Add":
        at = 1 if after.inputs[0] is node.outputs[0] else 0
        row = known.constant(after.inputs[at])
        if row is not None and row.size == weight.shape[1] == row.shape[-1] and row.ndim <= rank:
            own = {"weight": _tensor(weight.T), "bias": _tensor(row.reshape(-1))}
            slots["bias"] = Slot(after, at, row.shape)
            return _linear(own, node, Place((node, after), slots))
    return _linear({"weight": _tensor(weight.T), "bias": None}, node, Place((node,), slots))


def _linear(own: Mapping[str, Tensor | None], node: ir.Node, place: Place) -> Lowered:
    operator = Operator(torch.ops.aten.linear.default, {"input": Input(0)}, own, kind=node.op_type)
    return Lowered(operator, (node.inputs[0],), place)


def _norm(node: ir.Node, a: Attributes, known: OnnxGraph) -> Lowered | None:
    reads = [node.inputs[0]]
    names = {"weight": 1, "bias": 2, "running_mean": 3, "running_var": 4}
    found = _own(node, known, names, reads)
    others = any(value.uses() or value.is_graph_output() for value in node.outputs[1:])
    if found is None or not a.get("spatial", 1) or others:
        return None
    own, given, slots = found
    # What ONNX calls momentum is the share of the old value; torch's is that of the new one.
    training = bool(a.get("training_mode")) or len([o for o in node.outputs if o.name]) > 1
    args = {
        "input": Input(0),
        **given,
        "training": training,
        "momentum": round(1 - a.get("momentum", 0.9), 6),
    }
    args |= {"eps": a.get("epsilon", 1e-5), "cudnn_enabled": False}
    buffers = {name: t.data if t is not None and name.startswith("running") else t for name, t in own.items()}
    operator = Operator(torch.ops.aten.batch_norm.default, args, buffers, kind=node.op_type)
    return Lowered(operator, tuple(reads), Place((node,), slots))


def _spelt(node: ir.Node, known: OnnxGraph) -> Lowered | None:
    """``y = s·x + t`` by channels, as products and sums with constants in a row."""
    step = _step(node, None, known)
    if step is None:
        return None
    first, nodes, kinds = step[0], [node], {step[3]}
    scale, shift = step[1], step[2]
    while (after := known.only_reader(nodes[-1].outputs[0])) is not None:
        step = _step(after, nodes[-1].outputs[0], known)
        if step is None or step[0] is not nodes[-1].outputs[0]:
            break
        scale, shift = step[1] * scale, step[1] * shift + step[2]
        nodes.append(after)
        kinds.add(step[3])
    channels = max(scale.size, shift.size)
    if kinds != {"scale", "shift"} or channels < 2 or not {scale.size, shift.size} <= {1, channels}:
        return None
    dtype = first.dtype.numpy() if first.dtype is not None else np.dtype(np.float32)
    row = [np.broadcast_to(v, (channels,)).astype(dtype) for v in (scale, shift)]
    own = {
        "weight": _tensor(row[0]),
        "bias": _tensor(row[1]),
        "running_mean": torch.from_numpy(np.zeros(channels, dtype)),
        "running_var": torch.from_numpy(np.ones(channels, dtype)),
    }
    args = {"input": Input(0), "training": False, "momentum": 0.0, "eps": 0.0, "cudnn_enabled": False}
    kind = "+".join(each.op_type for each in nodes)
    operator = Operator(torch.ops.aten.batch_norm.default, args, own, kind=kind)
    place = Place(tuple(nodes), {}, first.name or "", known.rank(first) or 0)
    return Lowered(operator, (first,), place)


def _step(
    node: ir.Node, x: ir.Value | None, known: OnnxGraph
) -> tuple[ir.Value, np.ndarray, np.ndarray, str] | None:
    """A product or a sum of a value with a constant for each channel: the value, its scale and its shift."""
    if node.op_type not in ARITHMETIC or node.domain not in STANDARD or len(node.inputs) != 2:
        return None
    constants = [known.constant(value) for value in node.inputs]
    if (constants[0] is None) == (constants[1] is None):
        return None
    at = 0 if constants[0] is None else 1
    value, array = node.inputs[at], constants[1 - at]
    assert array is not None
    rank = known.rank(value if x is None else x)
    if array.dtype.kind != "f" or value is None or rank is None or rank < 2 or array.ndim > rank:
        return None
    full = (1,) * (rank - array.ndim) + array.shape
    if any(n != 1 for axis, n in enumerate(full) if axis != 1):
        return None
    numbers, one, zero = array.reshape(-1).astype(np.float64), np.ones(1), np.zeros(1)
    match node.op_type:
        case "Mul":
            return value, numbers, zero, "scale"
        case "Div" if at == 0 and numbers.all():
            return value, 1 / numbers, zero, "scale"
        case "Add":
            return value, one, numbers, "shift"
        case "Sub":
            return value, one if at == 0 else -one, -numbers if at == 0 else numbers, "shift"
    return None


MAKERS = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _norm,
}

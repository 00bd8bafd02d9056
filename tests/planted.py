"""Faults that are planted into ONNX models: what a check must find, and the layer that it must name."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

Weights = dict[str, Any]
_AFFINE = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_NORMS = {"BatchNormalization", "LayerNormalization", "GroupNormalization", "InstanceNormalization"}


@dataclass(frozen=True)
class Fault:
    """What was done, to which node, and the module whose weights that reads."""

    kind: str
    node: str
    module: str


def _weights(proto: Any) -> Weights:
    return {each.name: each for each in proto.graph.initializer}


def _put(proto: Any, node: Any, slot: int, values: np.ndarray) -> None:
    """A weight of a node's own: another node may read the old one."""
    name = f"{node.input[slot].rpartition('.')[0]}.{node.name}_planted{slot}"
    proto.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
    node.input[slot] = name


def _array(proto: Any, name: str) -> np.ndarray:
    return numpy_helper.to_array(_weights(proto)[name])


def _attribute(node: Any, name: str) -> Any:
    return next((each for each in node.attribute if each.name == name), None)


def zero_channel(proto: Any, node: Any, draw: random.Random) -> bool:
    if node.op_type not in _AFFINE or node.input[1] not in _weights(proto):
        return False
    values = _array(proto, node.input[1]).copy()
    if values.ndim < 2:
        return False
    axis = _output_axis(node)
    index: list[Any] = [slice(None)] * values.ndim
    index[axis] = draw.randrange(values.shape[axis])
    if not values[tuple(index)].any():
        return False
    values[tuple(index)] = 0
    _put(proto, node, 1, values)
    return True


def _output_axis(node: Any) -> int:
    if node.op_type == "Gemm":
        transposed = _attribute(node, "transB")
        return 0 if transposed is not None and transposed.i else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": -1}[str(node.op_type)]


def swap_affine(proto: Any, node: Any, draw: random.Random) -> bool:
    """γ and β."""
    if node.op_type not in _NORMS or len(node.input) < 3:
        return False
    node.input[1], node.input[2] = node.input[2], node.input[1]
    return True


def change_eps(proto: Any, node: Any, draw: random.Random) -> bool:
    if node.op_type not in _NORMS:
        return False
    attribute = _attribute(node, "epsilon")
    if attribute is None:
        node.attribute.append(onnx.helper.make_attribute("epsilon", 1e-3))
    else:
        attribute.f = 1e-3 if attribute.f < 5e-4 else 1e-5
    return True


def drop_bias(proto: Any, node: Any, draw: random.Random) -> bool:
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or len(node.input) < 3 or not node.input[2]:
        return False
    if node.input[2] not in _weights(proto) or not _array(proto, node.input[2]).any():
        return False
    del node.input[2]
    return True


def shift_pad(proto: Any, node: Any, draw: random.Random) -> bool:
    """The same size, one row further up."""
    pads = _attribute(node, "pads")
    if node.op_type not in ("Conv", "MaxPool", "AveragePool") or pads is None:
        return False
    rank = len(pads.ints) // 2
    axis = rank - 1
    if not pads.ints[rank + axis]:
        return False
    pads.ints[axis] += 1
    pads.ints[rank + axis] -= 1
    return True


def transpose_axes(proto: Any, node: Any, draw: random.Random) -> bool:
    """Height and width of a square kernel, or rows and columns of a square matrix."""
    if node.op_type not in _AFFINE or node.input[1] not in _weights(proto):
        return False
    values = _array(proto, node.input[1])
    if values.ndim < 2 or values.shape[-1] != values.shape[-2] or values.shape[-1] < 2:
        return False
    turned = np.swapaxes(values, -1, -2)
    if np.array_equal(turned, values):
        return False
    _put(proto, node, 1, turned)
    return True


KINDS: dict[str, Callable[[Any, Any, random.Random], bool]] = {
    "a weight channel zeroed": zero_channel,
    "γ and β swapped": swap_affine,
    "eps changed": change_eps,
    "a bias dropped": drop_bias,
    "a pad changed": shift_pad,
    "axes transposed": transpose_axes,
}


def plant(
    content: bytes, kind: str, draw: random.Random, owners: Mapping[str, str] | None = None
) -> tuple[bytes, Fault] | None:
    """A copy of a model with a fault of a kind at a node drawn at random; None if no node can have it.

    Args:
        content: the file.
        kind: of `KINDS`.
        draw: what the node is drawn from.
        owners: the module of each node, by `owners_of`; else it is told by the names of the node's weights.
    """
    proto = onnx.load_from_string(content)
    nodes = list(proto.graph.node)
    draw.shuffle(nodes)
    for node in nodes:
        module = next(_modules(proto, node), "") if owners is None else owners[node.name]
        if KINDS[kind](proto, node, draw):
            return proto.SerializeToString(), Fault(kind, node.name, module)
    return None


def owners_of(content: bytes, paths: Collection[str]) -> dict[str, str]:
    """The module of each node of a file that was exported with its debug info.

    Args:
        content: the file.
        paths: of the model's modules: what stands deeper is an operator.
    """
    owners = {}
    for node in onnx.load_from_string(content).graph.node:
        held = {each.key: each.value for each in node.metadata_props}
        scopes = ast.literal_eval(held.get("pkg.torch.onnx.name_scopes", "['']"))
        path = next((name for name in reversed(scopes[:-1]) if name.partition("#")[0] in paths), "")
        owners[node.name] = path.partition("#")[0]
    return owners


def _modules(proto: Any, node: Any) -> Iterator[str]:
    weights = _weights(proto)
    return (name.rpartition(".")[0] for name in node.input if name in weights)

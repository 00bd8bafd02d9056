"""Small ONNX files, written node by node: those that must fold, and twins that must not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Line = tuple[str, Sequence[str], Sequence[str], Mapping[str, Any]]
"""A node: its type, what it reads, what it returns, its attributes."""


class Draw:
    """Seasoned numbers, the same on every run."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)

    def weight(self, *shape: int) -> np.ndarray:
        """Around zero."""
        return self._random.normal(size=shape).astype(np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))

    def norm(self, name: str, channels: int) -> dict[str, np.ndarray]:
        """γ of both signs, β, μ away from 0, σ² away from 1."""
        draw = self._random
        gamma = draw.uniform(0.5, 1.5, channels) * np.where(np.arange(channels) % 3 == 1, -1, 1)
        values = (
            gamma,
            draw.normal(size=channels),
            draw.normal(size=channels) + 0.5,
            draw.uniform(0.3, 3, channels),
        )
        return {f"{name}.{key}": v.astype(np.float32) for key, v in zip("gbmv", values, strict=True)}


def norm(x: str, y: str, name: str, **attributes: Any) -> Line:
    """A BatchNormalization of `Draw.norm`'s numbers."""
    return (
        "BatchNormalization",
        [x, *(f"{name}.{key}" for key in "gbmv")],
        [y],
        {"name": name, **attributes},
    )


def model(
    lines: Sequence[Line],
    weights: Mapping[str, np.ndarray],
    inputs: Mapping[str, Sequence[Any]],
    outputs: Sequence[str] = ("y",),
    *,
    opset: int = 17,
    ir_version: int = 8,
    given: Sequence[str] = (),
    functions: Sequence[Any] = (),
    domains: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """A model; *given* names initializers that are inputs too."""
    nodes = [
        helper.make_node(op, list(reads), list(makes), **{"name": makes[0], **attributes})
        for op, reads, makes, attributes in lines
    ]
    taken = [helper.make_tensor_value_info(k, TensorProto.FLOAT, list(s)) for k, s in inputs.items()]
    taken += [helper.make_tensor_value_info(k, TensorProto.FLOAT, list(weights[k].shape)) for k in given]
    made = [helper.make_tensor_value_info(k, TensorProto.FLOAT, None) for k in outputs]
    held = [numpy_helper.from_array(np.asarray(array), key) for key, array in weights.items()]
    imports = [helper.make_opsetid(k, v) for k, v in {"": opset, **(domains or {})}.items()]
    proto = helper.make_model(
        helper.make_graph(nodes, "graph", taken, made, held),
        opset_imports=imports,
        ir_version=ir_version,
        functions=list(functions),
    )
    known = onnx.shape_inference.infer_shapes(proto).graph.output
    for value, found in zip(proto.graph.output, known, strict=True):
        ranked = found.type.tensor_type.HasField("shape")
        value.CopyFrom(
            found if ranked else helper.make_tensor_value_info(value.name, TensorProto.FLOAT, list("NCHW"))
        )
    return proto


def written(proto: onnx.ModelProto, folder: Path, name: str = "model.onnx", **how: Any) -> Path:
    """The model as a file."""
    path = folder / name
    onnx.save(proto, path, **how)
    return path


def types(path: Path) -> list[str]:
    """The types of a file's nodes, in order."""
    return [node.op_type for node in onnx.load(path).graph.node]

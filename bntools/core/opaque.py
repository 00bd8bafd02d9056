"""An ONNX operator that bntools knows nothing of: run by ONNX's own reference, one call as seen from outside.

Whatever it does inside, a capture sees one operator that reads and returns values, through which no map goes.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bntools.errors import CaptureError, first_line

_LIBRARY = torch.library.Library("bntools", "FRAGMENT")
_LIBRARY.define("onnx(Tensor[] inputs, str node) -> Tensor[]")

LARGEST = 1 << 28
"""As many numbers may a value have that is made from nothing but its shape."""


def packed(
    node: Any, reads: Sequence[str], opsets: Mapping[str, int], functions: Sequence[Any], ir_version: int
) -> str:
    """A node as a model of its own, in letters.

    Args:
        node: as protobuf.
        reads: the names of the values that it reads, those that its subgraphs read from outside among them.
        opsets: the versions of the operators, by domain.
        functions: of the model, as protobuf.
        ir_version: of the model.
    """
    from onnx import TensorProto, helper

    def values(names: Sequence[str]) -> list[Any]:  # the reference looks at no types
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name]

    graph = helper.make_graph([node], "node", values(reads), values(node.output))
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    model = helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=ir_version)
    return base64.b64encode(model.SerializeToString()).decode()


def run_packed(node: str, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run what `packed` made; it sees one operator."""
    return list(torch.ops.bntools.onnx(list(inputs), node))


@lru_cache(maxsize=4096)
def _evaluator(node: str) -> Any:
    import onnx
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(onnx.load_from_string(base64.b64decode(node)))


def _run(inputs: list[Tensor], node: str) -> list[Tensor]:
    try:
        evaluator = _evaluator(node)
        feeds = {
            name: tensor.detach().cpu().numpy()
            for name, tensor in zip(evaluator.input_names, inputs, strict=True)
        }
        with np.errstate(all="ignore"):  # what is not finite in torch is not finite here
            outputs = evaluator.run(None, feeds)
        return [torch.from_numpy(np.array(out, copy=True)) for out in outputs]
    except Exception as error:  # whatever numpy raises there
        raise CaptureError(
            f"ONNX's reference does not run {_named(node)}: {first_line(error)}",
            todo="fold the PyTorch model that it was exported from",
        ) from error


def _named(node: str) -> str:
    import onnx

    (only,) = onnx.load_from_string(base64.b64decode(node)).graph.node
    return ascii(f"{only.op_type} {only.name or only.output[0]}")[1:-1][:120]


_LIBRARY.impl("onnx", _run, "CompositeExplicitAutograd")

"""What is known of the values of an ONNX graph before anything runs: which are constant, who reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bntools.core.onnxfile import STANDARD
from bntools.core.onnxnames import shown
from bntools.core.onnxread import Source, graphs_of, loops, nodes_inside
from bntools.core.onnxshapes import DTYPES, OPSET
from bntools.core.opaque import LARGEST, packed, run_packed
from bntools.errors import CaptureError, SourceError, in_a_line

if TYPE_CHECKING:
    import onnx_ir as ir

_RANDOM = ("Random", "Bernoulli", "Multinomial")
_QUANTISED = ("DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear")
_GROWS = frozenset({"ConstantOfShape", "Expand", "Tile", "Range", "Pad", "Resize", "Upsample", "OneHot"})


class OnnxGraph:
    """The graph of a file, its constants worked out.

    Args:
        source: the file.

    Raises:
        CaptureError: if a constant is too large, or of a type that torch and numpy do not share.
    """

    def __init__(self, source: Source) -> None:
        self.source, self.graph = source, source.model.graph
        self._constants: dict[ir.Value, np.ndarray] = {}
        self._functions = _functions(source.model)
        self.alive = self._alive()
        self.varying: list[ir.Node] = []
        for node in self.alive:
            if loops(node):
                raise self.refused(node, "a loop may run without end")
        for node in self.graph:
            if node in self.alive and self._is_constant(node):
                self._evaluate(node)
            elif node in self.alive:
                self.varying.append(node)

    def constant(self, value: ir.Value | None) -> np.ndarray | None:
        """The numbers of a value that no input has a say in."""
        if value is None:
            return None
        if (
            value not in self._constants
            and value.is_initializer()
            and value.name not in self.source.overridable
        ):
            self._constants[value] = self.array_of(value)
        return self._constants.get(value)

    def array_of(self, value: ir.Value) -> np.ndarray:
        """The numbers of an initializer."""
        held = value.const_value
        if held is None:
            raise self._strange(f"{ascii(value.name)[:80]} is an initializer without values")
        try:
            array = np.asarray(held.numpy())
        except Exception as error:  # more or fewer bytes than its shape takes
            raise SourceError(
                f"{self.source.path}: the numbers of {ascii(value.name)[:80]} are damaged",
                todo="export it again",
            ) from error
        if array.dtype.kind not in "fiub":
            raise self._strange(
                f"{ascii(value.name)[:80]} is {held.dtype}, a type that torch and numpy do not share"
            )
        return array

    def check_type(self, value: ir.Value, what: str) -> None:
        """Refuse sequences, texts and types that torch and numpy do not share."""
        if torch_type(value) is None:
            raise self._strange(
                f"{what} {ascii(value.name)[:80]} is no tensor of a type that torch and numpy share"
            )

    def _strange(self, what: str) -> CaptureError:
        return CaptureError(
            f"{self.source.path}: {what}", todo="fold the PyTorch model that it was exported from"
        )

    def rank(self, value: ir.Value | None) -> int | None:
        """How many axes a value has."""
        array = self.constant(value)
        if array is not None:
            return array.ndim
        return self.source.kinds.get(value.name or "", (None, 0))[0] if value is not None else None

    def only_reader(self, value: ir.Value) -> ir.Node | None:
        """The one node that reads a value, if nobody else does."""
        uses = list(value.uses())
        if len(uses) != 1 or value.is_graph_output() or uses[0].node.graph is not self.graph:
            return None
        return uses[0].node

    def reads(self, node: ir.Node) -> list[ir.Value]:
        """The values of this graph that a node reads, in its subgraphs too."""
        found = [value for value in node.inputs if value is not None]
        for each in nodes_inside(node):
            found += [v for v in each.inputs if v is not None and v.graph is self.graph]
        for graph in graphs_of(node):
            found += [v for v in graph.outputs if v.graph is self.graph]
        return list(dict.fromkeys(found))

    def attributes(self, node: ir.Node) -> dict[str, Any]:
        """The attributes of a node that are plain, with the version of the operator and more."""
        import onnx_ir as ir

        plain = (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING)
        listed = (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS)
        found: dict[str, Any] = {
            name: list(held.value) if held.type in listed else held.value
            for name, held in node.attributes.items()
            if not held.is_ref() and held.type in (*plain, *listed)
        }
        count = len([value for value in node.outputs if value.name])
        return {**found, OPSET: self.source.opset, "op": node.op_type, "outputs": count}

    def packed(self, node: ir.Node) -> str:
        """A node for ONNX's reference."""
        import onnx_ir as ir

        proto = ir.to_proto(node)
        reads = [value.name or "" for value in self.reads(node)]
        return packed(
            proto, reads, self.source.model.opset_imports, self._functions, self.source.model.ir_version or 8
        )

    def refused(self, node: ir.Node, error: Exception | str) -> CaptureError:
        """The error for a node that is not understood."""
        why = in_a_line(error) if isinstance(error, Exception) else error
        why = error.message if isinstance(error, CaptureError) else why
        return CaptureError(
            f"{self.source.path}: {shown(node)} is not understood: {why[:160]}",
            todo="fold the PyTorch model that it was exported from",
        )

    def _alive(self) -> set[ir.Node]:
        """The nodes that an output depends on."""
        alive: set[ir.Node] = set()
        todo = [value.producer() for value in self.graph.outputs]
        while todo:
            node = todo.pop()
            if node is not None and node not in alive:
                alive.add(node)
                todo += [value.producer() for value in self.reads(node)]
        return alive

    def _is_constant(self, node: ir.Node) -> bool:
        if node.op_type.startswith(_RANDOM) or node.op_type in _QUANTISED or node.domain not in STANDARD:
            return False
        return all(array is not None for array in self._arrays(node))

    def _arrays(self, node: ir.Node) -> list[np.ndarray | None]:
        """What a node reads, where that is constant; of what it is to be like, the type is enough."""
        reads = self.reads(node)
        arrays = [self.constant(value) for value in reads]
        if node.op_type == "CastLike" and len(reads) == 2:
            kind = DTYPES.get(self.source.kinds.get(reads[1].name or "", (0, 0))[1])
            arrays[1] = None if kind is None else torch.zeros((), dtype=kind).numpy()
        return arrays

    def _evaluate(self, node: ir.Node) -> None:
        arrays = [array for array in self._arrays(node) if array is not None]
        if node.op_type in _GROWS:
            self._check_size(node, arrays)
        try:
            made = run_packed(self.packed(node), [torch.from_numpy(np.array(each)) for each in arrays])
        except (CaptureError, TypeError) as error:
            raise self.refused(node, error) from error
        self._constants.update(zip(node.outputs, (t.numpy() for t in made), strict=False))

    def _check_size(self, node: ir.Node, arrays: Sequence[np.ndarray]) -> None:
        """A few bytes can ask for more numbers than a machine holds."""
        asked = [
            float(np.prod(np.abs(a.astype(np.float64)))) for a in arrays if a.dtype.kind in "iu" and a.size
        ]
        size = max([*(float(a.size) for a in arrays), 1.0])
        if node.op_type == "Range":
            start, limit, delta = (float(a) for a in arrays)
            asked = [abs(limit - start) / abs(delta or 1.0)]
        if max([*asked, 0.0]) * (size if node.op_type == "Tile" else 1.0) > LARGEST:
            raise CaptureError(
                f"{self.source.path}: {shown(node)} makes more than {LARGEST} numbers of a constant",
                todo="export it again",
            )


def _functions(model: ir.Model) -> list[Any]:
    import onnx_ir as ir

    return [ir.to_proto(function) for function in model.functions.values()]


def torch_type(value: ir.Value) -> torch.dtype | None:
    """The type of a tensor, None for what is none or of a type that torch and numpy do not share."""
    import onnx_ir as ir

    known = value.dtype is not None and isinstance(value.type, ir.TensorType)
    return DTYPES.get(int(value.dtype)) if known and value.dtype is not None else None

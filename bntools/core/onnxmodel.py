"""An ONNX graph as a torch program: a module for each node, under its name, that runs and can be folded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn

from bntools.core.onnxfile import NORM, STANDARD
from bntools.core.onnxgraph import OnnxGraph
from bntools.core.onnxhosts import Lowered, Place, Slot, lowered
from bntools.core.onnxnames import as_argument, as_path, path_of, shown, site_of
from bntools.core.onnxnode import Constant, Node
from bntools.core.onnxops import ARITHMETIC, RULES
from bntools.core.onnxread import Source, graphs_of, norms_inside, read_onnx
from bntools.core.onnxwindows import padded
from bntools.core.opaque import packed
from bntools.core.plan import Refusal
from bntools.core.reasons import Reason
from bntools.errors import CaptureError

if TYPE_CHECKING:
    import onnx_ir as ir

META = "bntools.onnx"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a program comes from.

    Args:
        source: the file.
        places: by the path of its operator, what it stands for in the file.
        values: by the name of its node in the program, the value of the file.
        refusals: BatchNorms that the program has no call for.
    """

    source: Source
    places: Mapping[str, Place]
    values: Mapping[str, ir.Value]
    refusals: tuple[Refusal, ...] = field(default=())

    def __deepcopy__(self, memo: dict[int, Any]) -> Origin:
        """A copy of a program comes from the same file."""
        return self


def load_onnx(path: str | Path) -> fx.GraphModule:
    """Read an ONNX file as a module that computes what it computes.

    Errors of `bntools.core.onnxread.read_onnx`, and:

    Raises:
        CaptureError: if something in it has no counterpart in torch.
    """
    return program_of(read_onnx(Path(path)))


def program_of(source: Source) -> fx.GraphModule:
    """What a file that has been read computes; errors as for `load_onnx`."""
    return _Builder(OnnxGraph(source)).build()


def origin_of(model: nn.Module) -> Origin | None:
    """Where a program comes from, if that is an ONNX file."""
    found = model.meta.get(META) if isinstance(model, fx.GraphModule) else None
    return found if isinstance(found, Origin) else None


class _Builder:
    def __init__(self, known: OnnxGraph) -> None:
        self.known, self.source, self.graph = known, known.source, known.graph
        self.program = fx.Graph()
        self.held: dict[str, nn.Module] = {}
        self.places: dict[str, Place] = {}
        self.nodes: dict[ir.Value, fx.Node] = {}
        self.taken: Counter[str] = Counter()

    def build(self) -> fx.GraphModule:
        """The whole of it."""
        for value in self.source.inputs:
            self.known.check_type(value, "input")
            self.nodes[value] = self.program.placeholder(as_argument(value.name or "input"))
        for value in self.graph.inputs:
            if value.name in self.source.overridable:
                self._given(value)
        for value in self.graph.outputs:
            self.known.check_type(value, "output")
        done: set[ir.Node] = set()
        for node in self.known.varying:
            if node in done:
                continue
            found = self._lowered(node)
            if found is not None:
                self._place(found)
                done.update(found.place.nodes)
            else:
                self._plain(node)
        outputs = [self._node_of(value) for value in self.graph.outputs]
        self.program.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        module = fx.GraphModule(self.held, self.program, "OnnxProgram").eval()
        values = {node.name: value for value, node in self.nodes.items()}
        module.meta[META] = Origin(self.source, self.places, values, tuple(self._unanswered()))
        return module

    def _lowered(self, node: ir.Node) -> Lowered | None:
        if node.domain not in STANDARD:
            return None
        try:
            return lowered(node, self.known.attributes(node), self.known)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise self.known.refused(node, error) from error

    def _place(self, found: Lowered) -> None:
        """A node with weights, and those that belong to it."""
        path = self._unique(path_of(found.place.nodes[0]))
        self.held[path], self.places[path] = found.operator, found.place
        reads = [self._node_of(value) for value in found.reads if value is not None]
        if found.edges is not None:
            edges = self._unique(f"{path}#pad")
            self.held[edges] = Node(padded, found.edges, {}, 1, "", [0])
            reads[0] = self.program.call_module(edges, (reads[0],))
        self.nodes[found.place.nodes[-1].outputs[0]] = self.program.call_module(path, tuple(reads))

    def _plain(self, node: ir.Node) -> None:
        """Any other node."""
        gaps = any(not a.name and b.name for a, b in zip(node.outputs, node.outputs[1:], strict=False))
        rule = RULES.get(node.op_type) if node.domain in STANDARD and not gaps else None
        nested = bool(graphs_of(node))
        reads = self.known.reads(node) if nested else list(node.inputs)
        own = {at: array for at, v in enumerate(reads) if (array := self.known.constant(v)) is not None}
        given = tuple(
            self._node_of(v) if v is not None else None for at, v in enumerate(reads) if at not in own
        )
        scalars = [at for at in own if node.op_type in ARITHMETIC and self._is_number(node.inputs, at)]
        distinct = [at for at, v in enumerate(reads) if v is not None and v not in reads[:at]]
        attributes = self.known.attributes(node)
        path = self._unique(path_of(node))
        self.held[path] = Node(rule, attributes, own, len(reads), self.known.packed(node), distinct, scalars)
        if not nested:
            slots = {f"input{at}": Slot(node, at, array.shape) for at, array in own.items()}
            self.places[path] = Place((node,), slots)
        self._returned(node, self.program.call_module(path, given))

    def _is_number(self, values: Sequence[ir.Value | None], at: int) -> bool:
        """Whether a constant is one number, which gives the other value neither shape nor type."""
        array, rank = self.known.constant(values[at]), self.known.rank(values[1 - at])
        return array is not None and array.size == 1 and array.dtype.kind == "f" and array.ndim <= (rank or 0)

    def _returned(self, node: ir.Node, call: fx.Node) -> None:
        named = [value for value in node.outputs if value.name]
        if len(named) == 1:
            self.nodes[named[0]] = call
            return
        for at, value in enumerate(named):
            self.nodes[value] = self.program.call_function(_item, (call, at))

    def _given(self, value: ir.Value) -> None:
        """A constant that a caller may replace is no constant to those that read it."""
        import onnx

        node = onnx.helper.make_node("Identity", ["x"], ["y"])
        model = self.source.model
        text = packed(node, ["x"], model.opset_imports, [], model.ir_version or 8)
        path = self._unique(as_path(value.name or "given"))
        self.held[path] = Node(None, {"op": "Identity"}, {0: self.known.array_of(value)}, 1, text, [0])
        self.nodes[value] = self.program.call_module(path, ())

    def _node_of(self, value: ir.Value) -> fx.Node:
        """The node that makes a value; a constant that somebody reads as a value gets one."""
        if value not in self.nodes:
            array = self.known.constant(value)
            if array is None:
                raise CaptureError(
                    f"{self.source.path}: nobody makes {ascii(value.name)[:80]}", todo="export it again"
                )
            path = self._unique(as_path(value.name or "constant"))
            self.held[path] = Constant(torch.from_numpy(np.array(array)))
            self.nodes[value] = self.program.call_module(path, ())
        return self.nodes[value]

    def _unique(self, path: str) -> str:
        self.taken[path] += 1
        return path if self.taken[path] == 1 else self._unique(f"{path}#{self.taken[path]}")

    def _unanswered(self) -> Iterator[Refusal]:
        """The BatchNorms that the program does not call."""
        paths = {place.nodes[0]: path for path, place in self.places.items()}
        for node in self.graph:
            if node.op_type != NORM or node.domain not in STANDARD:
                continue
            if node not in self.known.alive:
                yield Refusal(site_of(node), Reason.UNREACHED, "nothing that the model returns depends on it")
            elif isinstance(self.held.get(paths.get(node, "")), Node):
                if self.known.attributes(node).get("training_mode"):
                    yield Refusal(site_of(node), Reason.TRAINING, "it works in training mode")
                else:
                    detail = "it normalises by numbers of another type, or by other axes"
                    yield Refusal(site_of(node), Reason.UNRECOGNISED, detail)
        for node, holder in norms_inside(self.graph):
            yield Refusal(site_of(node), Reason.UNRECOGNISED, f"it stands in a subgraph of {shown(holder)}")


def _item(values: Sequence[Any], at: int) -> Any:
    return values[at]

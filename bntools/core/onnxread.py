"""An ONNX file as a graph that can be looked at and changed, read without trusting it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bntools.core.external import ensure_weights, read_proto
from bntools.core.onnxfile import NORM, STANDARD, opset_of
from bntools.errors import CaptureError, SourceError, first_line

if TYPE_CHECKING:
    import onnx_ir as ir

_MOST = 100_000
_OLDEST = 7
"""Before that, operators broadcast by attributes."""


@dataclass(frozen=True, slots=True)
class Source:
    """What an ONNX file holds.

    Args:
        path: of the file.
        model: the graph, its weights in memory.
        external: whether the weights lay beside the file.
        kinds: how many axes each value has and ONNX's number of its type, by its name, where that follows.
        opset: the version of its operators.
        overridable: the initializers that are graph inputs too, so that a caller may give others.
        notes: what was done to it on the way in.
    """

    path: Path
    model: ir.Model
    external: bool
    kinds: Mapping[str, tuple[int, int]]
    opset: int
    overridable: frozenset[str] = frozenset()
    notes: tuple[str, ...] = field(default=())

    @property
    def inputs(self) -> list[ir.Value]:
        """What a caller gives: the inputs that are no initializers."""
        return [value for value in self.model.graph.inputs if not value.is_initializer()]


def read_onnx(path: Path) -> Source:
    """Read an ONNX file with its weights, check it, and take apart the functions that hold a BatchNorm.

    Raises:
        SourceError: if it is damaged or not valid.
        UnsafeError: if its weights are said to lie anywhere but beside it.
        CaptureError: if it is older than bntools understands.
    """
    import onnx_ir as ir

    external = ensure_weights(path)
    proto = read_proto(path)
    if not all(isinstance(name, str) for name in _names(proto)):
        raise SourceError(f"{path}: a damaged ONNX file: a name in it is no text", todo="export it again")
    if not proto.graph.output:
        raise SourceError(f"{path}: an ONNX model that returns nothing", todo="export it again")
    if opset_of(proto) < _OLDEST:
        raise CaptureError(
            f"{path}: opset {opset_of(proto)} is older than {_OLDEST}, the oldest that is understood",
            todo="convert it with onnx.version_converter",
        )
    _ensure_small(proto, path)
    proto, notes = _inlined(_filled(proto, path), path)
    given = {each.name for each in proto.graph.input}
    # Before version 4 of the format every initializer had to stand among the inputs, and none could be given.
    overridable = {i.name for i in proto.graph.initializer} & given if proto.ir_version >= 4 else set()
    if overridable:
        some = ", ".join(sorted(overridable)[:3])
        notes.append(f"a caller can give other values of {some}: what reads them is left as it is")
    try:
        model = ir.from_proto(proto)
    except Exception as error:
        raise SourceError(
            f"{path}: a damaged ONNX file: {first_line(error)}", todo="export it again"
        ) from error
    return Source(
        path, model, bool(external), _kinds(proto), opset_of(proto), frozenset(overridable), tuple(notes)
    )


def norms_inside(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Node]]:
    """The BatchNorms in subgraphs, each with the node of *graph* that holds it."""
    for node in graph:
        for each in nodes_inside(node):
            if each.op_type == NORM and each.domain in STANDARD:
                yield each, node


def loops(node: ir.Node) -> bool:
    """Whether a node may never end."""
    return any(each.op_type == "Loop" for each in (node, *nodes_inside(node)))


def nodes_inside(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes of its subgraphs, and of theirs."""
    for graph in graphs_of(node):
        yield from graph.all_nodes()


def graphs_of(node: ir.Node) -> list[ir.Graph]:
    """The subgraphs of a node."""
    import onnx_ir as ir

    found: list[ir.Graph] = []
    for held in node.attributes.values():
        if held.is_ref():
            continue
        if held.type == ir.AttributeType.GRAPH:
            found.append(held.value)
        elif held.type == ir.AttributeType.GRAPHS:
            found += held.value
    return found


def _names(proto: Any) -> Iterator[object]:
    """Whatever protobuf cannot read as text it hands out as bytes."""
    for node in (*proto.graph.node, *(each for function in proto.functions for each in function.node)):
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
    for held in (*proto.graph.initializer, *proto.graph.input, *proto.graph.output, *proto.functions):
        yield held.name


def _filled(proto: Any, path: Path) -> Any:
    """With the weights in memory; valid by ONNX's own check."""
    import onnx

    try:
        onnx.load_external_data_for_model(proto, str(path.parent))
        onnx.checker.check_model(str(path))
    except Exception as error:
        raise SourceError(
            f"{path}: not a valid ONNX model: {first_line(error)}", todo="export it again"
        ) from error
    return proto


def _ensure_small(proto: Any, path: Path) -> None:
    """A function that calls another twice, forty times over, is a short file and an endless graph."""
    bodies = {(f.domain, f.name): [(n.domain, n.op_type) for n in f.node] for f in proto.functions}
    sizes: dict[tuple[str, str], int] = {}
    todo = list(bodies)
    for _ in range(len(bodies) + 1):  # what calls itself never gets a size
        todo = [name for name in todo if name not in sizes]
        for name in todo:
            if all(call in sizes for call in bodies[name] if call in bodies):
                sizes[name] = sum(sizes.get(call, 1) for call in bodies[name])
    looping = [name for name, calls in bodies.items() if ("", "Loop") in calls]
    if looping:
        raise SourceError(
            f"{path}: its function {ascii(looping[0][1])[:80]} has a loop", todo="export it without"
        )
    if todo := [name for name in bodies if sizes.get(name, _MOST) >= _MOST]:
        raise SourceError(
            f"{path}: its function {ascii(todo[0][1])[:80]} calls itself, or others without end",
            todo="export it without",
        )


def _inlined(proto: Any, path: Path) -> tuple[Any, list[str]]:
    """Without the functions that hold a BatchNorm, in themselves or in others that they call."""
    from onnx import inliner

    holds: set[tuple[str, str]] = set()
    while True:
        more = {
            (f.domain, f.name)
            for f in proto.functions
            if any(n.op_type == NORM or (n.domain, n.op_type) in holds for n in f.node)
        }
        if more == holds:
            break
        holds = more
    if not holds:
        return proto, []
    try:
        proto = inliner.inline_selected_functions(proto, sorted(holds))
    except Exception as error:
        raise SourceError(
            f"{path}: its functions cannot be taken apart: {first_line(error)}", todo="export it without"
        ) from error
    names = ", ".join(sorted(name for _, name in holds)[:3])
    return proto, [f"functions that hold a BatchNorm were taken apart: {names}"]


def _kinds(proto: Any) -> dict[str, tuple[int, int]]:
    """What follows; where nothing does, a model can be understood as well, only less of it."""
    import onnx

    if sum(len(each.raw_data) for each in proto.graph.initializer) < 1 << 30:
        with suppress(Exception):  # it is a help and no check
            proto = onnx.shape_inference.infer_shapes(proto)
    graph = proto.graph
    return {
        value.name: (len(value.type.tensor_type.shape.dim), value.type.tensor_type.elem_type)
        for value in (*graph.input, *graph.output, *graph.value_info)
        if value.type.tensor_type.HasField("shape")
    }

"""A captured program as an ONNX model: translated by torch, then checked, named and stripped by us."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bntools.core.axes import BATCH, Axes
from bntools.core.quiet import quiet
from bntools.errors import CaptureError, UsageError, first_line, in_a_line

NORM = "BatchNormalization"
STANDARD = ("", "ai.onnx")
"""How the domain of standard operators is written."""
_TRACE = "pkg.torch.onnx.stack_trace"


@dataclass(frozen=True, slots=True)
class Form:
    """How an ONNX file is to be written.

    Args:
        opset: the version of its operators; the exporter's own choice if None.
        inputs, outputs: names for all of them, in order; those of the program if empty.
        axes: what stays open.
        external: keep the weights in a file beside it; None for where the model is large.
        debug: keep the names of modules and operators on each node.
    """

    opset: int | None = None
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    axes: Axes = field(default_factory=Axes)
    external: bool | None = None
    debug: bool = False


@dataclass(frozen=True, slots=True)
class Graph:
    """What stands in an ONNX model.

    Args:
        nodes: how many of each type, most frequent first.
        size: bytes, with the weights.
        opset: the version of its operators.
        inputs, outputs: with their shapes, as ``x: batch×3×224×224 float``.
    """

    nodes: Mapping[str, int]
    size: int
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def norms(self) -> int:
        """How many BatchNorms it has."""
        return self.nodes.get(NORM, 0)


def translate(program: torch.export.ExportedProgram, form: Form) -> Any:
    """Let torch translate a program; what it says while doing so goes nowhere.

    Returns:
        torch's ``ONNXProgram``.

    Raises:
        CaptureError: if torch refuses, or gives another opset than was asked for.
        UsageError: if there are more or fewer names than inputs or outputs.
    """
    given = len(program.graph_signature.user_inputs)
    for what, names, count in (("inputs", form.inputs, given), ("outputs", form.outputs, None)):
        _check_names(what, names, count)
    try:
        with quiet():
            made = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,  # None prints emoji, and dies where stdout has none
                opset_version=form.opset,
            )
            assert made is not None
            proto = made.model_proto
    except Exception as error:
        raise CaptureError(
            f"torch's ONNX exporter refuses the program: {in_a_line(error)}",
            todo="write to .pt2: bntools fold MODEL -o model.pt2",
        ) from error
    if form.opset is not None and opset_of(proto) != form.opset:  # it logs that, and goes on
        raise CaptureError(
            f"opset: asked for {form.opset}, torch's exporter gives {opset_of(proto)}",
            todo=f"ask for {opset_of(proto)} or a later one, or leave it to the exporter",
        )
    _check_names("outputs", form.outputs, len(proto.graph.output))
    return made


def opset_of(proto: Any) -> int:
    """The version of a model's standard operators."""
    return max((int(each.version) for each in proto.opset_import if each.domain in STANDARD), default=0)


def polish_(proto: Any, form: Form, entries: Mapping[str, str]) -> None:
    """Name open axes, inputs and outputs, take out what names files of whoever exports, put *entries* in.

    Raises:
        CaptureError: if an axis that was asked to stay open did not.
    """
    graph = proto.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    for value in values:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param.isdecimal():  # how the exporter writes an open axis that turned out fixed
                axis.dim_value = int(axis.dim_param)
    symbols = _symbols(graph, form.axes)
    for value in values:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = re.sub(
                    r"[A-Za-z_]\w*", lambda word: symbols.get(word[0], word[0]), axis.dim_param
                )
    _rename(graph, "inputs", graph.input, form.inputs)
    _rename(graph, "outputs", graph.output, form.outputs)
    plain = (*graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output, graph, proto)
    functions = [node for function in proto.functions for node in function.node]
    for held in (*plain, *functions, *proto.functions):
        kept = [] if not form.debug else [each for each in held.metadata_props if each.key != _TRACE]
        kept = [(each.key, each.value) for each in kept]
        del held.metadata_props[:]
        for key, value in kept:
            _put(held, key, value)
    for key, value in entries.items():
        _put(proto, key, value)


def graph_of(proto: Any, size: int) -> Graph:
    """What stands in a model."""
    counted = Counter(node.op_type for node in proto.graph.node)
    return Graph(
        dict(sorted(counted.items(), key=lambda item: (-item[1], item[0]))),
        size,
        opset_of(proto),
        tuple(_described(each) for each in proto.graph.input),
        tuple(_described(each) for each in proto.graph.output),
    )


def ensure_sound(path: Path, proto: Any, norms: int | None) -> None:
    """ONNX's own full check with shape inference, unique names, and no more BatchNorms than there may be.

    Args:
        path: the file, with its weights beside it.
        proto: what stands in it.
        norms: how many BatchNorms the program has, None if nobody knows.

    Raises:
        CaptureError: if something does not hold.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # its own errors, and those of shape inference
        raise CaptureError(
            f"the exported model is not valid ONNX: {first_line(error)}", todo="export with another opset"
        ) from error
    for what, names in (
        ("node", [node.name for node in proto.graph.node if node.name]),
        ("weight", [each.name for each in proto.graph.initializer]),
        ("input", [each.name for each in proto.graph.input]),
        ("output", [each.name for each in proto.graph.output]),
    ):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise CaptureError(f"the exported model has two {what}s of the name {twice[0]!r}")
    left = sum(node.op_type == NORM for node in proto.graph.node)
    if norms is not None and left > norms:
        raise CaptureError(f"the exported model has {left} BatchNorms, its program {norms}")


def _check_names(what: str, names: Sequence[str], count: int | None) -> None:
    """The exporter takes a wrong number of names without a word, and uses what fits."""
    if not names:
        return
    if count is not None and len(names) != count:
        raise UsageError(
            f"{what}: {len(names)} names are given, the model has {count}", todo="name all of them, in order"
        )
    if len(set(names)) < len(names) or not all(names):
        raise UsageError(f"{what}: a name is empty, or given twice", todo="give each its own")


def _rename(graph: Any, what: str, values: Sequence[Any], names: Sequence[str]) -> None:
    new = {each.name: name for each, name in zip(values, names, strict=False)}
    taken = {each.name for each in (*graph.input, *graph.output, *graph.initializer)}
    taken = (taken | {name for node in graph.node for name in node.output}) - new.keys()
    if clash := taken & set(new.values()):
        raise UsageError(f"{what}: {min(clash)!r} is the name of another value", todo="choose another name")
    for node in _nodes(graph):
        for names_of in (node.input, node.output):
            for at, name in enumerate(names_of):
                names_of[at] = new.get(name, name)
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = new.get(value.name, value.name)


def _nodes(graph: Any) -> Iterator[Any]:
    """The nodes of a graph and of those inside them, which read its values by name."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _nodes(inner)


def _symbols(graph: Any, axes: Axes) -> dict[str, str]:
    """The exporter's names of open sizes, with those that they are to have."""
    dims = {each.name: each.type.tensor_type.shape.dim for each in graph.input}
    symbols: dict[str, str] = {}
    for name, asked in axes.named.items():
        for each, shape in dims.items():
            for axis, label in asked.items():
                if name not in ("", each):
                    continue
                if not shape[axis].dim_param:
                    raise CaptureError(
                        f"dynamic: axis {axis} of {each} cannot stay open, the model fixes it at "
                        f"{shape[axis].dim_value}",
                        todo="leave it out, or change the code that asks for its size",
                    )
                symbols.setdefault(shape[axis].dim_param, label)
    first = {shape[0].dim_param for shape in dims.values() if len(shape) and shape[0].dim_param}
    if axes.batch and len(first - symbols.keys()) == 1:
        symbols[next(iter(first - symbols.keys()))] = BATCH
    return symbols


def _put(held: Any, key: str, value: str) -> None:
    entry = held.metadata_props.add()
    entry.key, entry.value = key, value


def _described(value: Any) -> str:
    import onnx

    kind = value.type.tensor_type
    sizes = "×".join(dim.dim_param or str(dim.dim_value) for dim in kind.shape.dim) or "scalar"
    name = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
    return f"{value.name}: {sizes} {name}"

"""The captured program of a model, with a module for each of its operators.

There every call has tensors of its own, nobody asks a module for its weights, and a sum can be taken out.
Find, compute and graft work on it as on any model; what comes out is a graph that ``torch.export`` takes.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn

from bntools.core.axes import Axes
from bntools.core.example import Example
from bntools.core.operator import Input, Operator
from bntools.core.quiet import quiet
from bntools.errors import CaptureError, in_a_line

_BATCH = Axes()

_ALLOCATES = frozenset(
    [
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "batch_norm",
        "linear",
        "matmul",
        "bmm",
        "add",
        "sub",
        "mul",
        "div",
        "cat",
        "relu",
        "silu",
        "gelu",
        "hardswish",
        "hardtanh",
        "leaky_relu",
        "avg_pool2d",
        "max_pool2d",
        "adaptive_avg_pool2d",
        "layer_norm",
        "group_norm",
    ]
)
"""Operators that return memory in which nothing else can look."""


RESERVED = frozenset(dir(fx.GraphModule)) | {
    "args",
    "eps",
    "keys",
    "kind",
    "momentum",
    "own",
    "target",
    "weight",
    "bias",
}
"""Names that a module in a program cannot have, since its parent has something else of that name."""


def exported(model: nn.Module, example: Example, axes: Axes = _BATCH) -> torch.export.ExportedProgram:
    """Export a model, its axes open if the model lets them be.

    Raises:
        CaptureError: if ``torch.export`` refuses it.
        UsageError: if an axis is asked for that there is not.
    """
    dynamic = axes.shapes(model, example)
    with quiet(), torch.no_grad():
        for shapes in (dynamic, None) if dynamic is not None else (None,):
            try:
                return torch.export.export(
                    model, example.args, example.kwargs, dynamic_shapes=shapes, strict=False
                )
            except Exception as error:
                problem = error
    raise CaptureError(
        f"torch.export refuses the model: {in_a_line(problem)}",
        todo="fold the module: -o model.pt, or level='module'",
    ) from problem


def atomised(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """The program as a graph of `Operator` modules, each under the path of the module that called it.

    Every call has copies of the tensors that it reads. What works in place without need does not any more.

    Args:
        program: from `exported`.
    """
    with quiet():
        module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    graph, held = module.graph, dict[str, Any]()
    for node in list(graph.nodes):
        if str(node.target).startswith("aten._assert_") and not node.users:
            graph.erase_node(node)  # what the exporter saw holds for the shapes that it left open as well
    nodes = [
        n for n in graph.nodes if n.op == "call_function" and isinstance(n.target, torch._ops.OpOverload)
    ]
    place = {node: i for i, node in enumerate(graph.nodes)}
    for node in nodes:
        _out_of_place(node, place)
    for node, path in zip(nodes, _paths(nodes), strict=True):
        held[path], values = _operator(module, node)
        with graph.inserting_before(node):
            call = graph.create_node("call_module", path, values)
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        graph.erase_node(node)
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
        elif node.op == "get_attr":
            held[node.target] = _at(module, node.target)
    return fx.GraphModule(held, graph, "Program")


def in_training(program: nn.Module) -> list[str]:
    """The operators of a program that work as in training, by their paths."""
    flags = ("training", "train")
    operators = ((path, m) for path, m in program.named_modules() if isinstance(m, Operator))
    return [path for path, module in operators if any(module.args.get(flag) is True for flag in flags)]


def _target(node: fx.Node) -> torch._ops.OpOverload:
    assert isinstance(node.target, torch._ops.OpOverload)
    return node.target


def _out_of_place(node: fx.Node, place: dict[fx.Node, int]) -> None:
    """Let an operator that works in place return a new value, where nobody else looks at the old one."""
    schema, x = _target(node)._schema, node.args[0] if node.args else None
    name = schema.name.removeprefix("aten::")
    packet = getattr(torch.ops.aten, name[:-1], None)
    other = getattr(packet, _target(node)._overloadname, None) if name.endswith("_") else None
    if (
        other is None
        or not isinstance(x, fx.Node)
        or [a.name for a in other._schema.arguments] != [a.name for a in schema.arguments]
    ):
        return
    target = getattr(x.target, "_schema", None)
    fresh = target is not None and target.name.removeprefix("aten::") in _ALLOCATES
    if fresh and all(place[user] <= place[node] for user in x.users):
        node.target = other


def _paths(nodes: list[fx.Node]) -> list[str]:
    """A path for each: that of its module, for the first that brings its tensors; else a name below it."""
    taken: set[str] = set()
    paths = []
    own = {name for node in nodes for name, arg in _named(node).items() if _is_tensor(arg)}
    reserved = RESERVED | own
    for node in nodes:
        base = _module_of(node)[0]
        brings = any(_is_tensor(a) and a.meta["val"].is_floating_point() for a in node.args)
        path = base
        if not brings or not base:
            name = _target(node)._schema.name.rpartition("::")[2]
            path = f"{base}.{name}" if base else name
        path = ".".join(f"{name}#1" if name in reserved else name for name in path.split("."))
        number = 1
        while (unique := path if number == 1 else f"{path}#{number}") in taken:
            number += 1
        taken.add(unique)
        paths.append(unique)
    return paths


def _named(node: fx.Node) -> dict[str, Any]:
    """The arguments of a node, by the names of its operator's schema."""
    names = (argument.name for argument in _target(node)._schema.arguments)
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _is_tensor(arg: Any) -> TypeGuard[fx.Node]:
    """Whether an argument is a tensor that the program holds."""
    return isinstance(arg, fx.Node) and arg.op == "get_attr" and isinstance(arg.meta.get("val"), Tensor)


def _module_of(node: fx.Node) -> tuple[str, str]:
    """The path and the class of the module in which a node was called."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = stack[-1] if stack else ("", "")
    return path, (kind if isinstance(kind, str) else kind.__name__).rpartition(".")[2]


def _operator(module: fx.GraphModule, node: fx.Node) -> tuple[Operator, tuple[fx.Node, ...]]:
    """A node as a module, and the nodes whose values it is called with."""
    schema, named = _target(node)._schema, _named(node)
    own: dict[str, Tensor | None] = {}
    values: list[fx.Node] = []
    args: dict[str, Any] = {}
    keys: dict[str, str] = {}

    def placed(arg: Any) -> Any:
        if isinstance(arg, fx.Node):
            if arg not in values:
                values.append(arg)
            return Input(values.index(arg))
        return [placed(each) for each in arg] if isinstance(arg, list | tuple) else arg

    for argument in schema.arguments:
        name, arg = argument.name, named.get(argument.name)
        optional = str(argument.type) == "Optional[Tensor]"
        if (
            isinstance(arg, fx.Node)
            and arg.op == "get_attr"
            and isinstance(tensor := _at(module, arg.target), Tensor)
        ):
            own[name], keys[name] = _copy(tensor), str(arg.target)
        elif optional and arg is None and name in ("weight", "bias"):
            own[name] = None
        elif name in named:
            args[name] = placed(arg)
        elif argument.has_default_value():
            args[name] = argument.default_value
    return Operator(node.target, args, own, kind=_module_of(node)[1], keys=keys), tuple(values)


def _copy(tensor: Tensor) -> Tensor:
    twin = tensor.detach().clone()
    return nn.Parameter(twin, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else twin


def _at(module: nn.Module, target: Any) -> Any:
    for name in str(target).split("."):
        module = getattr(module, name)
    return module

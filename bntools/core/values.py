"""The values on the way through a computation: by the nodes of a program, the boundaries of modules, the
names in an ONNX file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from bntools.core.bisect import Step
from bntools.core.calls import Capture, Value
from bntools.core.child import Part
from bntools.core.exact import exact, exact_copy, in_float64
from bntools.core.example import Example
from bntools.core.names import modules_of
from bntools.core.serve import sampled, scale_of
from bntools.core.untouched import untouched

Values = Mapping[str, Part]


def part_of(tensor: Tensor) -> Part:
    """Some of a tensor's values, always those at the same places for its size."""
    array = tensor.detach().cpu()
    array = array.to_dense() if array.layout is not torch.strided else array
    plain = (array.float() if array.dtype is torch.bfloat16 else array).contiguous().numpy()
    return Part(sampled(plain).copy(), tuple(plain.shape), scale_of(plain))


def program_values(program: fx.GraphModule, example: Example, *, double: bool) -> Values:
    """What each node of a program returns, by the names of the nodes.

    Args:
        program: of ``ExportedProgram.module()``.
        example: the call.
        double: compute in float64.
    """
    module = exact_copy(program) if double else program
    assert isinstance(module, fx.GraphModule)
    call = example.map(exact) if double else example.fresh()
    reader = _Reader(module)
    with ExitStack() as stack:
        stack.enter_context(untouched(module))
        if double:
            stack.enter_context(in_float64())
        leaves = pytree.tree_leaves((call.args, call.kwargs))
        reader.run(*leaves, enable_io_processing=False)
    return reader.seen


class _Reader(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[str, Part] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run it, and keep a part of what it returns."""
        out = super().run_node(n)
        if isinstance(out, Tensor) and n.op not in ("placeholder", "get_attr", "output"):
            self.seen[n.name] = part_of(out)
        return out


def program_steps(graph: fx.Graph, model: nn.Module | None) -> tuple[list[Step], list[str]]:
    """The steps of a program, and the names of what it returns.

    Args:
        graph: with the modules that its nodes stand in.
        model: whose modules they are, if it is at hand: the paths are cut back to such as it has.
    """
    known = {path for path, _ in modules_of(model)} if model is not None else None
    steps, outputs = [], []
    for node in graph.nodes:
        if node.op == "output":
            leaves = pytree.tree_leaves(node.args[0])
            outputs = [leaf.name if isinstance(leaf, fx.Node) else "" for leaf in leaves]
        elif node.op not in ("placeholder", "get_attr"):
            stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
            path = _cut(stack[-1] if stack else "", known)
            op = str(getattr(node.target, "_schema", node.target)).partition("(")[0]
            name = op.rpartition("::")[2].partition(".")[0]
            reads = tuple(each.name for each in node.all_input_nodes)
            steps.append(Step(node.name, reads, path, name))
    return steps, outputs


def _cut(path: str, known: set[str] | None) -> str:
    """A path of a program's node as one of the model: operators stand below the module that calls them."""
    path = path.partition("#")[0]
    while known is not None and path and path not in known:
        path = path.rpartition(".")[0]
    return path


def boundaries(model: nn.Module, example: Example, *, double: bool) -> Values:
    """What each module returns, by its path, with ``#2`` for a second call.

    Args:
        model: for ``double``, left alone all the same.
        example: the call.
        double: compute in float64.
    """
    target = exact_copy(model) if double else model
    seen: dict[str, Part] = {}
    calls: Counter[str] = Counter()
    with ExitStack() as stack:
        stack.enter_context(untouched(target))
        for path, module in target.named_modules():
            stack.callback(module.register_forward_hook(_tap(path, seen, calls)).remove)
        if double:
            stack.enter_context(in_float64())
        (example.map(exact) if double else example.fresh())(target)
    return seen


def _tap(path: str, seen: dict[str, Part], calls: Counter[str]) -> Any:
    def hook(module: nn.Module, args: Any, out: Any) -> None:
        calls[path] += 1
        leaves = out if isinstance(out, tuple | list) else (out,)
        if leaves and isinstance(leaves[0], Tensor):
            seen[_called(path, calls[path])] = part_of(leaves[0])

    return hook


def module_steps(seen: Capture) -> tuple[list[Step], dict[str, list[str]], list[str]]:
    """The steps of a captured run, the values that each module boundary names, and what is returned last.

    Returns:
        the steps; by the name of a step, the boundaries that return it, innermost first; the names of the
        steps that the model itself returns.
    """
    steps = [
        Step(str(out.id), tuple(str(r.id) for r in call.reads() if isinstance(r, Value)), call.owner, call.op)
        for call in seen.calls
        for out in call.outputs
    ]
    named: dict[str, list[tuple[int, str]]] = {}
    calls: Counter[str] = Counter()
    outputs = []
    for call in seen.modules:
        calls[call.path] += 1
        if call.outputs:
            value = str(call.outputs[0].id)
            span = call.end - call.start
            named.setdefault(value, []).append((span, _called(call.path, calls[call.path])))
            if not call.path:
                outputs = [str(each.id) for each in call.outputs]
    return steps, {value: [name for _, name in sorted(of)] for value, of in named.items()}, outputs


def _called(path: str, number: int) -> str:
    return path if number == 1 else f"{path}#{number}"

"""Siblings of a captured program become one layer each: their kernels added up, the sum taken out of the
graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from bntools.core.calls import Call, Capture
from bntools.core.operator import Input, Operator
from bntools.core.siblings import Sibling, Term, offset_of


def merge_(program: fx.GraphModule, siblings: Sequence[Sibling], capture: Capture) -> None:
    """Give each host of *siblings* the sum of its terms, and let what read the sum read the host.

    ``W' = Σ factor·S·W``, ``b' = Σ factor·(S·b + T)``, each kernel at its place in the host's; x itself is a
    kernel with a 1 in the middle. All of it is computed in float64 and rounded once. Where the sum was, an
    identity stays.

    Args:
        program: of `bntools.core.operator.Operator` modules; changed in place.
        siblings: found in *capture*.
        capture: of the program, or of one like it.
    """
    nodes = {node.target: node for node in program.graph.nodes if node.op == "call_module"}
    makers = {value.id: call for call in capture.calls for value in call.outputs}
    for sibling in siblings:
        _add_up(program, sibling)
        total, out = nodes[sibling.total.owner], nodes[sibling.host.owner]
        with program.graph.inserting_before(total):
            for number, (sign, value) in enumerate(sibling.rest):
                path = f"{sibling.total.owner}#rest{number}"
                _register(program, path, _sum(sign))
                out = program.graph.create_node("call_module", path, (out, nodes[makers[value.id].owner]))
        total.args = (out,)
        _register(program, sibling.total.owner, nn.Identity())
    _sweep(program)
    program.recompile()


def can_merge(sibling: Sibling, makers: Mapping[int, Call]) -> bool:
    """Whether each value that stays in the sum is what one operator returned, and nothing works in place."""
    made = (makers.get(value.id) for _, value in sibling.rest)
    return not sibling.total.writes and all(m is not None and len(m.outputs) == 1 for m in made)


def without_(program: fx.GraphModule, sites: Sequence[Call]) -> None:
    """Let the BatchNorms of these calls do nothing: siblings that forget them."""
    for site in sites:
        _register(program, site.owner, nn.Identity())


@torch.no_grad()
def _add_up(program: fx.GraphModule, sibling: Sibling) -> None:
    """Put the sum of all terms into the host."""
    host = program.get_submodule(sibling.host.owner)
    old = host.weight
    assert isinstance(old, Tensor)
    weight = torch.zeros(old.shape, dtype=torch.float64, device=old.device)
    bias = torch.zeros(len(old), dtype=torch.float64, device=old.device)
    for term in sibling.terms:
        offset = offset_of(term, sibling.host)
        assert offset is not None
        kernel, shift = _kernel(program, term, old, int(sibling.host.args.get("groups", 1)))
        place = (
            slice(None),
            slice(None),
            *(slice(o, o + k) for o, k in zip(offset, kernel.shape[2:], strict=True)),
        )
        weight[place] += kernel
        bias += shift
    host.weight = nn.Parameter(weight.to(old.dtype), old.requires_grad)
    host.bias = nn.Parameter(bias.to(old.dtype), old.requires_grad)


def _kernel(program: fx.GraphModule, term: Term, like: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """W and b of a term, in float64."""
    if term.conv is None:
        row = torch.arange(len(like), device=like.device)
        weight = torch.zeros(
            (*like.shape[:2], *(1,) * (like.ndim - 2)), dtype=torch.float64, device=like.device
        )
        weight[row, row % like.shape[1]] = 1.0
        bias = torch.zeros(len(like), dtype=torch.float64, device=like.device)
    else:
        conv = program.get_submodule(term.conv.owner)
        assert isinstance(conv.weight, Tensor)
        weight = conv.weight.to(torch.float64)
        bias = torch.zeros(len(weight), dtype=torch.float64, device=like.device)
        if isinstance(conv.bias, Tensor):
            bias = conv.bias.to(torch.float64)
    for diagonal in term.diagonals:
        scale, shift = (
            torch.from_numpy(numbers).to(like.device) for numbers in (diagonal.scale, diagonal.shift)
        )
        weight = weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
        bias = bias * scale + shift
    return weight * term.factor, bias * term.factor


def _sum(sign: float) -> Operator:
    target = torch.ops.aten.add.Tensor if sign > 0 else torch.ops.aten.sub.Tensor
    return Operator(target, {"self": Input(0), "other": Input(1)}, {})


def _register(program: fx.GraphModule, path: str, module: nn.Module) -> None:
    """Put a module in the place of another, with the children of that one."""
    parent, _, name = path.rpartition(".")
    owner = program.get_submodule(parent)
    old = owner._modules.get(name)
    module._modules.update(old._modules if old is not None else {})
    owner._modules[name] = module


def _sweep(program: fx.GraphModule) -> None:
    """Take out what nobody reads any more."""
    for node in reversed(list(program.graph.nodes)):
        if node.op == "call_module" and not node.users and not _writes(program.get_submodule(node.target)):
            program.graph.erase_node(node)
    called = {node.target for node in program.graph.nodes if node.op == "call_module"}
    for path, module in list(program.named_modules()):
        if isinstance(module, Operator) and path not in called:
            parent, _, name = path.rpartition(".")
            program.get_submodule(parent)._modules.pop(name)


def _writes(module: nn.Module) -> bool:
    return isinstance(module, Operator) and module.target._schema.is_mutable

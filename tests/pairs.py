"""An oracle for the sweep that shares no code with bntools: host and BatchNorm in autograd's graph.

Autograd writes down what every output was computed from. A BatchNorm whose input was made by a convolution or
a linear layer, perhaps through a change of shape, with nobody else behind either, must fold.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

_HOSTS = ("ConvolutionBackward0", "AddmmBackward0", "MmBackward0")
_SHAPES = (
    *("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "CloneBackward0", "AliasBackward0"),
    *("TransposeBackward0", "PermuteBackward0", "SqueezeBackward1", "UnsqueezeBackward0", "TBackward0"),
)


def must_fold(model: nn.Module, args: tuple[Any, ...]) -> set[str]:
    """The paths of the BatchNorms in *model*, in eval mode, that stand behind a host of their own."""
    modes = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        return _pairs(model, args)
    finally:
        for parameter, mode in modes:
            parameter.requires_grad_(mode)


def _pairs(model: nn.Module, args: tuple[Any, ...]) -> set[str]:
    outputs = [t for t in pytree.tree_leaves(model(*args)) if isinstance(t, Tensor) and t.grad_fn]
    nodes = _reachable([t.grad_fn for t in outputs])
    readers = Counter(after for node in nodes for after, _ in node.next_functions if after is not None)
    readers.update(t.grad_fn for t in outputs)
    owners = {id(p): path for path, module in model.named_modules() for p in module.parameters(recurse=False)}
    calls = Counter(owner for node in nodes if _is_norm(node) and (owner := _owner(node, owners)))
    found = set()
    for node in nodes:
        path = _owner(node, owners) if _is_norm(node) else None
        if path is None or calls[path] > 1:
            continue
        before = node.next_functions[0][0]
        while before is not None and before.name() in _SHAPES and readers[before] == 1:
            before = before.next_functions[0][0]
        if before is None or before.name() not in _HOSTS or readers[before] != 1:
            continue
        weight = _weight(before)
        channels = node.next_functions[1][0].variable.numel()
        if weight is not None and readers[weight] == 1 and channels in weight.variable.shape[:2]:
            found.add(path)
    return found


def _reachable(roots: list[Any]) -> list[Any]:
    seen, waiting = set(roots), list(roots)
    while waiting:
        for after, _ in waiting.pop().next_functions:
            if after is not None and after not in seen:
                seen.add(after)
                waiting.append(after)
    return list(seen)


def _is_norm(node: Any) -> bool:
    return bool(node.name() in ("NativeBatchNormBackward0", "CudnnBatchNormBackward0"))


def _owner(node: Any, owners: dict[int, str]) -> str | None:
    """The path of the module whose γ a BatchNorm reads."""
    gamma = node.next_functions[1][0]
    return owners.get(id(gamma.variable)) if gamma is not None and hasattr(gamma, "variable") else None


def _weight(host: Any) -> Any:
    """The leaf that a convolution or a product reads as its weight, if it is one."""
    index = {"ConvolutionBackward0": 1, "AddmmBackward0": 2, "MmBackward0": 1}[host.name()]
    leaf = host.next_functions[index][0]
    while leaf is not None and leaf.name() == "TBackward0":
        leaf = leaf.next_functions[0][0]
    return leaf if leaf is not None and hasattr(leaf, "variable") else None


def count_sites(model: nn.Module, args: tuple[Any, ...]) -> int:
    """The calls of modules that hold running statistics, and one for each of them that is not called."""
    norms = [m for m in model.modules() if isinstance(getattr(m, "running_mean", None), Tensor)]
    calls: Counter[nn.Module] = Counter()
    hooks = [m.register_forward_hook(lambda m, args, out: calls.update([m])) for m in norms]
    with torch.no_grad():
        model(*args)
    for hook in hooks:
        hook.remove()
    return sum(max(1, calls[m]) for m in norms)

"""The tensors and modules in whatever a forward takes, returns or keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from collections.abc import Set as AnySet
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_OPAQUE = (str, bytes, type, torch.dtype, torch.device)


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """The tensors in a tree of containers, records and objects, in a fixed order.

    ``torch.utils._pytree`` takes whatever it has not been told of for a leaf, so that a tensor in a dataclass
    would never be looked at.

    Example:
        >>> from types import SimpleNamespace
        >>> [int(t) for t in tensors_of({"a": SimpleNamespace(b=torch.tensor(1)), "c": [torch.tensor(2)]})]
        [1, 2]
    """
    return (leaf for leaf in _walk(tree, set()) if isinstance(leaf, Tensor))


def values_of(tree: Any) -> Iterator[Tensor]:
    """`tensors_of`, and numbers and numpy arrays as tensors: everything that can be compared."""
    for leaf in _walk(tree, set()):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, np.ndarray | np.generic):
            if leaf.dtype.kind in "biufc":
                yield torch.as_tensor(leaf.copy())
        elif isinstance(leaf, bool | int | float | complex):
            yield torch.tensor(leaf, dtype=torch.float64 if isinstance(leaf, float) else None)


def held_besides(model: nn.Module) -> dict[int, str]:
    """What the modules of *model* refer to besides their registered tensors and children: by id, the holder.

    A list of layers or weights goes on holding what it holds when another takes its place under its name.

    Example:
        >>> net = nn.Sequential(nn.ReLU())
        >>> net.layers = [net[0]]
        >>> held_besides(net)[id(net[0])]
        'layers of the model'
    """
    held: dict[int, str] = {}
    for path, module in model.named_modules():
        registered = (module._parameters, module._buffers, module._modules)
        for name, value in vars(module).items():
            if any(value is each for each in registered):
                continue
            for leaf in _walk(value, set()):
                if isinstance(leaf, Tensor | nn.Module):
                    held.setdefault(id(leaf), f"{name} of {path or 'the model'}")
    return held


def _walk(tree: Any, seen: set[int]) -> Iterator[Any]:
    if isinstance(tree, Tensor | nn.Module | np.ndarray | np.generic | bool | int | float | complex):
        yield tree
        return
    if tree is None or isinstance(tree, _OPAQUE) or callable(tree) or id(tree) in seen:
        return
    seen.add(id(tree))
    if isinstance(tree, Mapping):
        inside = list(tree.values())
    elif isinstance(tree, list | tuple | AnySet) or (hasattr(tree, "__len__") and hasattr(tree, "__iter__")):
        inside = list(tree)
    else:
        inside = []
    if dataclasses.is_dataclass(tree):
        inside += [getattr(tree, f.name, None) for f in dataclasses.fields(tree)]
    elif hasattr(tree, "__dict__"):
        inside += list(vars(tree).values())
    for each in inside:
        yield from _walk(each, seen)

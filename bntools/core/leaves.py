"""The tensors and modules in whatever a forward takes, returns or keeps."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, deque
from collections.abc import Iterator
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from bntools.core.names import modules_of

_REGISTERED = frozenset({"_parameters", "_buffers", "_modules"})
_PLAIN = frozenset({bool, int, float, str, type(None)})
_EMPTY = frozenset({dict, OrderedDict, set, list, tuple})
_LEAVES = (Tensor, nn.Module, np.ndarray, np.generic, bool, int, float, complex)
_OPAQUE = (str, bytes, type, ModuleType, torch.dtype, torch.device, torch._ops.OpOverload, fx.Graph)


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """The tensors in a tree of containers, records and objects, in a fixed order.

    ``torch.utils._pytree`` takes whatever it has not been told of for a leaf, so that a tensor in a dataclass
    would never be looked at.

    Example:
        >>> from types import SimpleNamespace
        >>> [int(t) for t in tensors_of({"a": SimpleNamespace(b=torch.tensor(1)), "c": [torch.tensor(2)]})]
        [1, 2]
    """
    return (leaf for leaf in _walk(tree, {}) if isinstance(leaf, Tensor))


def values_of(tree: Any) -> Iterator[Tensor]:
    """`tensors_of`, and numbers and numpy arrays as tensors: everything that can be compared."""
    for leaf in _walk(tree, {}):
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
    seen: dict[int, Any] = {}
    for path, module in modules_of(model):
        for name, value in vars(module).items():
            if type(value) in _PLAIN or name in _REGISTERED or (type(value) in _EMPTY and not value):
                continue  # most of what a module has, and not worth a walk
            for leaf in _walk(value, seen):
                if isinstance(leaf, Tensor | nn.Module):
                    held.setdefault(id(leaf), f"{name} of {path or 'the model'}")
    return held


def _walk(tree: Any, seen: dict[int, Any]) -> Iterator[Any]:
    waiting = [tree]
    while waiting:
        each = waiting.pop()
        if isinstance(each, _LEAVES):
            yield each
        elif each is not None and not isinstance(each, _OPAQUE) and id(each) not in seen:
            seen[id(each)] = each  # kept, so that the id stays its own
            waiting += reversed(_inside(each))


def _inside(tree: Any) -> list[Any]:
    """What a container, a record, an object or a callable holds on to."""
    if isinstance(tree, partial):
        return [tree.func, *tree.args, *tree.keywords.values()]
    if isinstance(tree, MethodType):
        return [tree.__self__, tree.__func__]
    if isinstance(tree, FunctionType):
        cells = [cell.cell_contents for cell in tree.__closure__ or () if cell != CellType()]
        defaults = *(tree.__defaults__ or ()), *(tree.__kwdefaults__ or {}).values()
        return [*cells, *defaults, *vars(tree).values()]
    inside: list[Any] = []
    if isinstance(tree, dict):
        inside = [*tree.keys(), *tree.values()]
    elif isinstance(tree, list | tuple | set | frozenset | deque):  # other iterables may load data
        inside = list(tree)
    if dataclasses.is_dataclass(tree):
        inside += [getattr(tree, f.name, None) for f in dataclasses.fields(tree)]
    elif hasattr(tree, "__dict__"):
        inside += list(vars(tree).values())
    slots = (slot for kind in type(tree).__mro__ for slot in _slots(kind))
    return [*inside, *(getattr(tree, slot, None) for slot in slots)]


def _slots(kind: type) -> Iterator[str]:
    """The slots of a class itself, by the names that Python gives them."""
    slots = vars(kind).get("__slots__", ())
    for slot in (slots,) if isinstance(slots, str) else slots:
        private = slot.startswith("__") and not slot.endswith("__")
        yield f"_{kind.__name__.lstrip('_')}{slot}" if private else slot

"""Which axes of a program's inputs stay open, and what they are called in a file."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bntools.core.example import Example
from bntools.errors import UsageError

BATCH = "batch"
_SMALL = 64


@dataclass(frozen=True, slots=True)
class Axes:
    """What may have another size than in the example.

    Args:
        batch: axis 0 of every tensor, if they agree on its size.
        named: by the name of an input, or of all if that is empty, the numbers of further axes with what they
            are to be called.
    """

    batch: bool = True
    named: Mapping[str, Mapping[int, str]] = field(default_factory=dict)

    def shapes(self, model: nn.Module, example: Example) -> Any:
        """The ``dynamic_shapes`` for ``torch.export``, None if nothing is open.

        Raises:
            UsageError: if an axis is asked for that the example has not got.
        """
        batch = self.batch and sizes_of(example) and not sizes_of(example) & {0, 1}
        named = arguments_of(model, example)
        known = {"", *named}
        for name, axes in self.named.items():
            if name not in known:
                given = ", ".join(named)
                raise UsageError(f"dynamic: {name!r} is no input", todo=f"the inputs are {given}")
            ranks = [t.ndim for each, arg in named.items() if name in ("", each) for t in _tensors(arg)]
            for axis in axes:
                if not all(0 <= axis < rank for rank in ranks) or not ranks:
                    which = name or "the input"
                    raise UsageError(
                        f"dynamic: {which} has no axis {axis}",
                        todo=f"it has {min(ranks, default=0)}, from 0 on",
                    )
        if not batch and not self.named:
            return None
        auto = torch.export.Dim.AUTO

        def of(name: str) -> Any:
            numbers = [*([0] if batch else []), *self.named.get("", ()), *self.named.get(name, ())]
            return lambda leaf: dict.fromkeys(numbers, auto) if isinstance(leaf, Tensor) else None

        return tuple(pytree.tree_map(of(name), arg) for name, arg in named.items())

    def stretched(self, model: nn.Module, example: Example) -> Example | None:
        """The example with other sizes where axes are open by name; None if none are."""
        if not self.named:
            return None

        def of(name: str) -> Any:
            axes = {**self.named.get("", {}), **self.named.get(name, {})}

            def stretch(leaf: Any) -> Any:
                for axis in axes if isinstance(leaf, Tensor) else ():
                    size = leaf.shape[axis]
                    longer = 2 * size if size <= _SMALL else size + 32  # networks halve images five times
                    leaf = leaf.index_select(axis, torch.arange(longer, device=leaf.device) % size)
                return leaf

            return stretch

        named = {n: pytree.tree_map(of(n), arg) for n, arg in arguments_of(model, example).items()}
        args = tuple(named.values())[: len(example.args)]
        kwargs = {name: named[name] for name in example.kwargs}
        return Example(args, kwargs, origin="other sizes where axes are open")


def sizes_of(example: Example) -> set[int]:
    """The one size of all batch axes; empty if they do not agree or there is none."""
    sizes = {t.shape[0] if t.ndim else 0 for t in example.tensors}
    return sizes if len(sizes) == 1 else set()


def arguments_of(model: nn.Module, example: Example) -> dict[str, Any]:
    """The arguments of a call by their names, in order; one without a name has its number."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    args = {(names[i] if i < len(names) else f"args_{i}"): arg for i, arg in enumerate(example.args)}
    return args | example.kwargs


def two_rows(example: Example) -> Example:
    """The example with each row twice if it is a batch of one, which an export takes for a constant."""
    if sizes_of(example) != {1}:
        return example
    return example.map(lambda tensor: torch.cat([tensor, tensor]))


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def open_axes(program: torch.export.ExportedProgram, module: nn.Module) -> Axes:
    """The axes that a program leaves open, as they are asked for when it is exported again.

    Args:
        program: from `torch.export.export`, or from a file.
        module: the same as a module, which gives the arguments their names.
    """
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    names = program.graph_signature.user_inputs
    leaves = [values.get(name) if isinstance(name, str) else name for name in names]
    spec = program.call_spec.in_spec
    if spec is None or spec.num_leaves != len(leaves):
        return Axes()
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    named = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | dict(kwargs)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    rows = {str(t.shape[0]) if t.ndim and not isinstance(t.shape[0], int) else "" for t in tensors}
    batch = len(rows) == 1 and "" not in rows
    labels = dict.fromkeys(rows, BATCH) if batch else {}
    axes = {name: _open(name, value, labels) for name, value in named.items()}
    if batch:
        axes = {name: {axis: of[axis] for axis in of if axis} for name, of in axes.items()}
    return Axes(batch, {name: of for name, of in axes.items() if of})


def asked_for(known: Axes, asked: Axes) -> Axes:
    """The open axes of a program, without the first if a fixed batch is asked for, and with others."""
    named = {name: {a: of[a] for a in of if a or asked.batch} for name, of in known.named.items()}
    for name, more in asked.named.items():
        named[name] = {**named.get(name, {}), **more}
    return Axes(known.batch and asked.batch, {name: of for name, of in named.items() if of})


def _open(name: str, value: Any, labels: dict[str, str]) -> dict[int, str]:
    """The axes that are open in every tensor of an argument, and what they are called: by their symbols."""
    found = [
        {axis: size for axis, size in enumerate(t.shape) if not isinstance(size, int)}
        for t in _tensors(value)
    ]
    shared = {axis for axis in found[0] if all(axis in each for each in found)} if found else set()
    return {axis: _label(name, axis, str(found[0][axis]), labels) for axis in sorted(shared)}


def _label(name: str, axis: int, symbol: str, labels: dict[str, str]) -> str:
    if symbol not in labels:
        wish = BATCH if axis == 0 else f"axis{axis}"
        labels[symbol] = wish if wish not in labels.values() else f"{name}_{wish}"
    return labels[symbol]

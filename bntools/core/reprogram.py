"""From one program to another: what stays open in its inputs, and how it is written with just that open."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bntools.core.atomic import replacing
from bntools.core.axes import BATCH, Axes
from bntools.core.observe import difference, observe
from bntools.core.onnxfile import Form
from bntools.core.program import exported
from bntools.core.programfile import Reference, write_onnx
from bntools.core.quiet import quiet
from bntools.core.sides import ModuleSide
from bntools.core.sniff import ARTEFACT_KEY
from bntools.core.surgery import Surgery
from bntools.core.trials import trials
from bntools.core.verify import Report
from bntools.errors import PromiseError

_SAME = 1e-5


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
    tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
    found = [{axis: size for axis, size in enumerate(t.shape) if not isinstance(size, int)} for t in tensors]
    shared = {axis for axis in found[0] if all(axis in each for each in found)} if found else set()
    return {axis: _label(name, axis, str(found[0][axis]), labels) for axis in sorted(shared)}


def _label(name: str, axis: int, symbol: str, labels: dict[str, str]) -> str:
    if symbol not in labels:
        wish = BATCH if axis == 0 else f"axis{axis}"
        labels[symbol] = wish if wish not in labels.values() else f"{name}_{wish}"
    return labels[symbol]


def write_again(
    surgery: Surgery[Any], axes: Axes, path: Path, *, force: bool = False, certain: bool = False
) -> Report | None:
    """`bntools.core.programfile.write_program` for what was a program before: its axes stay as they were."""
    example, plan = surgery.example, surgery.plan.to_json()
    assert example is not None
    if path.suffix == ".onnx":
        reference = Reference(ModuleSide(surgery.model), list(trials(example)))
        form = Form(axes=axes)
        return write_onnx(
            surgery.model, example, path, form, reference, plan=plan, force=force, certain=certain
        ).check
    program = exported(surgery.model, example, axes)
    again = observe(program.module(check_guards=False), example, double=False)
    error = difference(again.outputs, observe(surgery.model, example, double=False).outputs)
    if error > _SAME:
        raise PromiseError(f"torch.export: the program to write differs by {error:.1e} of the scale")
    for node in program.graph.nodes:  # they name the files of whoever wrote this
        for note in [note for note in node.meta if note not in ("val", "tensor_meta")]:
            del node.meta[note]
    with replacing(path, force=force) as part, part.open("wb") as file, quiet():
        torch.export.save(program, file, extra_files={ARTEFACT_KEY: plan})
    return None

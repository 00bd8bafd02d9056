"""Programs as files: ``.pt2`` and ONNX, whole or not at all, each looked at before it is handed out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from bntools.core.atomic import replacing
from bntools.core.capture import first_line
from bntools.core.example import Example
from bntools.core.observe import difference, observe
from bntools.core.operator import Operator
from bntools.core.program import exported
from bntools.core.quiet import quiet
from bntools.core.runtime import FileCheck, check_onnx
from bntools.core.surgery import Surgery
from bntools.core.verify import Verdict
from bntools.errors import CaptureError, PromiseError, UsageError

PROGRAMS = (".pt2", ".onnx")
"""The endings of files that hold a program."""

KEY = "bntools"
_SAME = 1e-5
_NAMES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom")
_MOST = 1 << 31


def is_program(model: nn.Module) -> bool:
    """Whether a model is a captured program."""
    return isinstance(model, fx.GraphModule) and any(isinstance(m, Operator) for m in model.modules())


def write_program(
    surgery: Surgery[Any], path: Path, *, force: bool = False, certain: bool = False
) -> FileCheck | None:
    """Write a folded program, by the ending of the path, with its plan inside.

    A ``.pt2`` file is exported anew and compared with the program that was proven; an ONNX file is run by
    ONNX Runtime and held against the program's own rounding. Equal programs give equal bytes, from any
    folder.

    Args:
        surgery: from a fold with ``level="program"``.
        path: where to.
        force: replace a file that is there.
        certain: write nothing unless the file was run and passed.

    Returns:
        how an ONNX file was checked, None for ``.pt2``.

    Raises:
        CaptureError: if the program cannot be exported.
        PromiseError: if the file computes something else; nothing is written.
        UsageError: if the file is there already, or is too large for its kind.
    """
    example = surgery.example
    assert example is not None
    program = exported(surgery.model, example)
    _check_same(program.module(check_guards=False), surgery.model, example)
    for node in program.graph.nodes:  # they name the files of whoever wrote this
        for name in _NAMES:
            node.meta.pop(name, None)
    plan = surgery.plan.to_json()
    if path.suffix == ".pt2":
        with replacing(path, force=force) as part, part.open("wb") as file, quiet():
            torch.export.save(program, file, extra_files={KEY: plan})
        return None
    content = _onnx(program, plan)
    check = check_onnx(content, surgery.model, example)
    if check.verdict is Verdict.FAILED:
        raise PromiseError(f"{path}: ONNX Runtime computes something else: {check.why}", todo="write to .pt2")
    if check.verdict is Verdict.PASSED or not certain:
        with replacing(path, force=force) as part:
            part.write_bytes(content)
    return check


def _check_same(program: Any, model: nn.Module, example: Example) -> None:
    """What is written is an export of what was proven: it must return the same."""
    one, two = (observe(m, example, double=False).outputs for m in (program, model))
    error = difference(one, two)
    if error > _SAME:
        raise PromiseError(f"torch.export: the program to write differs by {error:.1e} of the scale")


def _onnx(program: torch.export.ExportedProgram, plan: str) -> bytes:
    try:
        with quiet():
            made = torch.onnx.export(program, dynamo=True, verbose=False)
        assert made is not None
        model = made.model_proto
    except Exception as error:
        raise CaptureError(
            f"torch's ONNX exporter refuses the program: {type(error).__name__}: {first_line(error)}",
            todo="write to .pt2",
        ) from error
    graph = model.graph
    for held in (
        *graph.node,
        *graph.initializer,
        *graph.value_info,
        *graph.input,
        *graph.output,
        graph,
        model,
    ):
        del held.metadata_props[:]
    axes = {d.dim_param for i in graph.input for d in i.type.tensor_type.shape.dim[:1] if d.dim_param}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in axes and len(axes) == 1:
                axis.dim_param = "batch"
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, plan
    if model.ByteSize() >= _MOST:
        raise UsageError(
            "the model is larger than 2 GiB, which one ONNX file cannot hold", todo="write to .pt2"
        )
    content: bytes = model.SerializeToString(deterministic=True)
    return content

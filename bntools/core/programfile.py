"""Programs as files: ``.pt2`` and ONNX, whole or not at all, each looked at before it is handed out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from bntools.core.atomic import replacing
from bntools.core.child import LIMIT, Runtime
from bntools.core.example import Example
from bntools.core.external import put_in_place, size_of
from bntools.core.observe import difference, observe
from bntools.core.onnxfile import Form, Graph, ensure_sound, graph_of, polish_, translate
from bntools.core.onnxmodel import origin_of
from bntools.core.onnxsave import write_back
from bntools.core.operator import Operator
from bntools.core.places import in_file
from bntools.core.program import exported
from bntools.core.quiet import quiet
from bntools.core.runtime import check
from bntools.core.sides import FileSide, ModuleSide
from bntools.core.sniff import ARTEFACT_KEY
from bntools.core.surgery import Surgery
from bntools.core.traced import Traced
from bntools.core.trials import trials
from bntools.core.verify import UNASKED, Report, Verdict
from bntools.errors import PromiseError, UsageError

PROGRAMS = (".pt2", ".onnx")
"""The endings of files that hold a program."""

_SAME = 1e-5
_NAMES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom")


@dataclass(frozen=True, slots=True)
class Written:
    """An ONNX file that was made.

    Args:
        check: how it was run beside the model.
        graph: what stands in it.
        weights: the file with its weights, if they are not inside.
        there: whether it was put in its place.
    """

    check: Report
    graph: Graph
    weights: Path | None = None
    there: bool = True


@dataclass(frozen=True, slots=True)
class Reference:
    """What a file is held against.

    Args:
        side: the model that it must compute.
        examples: what both are run on.
        limit: seconds that the runtime may take for one request.
    """

    side: ModuleSide
    examples: Sequence[Example]
    limit: float = LIMIT


def is_program(model: nn.Module) -> bool:
    """Whether a model is a captured program."""
    return isinstance(model, fx.GraphModule) and any(isinstance(m, Operator) for m in model.modules())


def write_program(
    surgery: Surgery[Any], path: Path, *, force: bool = False, certain: bool = False
) -> Report | None:
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
        UsageError: if the file is there already.
    """
    origin = origin_of(surgery.model)
    if origin is not None:
        if path.suffix != ".onnx":
            raise UsageError(f"{path}: what was an ONNX file stays one", todo="name a .onnx")
        if surgery.plan.verb != "fold":
            raise UsageError(
                f"{path}: only a fold is written back to an ONNX file, this is a {surgery.plan.verb}",
                todo="do it to the PyTorch model, and export that",
            )
        return write_back(surgery, origin, path, force=force, certain=certain)
    example = surgery.example
    assert example is not None
    plan = surgery.plan.to_json()
    if path.suffix == ".onnx":
        reference, form = Reference(ModuleSide(surgery.model), list(trials(example))), Form(axes=surgery.axes)
        return write_onnx(
            surgery.model, example, path, form, reference, plan=plan, force=force, certain=certain
        ).check
    program = exported(surgery.model, example, surgery.axes)
    _check_same(program.module(check_guards=False), surgery.model, example)
    for node in program.graph.nodes:  # they name the files of whoever wrote this
        for name in _NAMES:
            node.meta.pop(name, None)
    with replacing(path, force=force) as part, part.open("wb") as file, quiet():
        torch.export.save(program, file, extra_files={ARTEFACT_KEY: plan})
    return None


def write_onnx(
    model: nn.Module,
    example: Example,
    path: Path,
    form: Form,
    reference: Reference | None,
    *,
    plan: str | None = None,
    force: bool = False,
    certain: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> Written:
    """Write a program as ONNX: translate, check, run beside its reference, and only then put it in its place.

    Args:
        model: a captured program, of `bntools.core.operator.Operator` modules.
        example: what it is exported on.
        path: where to.
        form: how.
        reference: what it is held against; None for no check.
        plan: to stand inside.
        force: replace a file that is there.
        certain: write nothing unless the file was run and passed.
        progress: told the name of each step.

    Raises:
        CaptureError: if torch refuses, or gives something else than was asked for.
        PromiseError: if the file computes something else; nothing is written.
        UsageError: if the file is there already, or a name is wrong.
    """
    progress("exporting the program")
    program = exported(model, example, form.axes)
    _check_same(program.module(check_guards=False), model, example)
    progress("translating it to ONNX")
    made = translate(program, form)
    proto = made.model_proto
    polish_(proto, form, {ARTEFACT_KEY: plan} if plan is not None else {})
    graph = graph_of(proto, size_of(proto))
    report = UNASKED

    def judge(file: Path) -> bool:
        nonlocal report
        progress("checking the file")
        ensure_sound(file, proto, sum(_is_norm(module) for module in model.modules()))
        if reference is not None:
            progress("running it in ONNX Runtime")
            report = _run(file, made.exported_program, reference)
            if report.verdict is Verdict.FAILED:
                raise PromiseError(
                    f"{path}: ONNX Runtime computes something else: {report.why}{_at(report)}",
                    todo="nothing was written; write to .pt2, or try another opset",
                    report=report,
                )
        return not certain or report.verdict is Verdict.PASSED

    weights, there = put_in_place(proto, path, form.external, force=force, judge=judge)
    return Written(report, graph, weights, there)


def _run(file: Path, program: torch.export.ExportedProgram, reference: Reference) -> Report:
    """Run the file beside the model; where they differ, say where that begins."""
    with Runtime(reference.limit) as runtime:
        side = FileSide(file, runtime)
        report = check(reference.side, side, reference.examples)
        if report.verdict is not Verdict.FAILED:
            return report
        return replace(report, place=in_file(Traced(program, reference.side), side, reference.examples))


def _at(report: Report) -> str:
    return f", from {report.place.module or report.place.value} on" if report.place is not None else ""


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, Operator) and "batch_norm" in str(module.target)


def _check_same(program: Any, model: nn.Module, example: Example) -> None:
    """What is written is an export of what was proven: it must return the same."""
    one, two = (observe(m, example, double=False).outputs for m in (program, model))
    error = difference(one, two)
    if error > _SAME:
        raise PromiseError(f"torch.export: the program to write differs by {error:.1e} of the scale")

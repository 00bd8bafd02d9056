"""Export a model to ONNX: folded, checked, run beside the model, and only then put in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bntools.core.axes import Axes, asked_for, open_axes, two_rows
from bntools.core.capture import capture, check_eager
from bntools.core.child import LIMIT
from bntools.core.exact import exact, exact_copy
from bntools.core.example import Example
from bntools.core.external import size_of
from bntools.core.guess import guess
from bntools.core.narrow import narrowed
from bntools.core.observe import observe
from bntools.core.onnxfile import Form, Graph, graph_of, translate
from bntools.core.plan import Plan
from bntools.core.program import atomised, exported, in_training
from bntools.core.programfile import Reference, write_onnx
from bntools.core.programs import fold_program
from bntools.core.reasons import Reason
from bntools.core.revive import taken
from bntools.core.sides import ModuleSide
from bntools.core.spelt import written_plainly
from bntools.core.trials import trials
from bntools.core.verify import Report, Verdict
from bntools.errors import CaptureError, PromiseError, UsageError, in_a_line

_NONE: Mapping[str, Mapping[int, str]] = {}


@dataclass(frozen=True, slots=True)
class Export:
    """An ONNX file, what was folded on the way, and how both were proven.

    Args:
        path: the file; None if nothing was written.
        weights: the file beside it that holds its weights, if there is one.
        graph: what stands in it.
        alone: what torch's exporter would have written without bntools; None if that was not asked.
        plan: of the fold, every site in ``edits`` or ``refusals``; None without one.
        proof: of the fold, in float64.
        check: of the file, in ONNX Runtime.
        example: the input that it was made on.
    """

    path: Path | None
    weights: Path | None
    graph: Graph
    alone: Graph | None
    plan: Plan | None
    proof: Report
    check: Report
    example: Example = field(repr=False)


def export(
    model: nn.Module | torch.export.ExportedProgram,
    inputs: Any,
    path: str | Path,
    *,
    fold: bool = True,
    opset: int | None = None,
    dynamic_batch: bool = True,
    dynamic: Mapping[str, Mapping[int, str]] = _NONE,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    fp16: bool = False,
    external_data: bool | None = None,
    keep_debug_info: bool = False,
    compare: bool = True,
    verify: bool = True,
    strict: bool = False,
    force: bool = False,
    limit: float = LIMIT,
    progress: Callable[[str], None] = lambda step: None,
) -> Export:
    """Export a model to an ONNX file that is measured to compute what the model computes.

    With r the model in float64, t in its own type and z the file in ONNX Runtime, it is written if
    ``max|z − r| ≤ max(10·max|t − r|, floor)`` for every output, as shares of ``max|r|``; the floor is 1e-6,
    2e-3 for float16. The model is left alone.

    Args:
        model: an eager module in eval mode. Or a program of `torch.export`: the axes that it leaves open stay
            open, and *inputs* are its own if None.
        inputs: a tensor, a tuple of arguments, a dict of keyword arguments, or an `Example`; guessed if None.
        path: where to, a name that ends in ``.onnx``.
        fold: fold its BatchNorms first, in the captured program.
        opset: of the file; an error if torch's exporter gives another. Its own choice if None.
        dynamic_batch: let axis 0 of all inputs stay open, as ``batch``.
        dynamic: further open axes: by the name of an argument, or by ``""`` for all of them, the number of
            each axis and what it is to be called.
        input_names, output_names: for all of them, in order.
        fp16: weights of float16, each rounded once from the folded ones of float64.
        external_data: keep the weights in a file beside it; from 1.5 GiB on if None.
        keep_debug_info: leave the names of modules on the nodes; else they are stripped.
        compare: also translate the model as it is, to count what is left without bntools.
        verify: prove the fold in float64, and run the file.
        strict: write nothing if a BatchNorm stays, or the file was not run and found right.
        force: replace a file that is there.
        limit: seconds that ONNX Runtime may take for one request.
        progress: told the name of each step.

    Returns:
        what was written and what was folded on the way, with the proof of the fold and the check of the file.

    Raises:
        PromiseError: if the file does not compute what the model computes, or *strict* and a BatchNorm stays;
            nothing is written.
        CaptureError: if the model does not run or cannot be exported, or the file is not what was asked for.
        UsageError: if the model is in training mode, an argument is wrong, or the file is there.

    Example:
        >>> import tempfile
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = export(net, torch.randn(8, 4), Path(folder) / "net.onnx")
        >>> done.check.verdict.value, dict(done.graph.nodes), done.graph.inputs
        ('passed', {'Gemm': 1}, ('input: batch×4 float',))
    """
    path = Path(path)
    axes = Axes(dynamic_batch, dynamic)
    model, inputs, known = taken(model, inputs)
    if known is not None:
        axes = asked_for(open_axes(known, model), axes)
    check_eager(model)
    _check(model, path)
    form = Form(opset, tuple(input_names), tuple(output_names), axes, external_data, keep_debug_info)
    given = guess(model) if inputs is None else Example.of(inputs, model)
    with torch.inference_mode(False):  # what is made in that mode can never be trained
        example = _open(model, given) if dynamic_batch else given
        base, wide = (exact_copy(model), example.map(exact)) if fp16 else (model, example)
        program, plan, proof = _program(base, wide, axes, fold=fold, verify=verify, progress=progress)
        if plan is not None and strict and plan.refusals:
            raise PromiseError(
                f"{len(plan.refusals)} of {len(plan.sites)} BatchNorms stay", todo="nothing was written"
            )
        side = ModuleSide(model)
        if fp16:
            program = narrowed(program, torch.float16)
            side.narrowed(torch.float16, program)
            wide = example.map(lambda t: t.half() if t.is_floating_point() else t)
            _check_runs(program, wide)
        examples = [*trials(given), *filter(None, [axes.stretched(model, given)])]
        written = write_onnx(
            program,
            wide,
            path,
            form,
            Reference(side, examples, limit) if verify else None,
            plan=plan.to_json() if plan is not None else None,
            force=force,
            certain=strict,
            progress=progress,
        )
        alone = None
        if compare and plan is not None and plan.edits:
            progress("exporting without bntools")
            alone = _alone(model, example, form)
    file, weights = (path, written.weights) if written.there else (None, None)
    return Export(file, weights, written.graph, alone, plan, proof, written.check, given)


def _check(model: nn.Module, path: Path) -> None:
    if path.suffix != ".onnx":
        raise UsageError(f"{path}: an export is an ONNX file", todo="name a .onnx")
    if model.training:
        raise UsageError("the model is in training mode", todo="call model.eval() first")


def _open(model: nn.Module, example: Example) -> Example:
    """An example of several rows, if the model takes such: of one, an export would take the one for fixed."""
    rows = two_rows(example)
    if rows is not example:
        try:
            observe(model, rows, double=False)
        except Exception:  # a model made for one
            return example
    return rows


def _program(
    model: nn.Module,
    example: Example,
    axes: Axes,
    *,
    fold: bool,
    verify: bool,
    progress: Callable[[str], None],
) -> tuple[nn.Module, Plan | None, Report]:
    """The captured program, folded or not, and how that was proven."""
    if fold:
        surgery = fold_program(model, example, axes=axes, verify=verify, progress=progress)
        program, plan, proof = surgery.model, surgery.plan, surgery.report
        training = [r.site.name for r in plan.refusals if r.reason is Reason.TRAINING]
    else:
        progress("capturing")
        seen = capture(model, example)
        program, plan = atomised(exported(written_plainly(model, seen), example, axes)), None
        proof, training = Report(Verdict.SKIPPED, why="nothing was folded"), []
    training = training or in_training(program)
    if training:
        names = ", ".join(training[:3])
        raise CaptureError(
            f"{names}: works as in training, which a file cannot", todo="put it in eval mode too"
        )
    return program, plan, proof


def _check_runs(program: nn.Module, example: Example) -> None:
    try:
        observe(program, example, double=False)
    except Exception as error:
        raise CaptureError(
            f"the model does not run in float16: {in_a_line(error)}",
            todo="export without fp16",
        ) from error


def _alone(model: nn.Module, example: Example, form: Form) -> Graph | None:
    """What torch writes by itself; None if it cannot."""
    try:
        proto = translate(exported(model, example, form.axes), Form(form.opset)).model_proto
    except CaptureError:
        return None
    return graph_of(proto, size_of(proto))

"""Fold BatchNorm into the layers in front of it, and prove that nothing else changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from bntools.core.axes import Axes, open_axes
from bntools.core.capture import check_eager
from bntools.core.example import Example
from bntools.core.guess import guess
from bntools.core.onnxmodel import origin_of
from bntools.core.planning import plan_folds
from bntools.core.programs import fold_program
from bntools.core.revive import taken
from bntools.core.surgery import Surgery, operate
from bntools.core.verify import Report
from bntools.errors import UsageError


def fold(
    model: nn.Module | torch.export.ExportedProgram,
    inputs: Any = None,
    *,
    level: Literal["module", "program"] = "module",
    inplace: bool = False,
    bake: bool = False,
    simplify: bool = False,
    pad_exact: bool = False,
    verify: bool = True,
    progress: Callable[[str], None] = lambda step: None,
) -> Surgery[Report]:
    """Fold every BatchNorm that can go exactly into the layers around it.

    ``y = s·(W∗x + b) + t`` with ``s = γ/√(σ² + ε)``, ``t = β − s·μ`` becomes ``W' = s·W``, ``b' = s·b + t``;
    into a reader, ``W∗(s·x + t) + b`` becomes ``W' = W·s``, ``b' = b + W∗t``. The model is taken in the mode
    that it is in: a BatchNorm in training mode is refused.

    Args:
        model: an eager module; left alone unless *inplace*. Or a program of `torch.export`, which is always
            folded as one; the axes that it leaves open stay open, and *inputs* are its own if None.
        inputs: a tensor, a tuple of arguments, a dict of keyword arguments, or an `Example`; guessed if None.
        level: ``"module"`` changes modules and leaves every ``forward`` as it is. ``"program"`` exports the
            model and rewrites the graph: there a convolution and a BatchNorm whose results are added become
            one layer, and each call of a shared layer has weights of its own. What comes is a graph module,
            to be saved as ``.pt2`` or ``.onnx``. What `bntools.load` made of an ONNX file is a program.
        inplace: fold *model* itself; not for a program.
        bake: make hosts with a parametrised weight (weight_norm, spectral_norm) plain, where that lets a
            BatchNorm fold.
        simplify: let a BatchNorm that stays become ``x + b`` or ``w·x + b``, a `bntools.norms.ChannelAffine`,
            where that is measured to be faster, on this machine and in this layout.
        pad_exact: let a BatchNorm go into a convolution that pads with zeros, which then pads with ``−t/s``
            in each channel (`bntools.norms.PaddedConv2d`), where that is measured to be faster.
        verify: measure the result in float64 before it is handed out.
        progress: told the name of each step.

    Returns:
        the folded model, the plan with every site in ``edits`` or ``refusals``, and the report. A model that
        does not run on the inputs has every site refused.

    Raises:
        PromiseError: if the result does not compute what the model computed; *model* is as it was.
        CaptureError: if no inputs were given and none could be guessed, or the model cannot be copied, or a
            program is asked for and `torch.export` refuses the model.
        UsageError: if *model* is no eager module, or a program is asked for with *inplace*, *bake*,
            *simplify* or *pad_exact*.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
        >>> surgery = fold(net, torch.randn(8, 4))
        >>> len(surgery.plan.edits), surgery.report.verdict.value, type(surgery.model[1]).__name__
        (1, 'passed', 'Identity')
    """
    model, inputs, program = taken(model, inputs)
    axes = Axes()
    if program is not None:
        level, axes = "program", open_axes(program, model)
    check_eager(model)
    if level not in ("module", "program"):
        raise UsageError(f"level: {level!r} is none", todo="write 'module' or 'program'")
    if origin_of(model) is not None:
        level = "program"  # there is nothing else to an ONNX file
    asked = {"inplace": inplace, "bake": bake, "simplify": simplify, "pad_exact": pad_exact}
    if level == "program" and any(asked.values()):
        raise UsageError(
            f"{next(name for name, on in asked.items() if on)}: it is about modules, and a program has none",
            todo="fold the modules first, then the result with level='program'",
        )
    example = guess(model) if inputs is None else Example.of(inputs, model)
    with torch.inference_mode(False):  # what is made in that mode can never be trained
        if level == "program":
            return fold_program(model, example, axes=axes, verify=verify, progress=progress)
        progress("capturing")
        plan, tensors = plan_folds(model, example, bake=bake, simplify=simplify, pad=pad_exact)
        return operate(model, plan, tensors, example, inplace=inplace, verify=verify, progress=progress)

"""Fold BatchNorm into the layers in front of it, and prove that nothing else changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bntools.core.capture import check_eager
from bntools.core.example import Example
from bntools.core.guess import guess
from bntools.core.planning import plan_folds
from bntools.core.surgery import Surgery, operate


def fold(
    model: nn.Module,
    inputs: Any = None,
    *,
    inplace: bool = False,
    bake: bool = False,
    verify: bool = True,
    progress: Callable[[str], None] = lambda step: None,
) -> Surgery:
    """Fold every BatchNorm that can go exactly into the layer in front of it.

    ``y = s·(W∗x + b) + t`` with ``s = γ/√(σ² + ε)``, ``t = β − s·μ`` becomes ``W' = s·W``, ``b' = s·b + t``.
    The model is taken in the mode that it is in: a BatchNorm in training mode is refused.

    Args:
        model: an eager module; left alone unless *inplace*.
        inputs: a tensor, a tuple of arguments, a dict of keyword arguments, or an `Example`; guessed if None.
        inplace: fold *model* itself.
        bake: make hosts with a parametrised weight (weight_norm, spectral_norm) plain, where that lets a
            BatchNorm fold.
        verify: measure the result in float64 before it is handed out.
        progress: told the name of each step.

    Returns:
        the folded model, the plan with every site in ``edits`` or ``refusals``, and the report. A model that
        does not run on the inputs has every site refused.

    Raises:
        PromiseError: if the result does not compute what the model computed; *model* is as it was.
        CaptureError: if no inputs were given and none could be guessed, or the model cannot be copied.
        UsageError: if *model* is no eager module.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
        >>> surgery = fold(net, torch.randn(8, 4))
        >>> len(surgery.plan.edits), surgery.report.verdict.value, type(surgery.model[1]).__name__
        (1, 'passed', 'Identity')
    """
    check_eager(model)
    example = guess(model) if inputs is None else Example.of(inputs, model)
    with torch.inference_mode(False):  # what is made in that mode can never be trained
        progress("capturing")
        plan, tensors = plan_folds(model, example, bake=bake)
        return operate(model, plan, tensors, example, inplace=inplace, verify=verify, progress=progress)

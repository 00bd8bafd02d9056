"""Freeze BatchNorms so that no training loop undoes it, and unfreeze them so that nothing is left of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from bntools.core.capture import check_eager, fingerprint
from bntools.core.changes import Switch
from bntools.core.exact import copied
from bntools.core.example import Example
from bntools.core.freezing import Freezing, early, freezes, freezing_of, unfreezes
from bntools.core.graft import graft_
from bntools.core.guess import guess
from bntools.core.plan import Edit, Plan, Refusal
from bntools.core.reasons import Reason
from bntools.core.select import Selected, select
from bntools.core.sites import site_of
from bntools.core.surgery import Surgery
from bntools.errors import UsageError


def freeze(
    model: nn.Module,
    only: str | Sequence[str] = "*",
    *,
    stats: bool = True,
    affine: bool = True,
    first: int | None = None,
    until: str | None = None,
    inputs: Any = None,
    optimizer: Optimizer | None = None,
    inplace: bool = False,
) -> Surgery[Freezing]:
    """Freeze BatchNorms for good: ``model.train()`` does not undo it, a file and a copy keep it.

    A frozen BatchNorm computes ``y = γ·(x − μ)/√(σ² + ε) + β`` with its running μ and σ² in either mode, and
    leaves them alone. Its class, its keys in a state dict and its parameters stay the ones that they are, so
    checkpoints, optimizers, DistributedDataParallel, torch.compile and torch.export do not notice.

    Args:
        model: an eager module; left alone unless *inplace*.
        only: patterns of paths, as for `bntools.recalibrate`.
        stats: freeze the running statistics.
        affine: freeze γ and β: they have no gradients, and those that they hold are dropped, since weight
            decay would go on moving them.
        first: only so many of the BatchNorms, those that come first in the order of execution.
        until: only those up to the module of that path.
        inputs: to find that order out, as for `bntools.fold`; guessed if None.
        optimizer: looked at, and told about in the report; it is not changed.
        inplace: freeze *model* itself, as is wanted where an optimizer holds its parameters.

    Returns:
        the model, the plan with every BatchNorm in ``edits`` or ``refusals``, and what is frozen.

    Raises:
        UsageError: if there is nothing to freeze by that name.
        CaptureError: if the order is asked for and the model does not run on the inputs, or it cannot be
            copied.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        >>> net = freeze(net).model.train()
        >>> net[1].training, net[1].weight.requires_grad, type(net[1]).__name__
        (False, False, 'BatchNorm1d')
    """
    check_eager(model)
    if not (stats or affine):
        raise UsageError("stats, affine: both are False, so nothing is frozen", todo="leave one of them out")
    if first is not None and first < 1:
        raise UsageError(f"first: expected a positive number, it is {first}")
    with torch.inference_mode(False):
        target = model if inplace else copied(model)
        selected = select(target, only, include_frozen=True)
        left = dict(selected.left)
        if first is not None or until is not None:
            example = guess(target) if inputs is None else Example.of(inputs, target)
            chosen = early(target, example, first, until)
            left |= dict.fromkeys(selected.norms.keys() - chosen, (Reason.NOT_SELECTED, "it comes later"))
        norms = {path: module for path, module in selected.norms.items() if path not in left}
        switches, why = freezes(target, norms, stats=stats, affine=affine)
        plan = _plan("freeze", target, selected, switches, left | why)
        graft_(target, plan, {})
        return Surgery(target, plan, freezing_of(target, optimizer))


def unfreeze(
    model: nn.Module, only: str | Sequence[str] = "*", *, inplace: bool = False
) -> Surgery[Freezing]:
    """Make frozen BatchNorms what they were: modes, ``requires_grad`` and everything else.

    Args:
        model: left alone unless *inplace*.
        only: patterns of paths, as for `bntools.recalibrate`.
        inplace: unfreeze *model* itself.

    Returns:
        the model, the plan with every BatchNorm in ``edits`` or ``refusals``, and what is still frozen. The
        mode of each is the one that a training loop told it last.

    Raises:
        UsageError: if a pattern matches no BatchNorm.
        CaptureError: if the model cannot be copied.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        >>> net = unfreeze(freeze(net).model).model
        >>> net[1].training, net[1].weight.requires_grad
        (True, True)
    """
    check_eager(model)
    with torch.inference_mode(False):
        target = model if inplace else copied(model)
        selected = select(target, only, include_frozen=True)
        switches, why = unfreezes(target, selected.norms)
        plan = _plan("unfreeze", target, selected, switches, {**selected.left, **why})
        graft_(target, plan, {})
        return Surgery(target, plan, freezing_of(target, None))


def _plan(
    verb: str,
    model: nn.Module,
    selected: Selected,
    switches: Mapping[str, Switch],
    left: Mapping[str, tuple[Reason, str]],
) -> Plan:
    facts = selected.facts
    edits = tuple(Edit(site_of(path, facts[path])) for path in switches)
    refusals = tuple(
        Refusal(site_of(path, facts[path]), *left[path]) for path in facts if path not in switches
    )
    return Plan(verb, edits, refusals, fingerprint(model), switches=tuple(switches.values()))

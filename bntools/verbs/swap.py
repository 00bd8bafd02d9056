"""Swap BatchNorm for another norm, and keep what was learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bntools.core.capture import check_eager, fingerprint
from bntools.core.change import Change, change_between
from bntools.core.changes import Norm, Swap, Switch
from bntools.core.exact import copied
from bntools.core.example import Example
from bntools.core.graft import graft_
from bntools.core.guess import guess
from bntools.core.plan import Edit, Plan, Promise, Refusal
from bntools.core.reasons import Reason
from bntools.core.select import select
from bntools.core.sites import site_of
from bntools.core.surgery import Surgery
from bntools.core.swapping import Left, swap_of, tensors_of_swap
from bntools.errors import CaptureError, UsageError

Target = Literal["group", "layer", "instance", "switchable", "frozen", "sync", "batch"]
_NORMS = {"layer": Norm.GROUP, **{norm.value: norm for norm in Norm}}


def swap(
    model: nn.Module,
    to: Target = "group",
    *,
    groups: int | Literal["auto"] = "auto",
    inputs: Any = None,
    only: str | Sequence[str] = "*",
    inplace: bool = False,
) -> Surgery[Change]:
    """Put another norm in the place of each BatchNorm, with a γ and a β that make up for the difference.

    A GroupNorm divides by what each sample holds, a BatchNorm by what all of them held. If the values of
    a sample are spread as the running statistics say, those of group g have the mean ``M = mean_g μ_c`` and
    the variance ``S² = mean_g(σ_c² + μ_c²) − M²``, and a GroupNorm computes the same with

        ``γ' = γ·√(S² + ε)/√(σ² + ε)``, ``β' = β + γ·(M − μ)/√(σ² + ε)``.

    Samples differ, so the result is another function, on purpose; the report says how far it is from the
    old one.

    Args:
        model: an eager module; left alone unless *inplace*.
        to: ``"group"``; ``"layer"``, which is one group; ``"instance"``, which is a group for each channel;
            ``"switchable"``, a mixture of batch, layer and instance that starts as a BatchNorm;
            ``"frozen"``, as `bntools.freeze` does; ``"sync"`` or ``"batch"``, which are the same function.
        groups: how many; ``"auto"`` is the largest number, 32 at most, that divides the channels and leaves
            16 in each group.
        inputs: to measure the difference on, as for `bntools.fold`; guessed if None.
        only: patterns of paths, as for `bntools.recalibrate`.
        inplace: change *model* itself.

    Returns:
        the model, the plan with every BatchNorm in ``edits`` or ``refusals``, and how far the outputs are
        from the old ones. Hooks, modes, types, devices, shared modules and what a subclass does behind its
        normalisation are kept.

    Raises:
        UsageError: if an argument is wrong.
        CaptureError: if the model does not run on the inputs that are given, or cannot be copied.

    Source:
        Wu and He, Group Normalization (2018), on GroupNorm.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32))
        >>> swap(net).model[1].num_groups
        2
    """
    check_eager(model)
    if to not in (*_NORMS, "frozen"):
        raise UsageError(f"to: {to!r} is none", todo=f"write {', '.join((*_NORMS, 'frozen'))}")
    if groups != "auto" and (isinstance(groups, bool) or not isinstance(groups, int) or groups < 1):
        raise UsageError(f"groups: {groups!r} is none", todo="write a number, or 'auto'")
    with torch.inference_mode(False):
        target = copied(model)
        selected = select(target, only, include_frozen=True)
        left = dict(selected.left)
        swaps: list[Swap] = []
        switches: list[Switch] = []
        tensors: dict[str, Tensor] = {}
        for path, module in selected.norms.items():
            if to == "frozen":
                switches.append(Switch(path))
                continue
            count = 1 if to == "layer" else None if groups == "auto" else int(groups)
            found = swap_of(module, selected.facts[path].paths, _NORMS[to], count)
            if not path:
                found = Left(Reason.NO_MODULE, "the model is the BatchNorm itself, which nothing holds")
            if isinstance(found, Left):
                left[path] = found.reason, found.detail
                continue
            swaps.append(found)
            tensors |= tensors_of_swap(module, found)
        facts = selected.facts
        edits = tuple(Edit(site_of(path, facts[path])) for path in facts if path not in left)
        refusals = tuple(Refusal(site_of(path, facts[path]), *why) for path, why in left.items())
        plan = Plan(
            "swap",
            edits,
            refusals,
            fingerprint(target),
            promise=Promise.SAME if to in ("frozen", "sync", "batch") else Promise.NEW,
            switches=tuple(switches),
            swaps=tuple(swaps),
        )
        graft_(target, plan, tensors)
        change = change_between(model, target, [s.paths[0] for s in swaps], _example(model, inputs))
        if inplace:
            graft_(model, plan, tensors)
        return Surgery(model if inplace else target, plan, change)


def _example(model: nn.Module, inputs: Any) -> Example | None:
    if inputs is not None:
        return Example.of(inputs, model)
    try:
        return guess(model)
    except CaptureError:
        return None  # then nothing is measured, and the report says so

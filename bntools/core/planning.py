"""From a model and an example to a plan and its tensors: capture, find, compute."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

from torch import Tensor, nn

from bntools.core.calls import Capture
from bntools.core.capture import capture, check_eager, fingerprint, module_sites
from bntools.core.compute import fold_tensors
from bntools.core.example import Example
from bntools.core.find import find_folds
from bntools.core.pad import find_pads
from bntools.core.plan import Op, Plan, Refusal
from bntools.core.reasons import Reason
from bntools.core.reduce import find_reducible
from bntools.errors import CaptureError


def plan_folds(
    model: nn.Module, example: Example, *, bake: bool = False, simplify: bool = False, pad: bool = False
) -> tuple[Plan, dict[str, Tensor]]:
    """Decide every BatchNorm of a model, and compute the tensors of those that fold.

    Args:
        model: an eager module, in the mode in which it will be used; it is only read and run.
        example: what to run it on. If it does not run, every BatchNorm is refused.
        bake: whether hosts with a parametrised weight may be made plain.
        simplify: whether a BatchNorm that stays may become something that is measured to be faster.
        pad: whether convolutions may pad with a value for each channel, where that is.

    Returns:
        the plan, and the new tensors by key.

    Raises:
        UsageError: if *model* is no eager module.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.BatchNorm1d(3)).eval()
        >>> plan, _ = plan_folds(net, Example((torch.ones(2, 4),)))
        >>> plan.refusals[0].detail
        'sigmoid in 1 stands in front of it'
    """
    check_eager(model)
    try:
        captured = capture(model, example)
    except CaptureError as error:
        refusals = tuple(Refusal(s, Reason.NOT_CAPTURED, error.message) for s in module_sites(model))
        return Plan("fold", (), refusals, fingerprint(model)), {}
    plan, tensors = plan_of(model, captured, bake=bake)
    pads: frozenset[int] = frozenset()
    if pad and plan.refusals and (able := find_pads(model, captured, plan)):
        other = plan_of(model, captured, bake=bake, pads=able)
        if len(other[0].edits) > len(plan.edits):
            (plan, tensors), pads = other, able
    if simplify and plan.refusals and (reduce := find_reducible(model, captured, plan)):
        return plan_of(model, captured, bake=bake, reduce=reduce, pads=pads)
    return plan, tensors


def plan_of(
    model: nn.Module,
    captured: Capture,
    *,
    bake: bool = False,
    watch: Collection[str] = (),
    reduce: Mapping[str, Collection[Op]] = MappingProxyType({}),
    pads: frozenset[int] = frozenset(),
) -> tuple[Plan, dict[str, Tensor]]:
    """`plan_folds` for a model that has been captured.

    Args:
        model, captured: the model, and one run of it.
        bake, watch, reduce, pads: as in `bntools.core.find.find_folds`.
    """
    refuse: dict[str, tuple[Reason, str]] = {}
    while True:
        plan = find_folds(captured, bake=bake, refuse=refuse, watch=watch, reduce=reduce, pads=pads)
        tensors, overflowing = fold_tensors(model, plan)
        if not overflowing:
            return plan, tensors
        if stays := overflowing & {reduction.site.name for reduction in plan.reductions}:
            reduce = {name: ops for name, ops in reduce.items() if name not in stays}
            continue
        refuse.update(dict.fromkeys(overflowing, (Reason.OVERFLOW, "the folded weights overflow their type")))

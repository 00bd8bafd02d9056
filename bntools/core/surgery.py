"""The way through the house: observe, graft, observe again, and put everything back if they differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from bntools.core.axes import Axes
from bntools.core.compute import get_tensor
from bntools.core.exact import copied
from bntools.core.example import Example
from bntools.core.graft import graft_
from bntools.core.plan import Plan
from bntools.core.proof import procedure_of, prove
from bntools.core.verify import UNASKED, UNCHANGED, Report, Verdict
from bntools.errors import PromiseError

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Surgery(Generic[R]):
    """A changed model, what was done to it, and how that was proven.

    Args:
        model: the changed model.
        plan: every site, edited or refused.
        report: the measurement: a `bntools.Report`, or a `bntools.Drift` of what was recalibrated.
        example: the input that the plan was made on, None if there was none.
        axes: those that a program leaves open.
    """

    model: nn.Module
    plan: Plan
    report: R
    example: Example | None = field(default=None)
    axes: Axes = field(default_factory=Axes)


def operate(
    model: nn.Module,
    plan: Plan,
    tensors: Mapping[str, Tensor],
    example: Example,
    *,
    inplace: bool,
    verify: bool,
    progress: Callable[[str], None] = lambda step: None,
) -> Surgery[Report]:
    """Carry out a plan whose promise is ``same``, and prove it.

    Args:
        model: left alone unless *inplace*.
        plan, tensors: what to do.
        example: what to prove it on.
        inplace: change *model* itself.
        verify: measure; without, the report says ``skipped``.
        progress: told the name of each step.

    Raises:
        PromiseError: if the changed model computes something else; *model* is as it was.
        CaptureError: if the model cannot be copied.
    """
    if not plan.changes:
        return Surgery(model if inplace else copied(model), plan, UNCHANGED, example)
    proof = prove(model, procedure_of(plan), example, progress) if verify else None
    target = model if inplace else copied(model, _replaced(model, plan))
    progress("folding")
    undo = graft_(target, plan, tensors)
    if proof is None:
        return Surgery(target, plan, UNASKED, example)
    try:
        progress("running the folded model")
        report = proof.judge(target)
        if report.verdict is Verdict.FAILED:
            raise PromiseError(
                f"the folded model does not compute what the model computed: {report.why}",
                todo="nothing was changed",
                report=report,
            )
    except BaseException:
        undo()
        raise
    return Surgery(target, plan, report, example)


def _replaced(model: nn.Module, plan: Plan) -> dict[int, Any]:
    """The tensors that a copy need not copy, since the graft puts others in their place."""
    keys = {key for host in plan.hosts for key in (*host.weight, *host.bias) if not host.bake}
    return {id(t): t for t in (get_tensor(model, key) for key in keys) if t is not None}

"""The way through the house: observe, graft, observe again, and put everything back if they differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from bntools.core.capture import first_line
from bntools.core.compute import fold_tensors, get_tensor
from bntools.core.exact import copied, exact_copy
from bntools.core.example import Example
from bntools.core.graft import bypass_, graft_
from bntools.core.plan import Plan
from bntools.core.trials import trials
from bntools.core.verify import (
    TOLERANCE,
    Observation,
    Report,
    Verdict,
    agreement,
    compare,
    difference,
    observe,
)
from bntools.errors import CaptureError, PromiseError


@dataclass(frozen=True, slots=True)
class Surgery:
    """A changed model, what was done to it, and how that was proven.

    Args:
        model: the changed model.
        plan: every site, edited or refused.
        report: the measurement.
        example: the input that the plan was made on, None if there was none.
    """

    model: nn.Module
    plan: Plan
    report: Report
    example: Example | None = field(default=None)


def operate(
    model: nn.Module,
    plan: Plan,
    tensors: Mapping[str, Tensor],
    example: Example,
    *,
    inplace: bool,
    verify: bool,
    progress: Callable[[str], None] = lambda step: None,
) -> Surgery:
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
    if not plan.edits:
        report = Report(Verdict.SKIPPED, why="nothing was changed")
        return Surgery(model if inplace else copied(model), plan, report, example)
    proof = _prove(model, plan, example, progress) if verify else None
    target = model if inplace else copied(model)
    progress("folding")
    undo = graft_(target, plan, tensors)
    if proof is None:
        return Surgery(target, plan, Report(Verdict.SKIPPED, why="verification was switched off"), example)
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


@dataclass(frozen=True, slots=True)
class _Proof:
    """The verdict on the algebra, and what is needed to judge the model that carries its result.

    Args:
        report: of the comparison in float64.
        tensors: the new tensors before they are rounded to the model's dtype.
        trials: the inputs.
        exact, shipped: what the original returned on them, in float64 and in its own dtype.
    """

    report: Report
    tensors: Mapping[str, Tensor]
    trials: list[Example]
    exact: list[Observation]
    shipped: list[Observation]

    def judge(self, model: nn.Module) -> Report:
        """The report, with what rounding to the dtype that ships adds."""
        report = self.report
        if report.verdict is Verdict.FAILED:
            return report
        off = [key for key, t in self.tensors.items() if not _is_rounded(get_tensor(model, key), t)]
        shipped = [observe(model, trial, double=False) for trial in self.trials]
        agreed = [agreement(a.outputs, b.outputs) for a, b in zip(shipped, self.shipped, strict=True)]
        known = [a for a in agreed if a is not None]
        error, noise = _worst(shipped, self.exact), _worst(self.shipped, self.exact)
        report = replace(report, shipped_error=error, noise=noise, agreement=min(known) if known else None)
        if off:
            return replace(
                report, verdict=Verdict.FAILED, why=f"{off[0]} is not the tensor that was proven right"
            )
        if not math.isfinite(error) and math.isfinite(noise):
            why = "the folded model returns values that are not finite in its own dtype, or of another shape"
            return replace(report, verdict=Verdict.FAILED, why=why)
        return report


def _prove(model: nn.Module, plan: Plan, example: Example, progress: Callable[[str], None]) -> _Proof:
    """Carry out the plan on a copy in float64, and compare that with what it was, on several inputs."""
    last = {e.host.call: e.site.name for e in plan.edits}
    sites = {e.site.name: last[e.host.call] for e in plan.edits}
    taps = [e.site.module for e in plan.edits if e.site.module is not None]
    before: list[Observation] = []
    shipped: list[Observation] = []
    done: list[Example] = []
    progress("running the original in float64")
    twin = exact_copy(model)
    for trial in trials(example):
        try:
            own, double = observe(model, trial, double=False), observe(twin, trial, taps=taps)
        except Exception as error:
            if trial is not example:
                continue  # a model may be made for one batch size
            raise CaptureError(
                f"the model does not run in float64 on the CPU: {type(error).__name__}: {first_line(error)}",
                todo="fold without the proof: --no-verify, or verify=False",
            ) from error
        shipped.append(own)
        before.append(double)
        done.append(trial)
    progress("folding in float64")
    tensors, _ = fold_tensors(twin, plan)
    undo = graft_(twin, plan, tensors)
    after = [observe(twin, trial, taps=taps) for trial in done]
    undo()
    progress("running it without its BatchNorms")
    bypass_(twin, plan)
    bypassed = [_or_nothing(twin, trial) for trial in done]
    report = compare(before, after, bypassed, sites)
    report = replace(report, inputs=tuple(f"{trial} ({trial.origin})" for trial in done))
    return _Proof(report, tensors, done, before, shipped)


def _is_rounded(tensor: Tensor | None, exact: Tensor) -> bool:
    """Whether *tensor* is *exact* in a narrower dtype, to one unit in the last place.

    Not to the bit: the last bit of a float64 may differ between devices, and so may the rounding of a tie.
    """
    if tensor is None or tensor.shape != exact.shape:
        return False
    info = torch.finfo(tensor.dtype)
    tensor = tensor.detach().to("cpu", torch.float64)
    close = (tensor - exact).abs() <= info.eps * (exact.abs() + info.smallest_normal)
    return bool((close | (tensor == exact) | (tensor.isnan() & exact.isnan())).all())


def _or_nothing(model: nn.Module, example: Example) -> Observation:
    """A model without its BatchNorms may not run at all: that too would show."""
    try:
        return observe(model, example)
    except Exception:
        return Observation(())


def _worst(runs: list[Observation], reference: list[Observation]) -> float:
    return max((difference(a.outputs, b.outputs) for a, b in zip(runs, reference, strict=True)), default=0.0)


def verify(a: nn.Module, b: nn.Module, inputs: object) -> Report:
    """Measure in float64 whether two modules compute the same.

    ``max|a(x) − b(x)| ≤ 1e-8 · max|a(x)|`` for every output, on the inputs given and on a redraw of them.

    Args:
        a: the reference.
        b: the other one.
        inputs: a tensor, a tuple of arguments, or a dict of keyword arguments.

    Returns:
        ``passed`` or ``failed``, with the error; there is no power to report, since nothing says what a
        fault would look like.

    Raises:
        CaptureError: if one of them cannot be copied or run.

    Example:
        >>> net = nn.Linear(2, 3)
        >>> verify(net, net, torch.ones(1, 2)).verdict.value
        'passed'
    """
    example = Example.of(inputs, a)
    one, two = exact_copy(a), exact_copy(b)
    error, seen = 0.0, []
    for trial in trials(example):
        try:
            reference = observe(one, trial)
        except Exception as problem:
            if trial is example:
                raise CaptureError(f"the model does not run on {example}: {first_line(problem)}") from problem
            continue
        error = max(error, difference(observe(two, trial).outputs, reference.outputs))
        seen.append(f"{trial} ({trial.origin})")
    failed = error > TOLERANCE
    why = f"the outputs differ by {error:.1e} of the scale in float64" if failed else ""
    return Report(Verdict.FAILED if failed else Verdict.PASSED, error, inputs=tuple(seen), why=why)

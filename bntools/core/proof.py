"""Prove a plan: carry it out on a copy in float64, and hold that against what it was, on several inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bntools.core.compute import fold_tensors, get_tensor
from bntools.core.exact import exact_copy, release_
from bntools.core.example import Example
from bntools.core.graft import bypass_, graft_
from bntools.core.moving import STILL, Moving
from bntools.core.names import modules_of, named_tensors
from bntools.core.numbers import Seen
from bntools.core.observe import Observation, agreement, difference, distance, observe, types_of
from bntools.core.plan import Plan
from bntools.core.trials import trials
from bntools.core.verify import TOLERANCE, Report, Verdict, compare
from bntools.errors import CaptureError, first_line, in_a_line

_CHAOS = TOLERANCE / 100
"""A run is ill-conditioned if an ulp in each weight moves something by more than this share of its scale."""
_DOUBT = 1e3
"""An error of more than this times that movement is an error on an ill-conditioned run as well."""


@dataclass(frozen=True, slots=True)
class Proof:
    """The verdict on the algebra, and what is needed to judge the model that carries its result.

    Args:
        plan: what was proven.
        report: of the comparison in float64.
        tensors: the new tensors before they are rounded to the model's dtype.
        trials: the inputs.
        exact, shipped: what the original returned on them, in float64 and in its own dtype.
    """

    plan: Plan
    report: Report
    tensors: Mapping[str, Tensor]
    trials: Sequence[Example]
    exact: Sequence[Observation]
    shipped: Sequence[Observation]

    def judge(self, model: nn.Module) -> Report:
        """The report, with what rounding to the dtype that ships adds."""
        report = self.report
        if report.verdict is Verdict.FAILED:
            return report
        off = [key for key, t in self.tensors.items() if not _is_rounded(get_tensor(model, key), t)]
        try:
            shipped = [observe(model, trial, double=False) for trial in self.trials]
        except Exception as problem:
            return _does_not_run(problem, self.trials)
        agreed = [agreement(a.outputs, b.outputs) for a, b in zip(shipped, self.shipped, strict=True)]
        known = [a for a in agreed if a is not None]
        error, noise = _worst(shipped, self.exact), _worst(self.shipped, self.exact)
        report = replace(report, shipped_error=error, noise=noise, agreement=min(known) if known else None)
        if off:
            hosts = (h for h in self.plan.hosts if off[0] in h.keys)
            reduced = (r.site.name for r in self.plan.reductions if off[0] in r.keys)
            site = next((name for host in hosts for name in (*host.rows, *host.columns)), next(reduced, ""))
            why = f"{off[0]} is not the tensor that was proven right"
            return replace(report, verdict=Verdict.FAILED, broken=site, why=why)
        if types_of(shipped) != types_of(self.shipped):
            why = "the folded model returns values of another dtype"
            return replace(report, verdict=Verdict.FAILED, why=why)
        if not math.isfinite(error) and math.isfinite(noise):
            why = "the folded model returns values that are not finite in its own dtype, or of another shape"
            return replace(report, verdict=Verdict.FAILED, why=why)
        return report


@dataclass(frozen=True, slots=True)
class Procedure:
    """What is to be done to a model, so that it can be tried on a copy.

    Args:
        plan: what was decided.
        seen: for each edited site, what must stand where afterwards.
        make: does it in place, with numbers of the model's own dtype, and returns the new tensors by key.
        forget: takes the BatchNorms out, and does nothing else.
    """

    plan: Plan
    seen: Mapping[str, Seen]
    make: Callable[[nn.Module], Mapping[str, Tensor]]
    forget: Callable[[nn.Module], None]


def procedure_of(plan: Plan) -> Procedure:
    """To graft a plan."""
    assert plan.maps is not None

    def make(model: nn.Module) -> Mapping[str, Tensor]:
        tensors, _ = fold_tensors(model, plan)
        graft_(model, plan, tensors)
        return tensors

    seen = {change.site.name: plan.maps.seen[change.site.name] for change in plan.changes}
    return Procedure(plan, seen, make, lambda model: bypass_(model, plan))


def prove(model: nn.Module, procedure: Procedure, example: Example, progress: Callable[[str], None]) -> Proof:
    """Measure in float64 what a procedure does to a model, which is only copied.

    Args:
        model: the original.
        procedure: made for it.
        example: the input that was given; redraws of it are tried as well.
        progress: told the name of each step.

    Raises:
        CaptureError: if the model cannot be copied, or does not run in float64.
    """
    plan = procedure.plan
    own = [change.site.module for change in plan.changes if change.site.module is not None]
    modules = dict(modules_of(model))
    taps = list(dict.fromkeys([*own, *(seen.tap for seen in procedure.seen.values() if seen.tap in modules)]))
    before: list[Observation] = []
    shipped: list[Observation] = []
    done: list[Example] = []
    progress("running the original in float64")
    twin = exact_copy(model)
    for trial in trials(example):
        try:
            plain, double = observe(model, trial, double=False), observe(twin, trial, taps=taps)
        except Exception as error:
            if trial is not example:
                continue  # a model may be made for one batch size
            raise CaptureError(
                f"the model does not run in float64 on the CPU: {in_a_line(error)}",
                todo="fold without the proof: --no-verify, or verify=False",
            ) from error
        shipped.append(plain)
        before.append(double)
        done.append(trial)
    progress("running it without its BatchNorms")
    procedure.forget(twin)
    bypassed = _or_nothing(twin, example)
    release_(twin)
    progress("folding in float64")
    twin = exact_copy(model)
    # Tensors of their own, as those of the twin are emptied below.
    tensors = {key: tensor.detach() for key, tensor in procedure.make(twin).items()}
    try:
        after = [observe(twin, trial, taps=taps) for trial in done]
    except Exception as error:  # code that asks a BatchNorm for its attributes finds another module there
        return Proof(plan, _does_not_run(error, done), tensors, done, before, shipped)
    release_(twin)
    report = compare(before, after, bypassed, procedure.seen)
    if report.verdict is Verdict.FAILED:
        progress("measuring how far rounding carries")
        moves = _sensitivity(model, done, before, taps)
        kept = [i for i, move in enumerate(moves) if i == 0 or move <= _CHAOS]
        before, after, shipped = ([runs[i] for i in kept] for runs in (before, after, shipped))
        done = [done[i] for i in kept]
        report = _doubted(compare(before, after, bypassed, procedure.seen), moves[0])
    return Proof(plan, replace(report, inputs=_named(done)), tensors, done, before, shipped)


def _does_not_run(error: Exception, done: Sequence[Example]) -> Report:
    why = f"the folded model does not run: {in_a_line(error)}"
    return Report(Verdict.FAILED, error=math.inf, inputs=_named(done), why=why)


def _named(done: Sequence[Example]) -> tuple[str, ...]:
    return tuple(f"{trial} ({trial.origin})" for trial in done)


def _sensitivity(
    model: nn.Module, done: Sequence[Example], before: Sequence[Observation], taps: Sequence[str]
) -> list[float]:
    """How far an ulp in each weight moves the original itself, for each of the inputs.

    A deep network on inputs that it was not trained for may amplify rounding a billionfold. There no fold can
    be told from a fault.
    """
    twin = exact_copy(model)
    generator = torch.Generator("cpu").manual_seed(0)
    with torch.no_grad():
        for parameter in {id(t): t for _, t in named_tensors(twin)}.values():
            if isinstance(parameter, nn.Parameter) and parameter.is_floating_point():
                draw = torch.rand(parameter.shape, generator=generator, dtype=torch.float64, device="cpu")
                sign = draw.round() * 2 - 1
                parameter.mul_(1 + sign * torch.finfo(torch.float64).eps)
    return [distance(observe(twin, t, taps=taps), b) for t, b in zip(done, before, strict=True)]


def _doubted(report: Report, move: float) -> Report:
    """A failure on the given input that its own sensitivity may explain proves nothing either way."""
    worst = max([report.error, *(site.error for site in report.sites)])
    told = move <= _CHAOS or not math.isfinite(move) or worst > _DOUBT * move
    if report.verdict is not Verdict.FAILED or told:
        return report
    why = (
        f"the outputs differ by {worst:.1e} of the scale in float64, and on these inputs an ulp in each "
        f"weight alone moves the original by {move:.1e}: give inputs that the model was trained for"
    )
    return replace(report, verdict=Verdict.INCONCLUSIVE, broken="", why=why)


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


def _worst(runs: Sequence[Observation], reference: Sequence[Observation]) -> float:
    return max((difference(a.outputs, b.outputs) for a, b in zip(runs, reference, strict=True)), default=0.0)


def verify(a: nn.Module, b: nn.Module, inputs: object) -> Report:
    """Measure in float64 whether two modules compute the same.

    ``max|a(x) − b(x)| ≤ 1e-8 · max|a(x)|`` for every output, on the inputs given and on redraws of them.

    Args:
        a: the reference.
        b: the other one.
        inputs: a tensor, a tuple of arguments, or a dict of keyword arguments.

    Returns:
        ``passed`` or ``failed``, with the error, or ``inconclusive`` if the reference returns the same for
        every input; there is no power to report, since nothing says what a fault would look like.

    Raises:
        CaptureError: if one of them cannot be copied or run.

    Example:
        >>> net = nn.Linear(2, 3)
        >>> verify(net, net, torch.ones(1, 2)).verdict.value
        'passed'
    """
    example = Example.of(inputs, a)
    one, two = exact_copy(a), exact_copy(b)
    error, seen, moving = 0.0, [], Moving()
    for trial in trials(example):
        try:
            reference = observe(one, trial)
            if not reference.outputs:
                why = "the reference returns nothing that could be compared"
                return Report(Verdict.INCONCLUSIVE, inputs=_named([trial]), why=why)
            other = observe(two, trial)
        except Exception as problem:
            if trial is example:
                raise CaptureError(f"a model does not run on {example}: {first_line(problem)}") from problem
            continue
        error = max(error, difference(other.outputs, reference.outputs))
        moving.look(trial.tensors, reference.outputs)
        seen.append(trial)
    verdict, why = Verdict.PASSED, ""
    if error > TOLERANCE:
        verdict, why = Verdict.FAILED, f"the outputs differ by {error:.1e} of the scale in float64"
    elif moving.is_still:
        verdict, why = Verdict.INCONCLUSIVE, STILL
    return Report(verdict, error, inputs=_named(seen), why=why)

"""Measure whether a promise was kept: observe a model before and after, and compare.

The claim is algebraic, so it is checked in float64, where a right fold differs by 1e-15 to 1e-10 of the
outputs' scale and a wrong one by far more; no float32 tolerance separates the two. Each edited site is
looked at by itself as well, so that a dead branch or a flat output hides nothing, and a failure has a
place. A check that would not have seen the BatchNorms disappear proves nothing: that is its power.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from bntools.core.exact import exact, in_float64
from bntools.core.example import Example
from bntools.core.leaves import values_of
from bntools.core.untouched import untouched

TOLERANCE = 1e-8
"""The largest difference in float64, as a share of the largest reference value, that rounding can explain."""
POWER = 10 * TOLERANCE
"""A check has power if bypassing the edited layers would have moved the values by more than this."""
_SAMPLE = 1 << 16
_MASK = 1e4
"""Equal values that are this large, and this much larger than all that differ, say nothing of their scale."""


class Verdict(StrEnum):
    """What a check found."""

    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Sample:
    """Some of the values that a module returned, evenly spread, with their scale.

    Args:
        values: at most 65 536 of them.
        scale: the largest absolute value of all of them.
        power: how far a module that did nothing would have been off, as a share of the scale.
    """

    values: Tensor
    scale: float
    power: float


@dataclass(frozen=True, slots=True)
class Observation:
    """What one run returned, and what its taps saw.

    Args:
        outputs: every tensor of the result, on the CPU.
        taps: by path, with ``#2`` for a second call.
    """

    outputs: tuple[Tensor, ...]
    taps: Mapping[str, Sample] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SiteCheck:
    """One edited site: the error of its fold and the power of the check, both as a share of the scale."""

    name: str
    error: float
    power: float


@dataclass(frozen=True, slots=True)
class Report:
    """How a promise was checked and what came of it.

    Args:
        verdict: of the whole check.
        error: the largest difference in float64, as a share of the largest reference output.
        tolerance: the largest that rounding can explain.
        power: how far the outputs move if the edited layers are bypassed, in the same unit.
        sites: each edited site by itself.
        shipped_error: the difference in the dtype that ships, against the float64 reference.
        noise: the original's own difference from that reference: its rounding noise.
        agreement: the share of rows whose largest output is at the same place, None if outputs are no rows.
        inputs: what was run, in words.
        broken: the first site, in order of execution, that is wrong.
        why: a sentence, unless the check passed.
    """

    verdict: Verdict
    error: float = 0.0
    tolerance: float = TOLERANCE
    power: float = 0.0
    sites: tuple[SiteCheck, ...] = ()
    shipped_error: float | None = None
    noise: float | None = None
    agreement: float | None = None
    inputs: tuple[str, ...] = ()
    broken: str = ""
    why: str = ""


def observe(
    model: nn.Module, example: Example, *, taps: Sequence[str] = (), double: bool = True
) -> Observation:
    """Run *model* once, leaving no trace on it.

    Args:
        model: for ``double``, one from `bntools.core.exact.exact_copy`.
        example: the call; converted for ``double``.
        taps: paths of modules to sample.
        double: compute in float64.
    """
    samples: dict[str, Sample] = {}
    calls: Counter[str] = Counter()
    with ExitStack() as stack:
        stack.enter_context(untouched(model))
        for path in dict.fromkeys(taps):
            hook = _tap(path, samples, calls)
            stack.callback(model.get_submodule(path).register_forward_hook(hook, with_kwargs=True).remove)
        if double:
            stack.enter_context(in_float64())
        result = (example.map(exact) if double else example.fresh())(model)
    leaves = (t.detach() if t.layout is torch.strided else t.detach().to_dense() for t in values_of(result))
    return Observation(tuple(t.cpu() for t in leaves), samples)


def _tap(path: str, samples: dict[str, Sample], calls: Counter[str]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        calls[path] += 1
        name = path if calls[path] == 1 else f"{path}#{calls[path]}"
        if not isinstance(out, Tensor):
            return
        out, count = out.detach(), out.numel()
        # Drawn at random, since steps of equal length could pass by the same channels each time.
        drawn = torch.Generator("cpu").manual_seed(0)
        at = torch.arange(count, device="cpu")
        if count > _SAMPLE:
            at = torch.randint(count, (_SAMPLE,), generator=drawn, device="cpu")
        scale = _largest(out)
        power = 0.0
        for came in (*args, *kwargs.values()):
            if isinstance(came, Tensor) and came.shape == out.shape:
                power = _share(_largest(out - came), scale)
        samples[name] = Sample(out.flatten()[at.to(out.device)].clone(), scale, power)

    return hook


def _largest(values: Tensor) -> float:
    """The largest absolute value of those that are finite."""
    finite = values[values.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def difference(a: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """``max|a − reference| / max|reference|``, the worst of all outputs; infinite if they cannot be compared.

    Values that are not finite must be so at the same places, and outputs that are no floats must be equal.
    """
    if len(a) != len(reference):
        return math.inf
    return max((_difference(x, r) for x, r in zip(a, reference, strict=True)), default=0.0)


def distance(run: Observation, reference: Observation) -> float:
    """The worst difference of two runs, at the outputs and at every tap that both saw."""
    at_taps = (
        _difference(sample.values, known.values, known.scale)
        for name, sample in run.taps.items()
        if (known := reference.taps.get(name)) is not None
    )
    return max([difference(run.outputs, reference.outputs), *at_taps])


def _difference(x: Tensor, reference: Tensor, scale: float | None = None) -> float:
    if x.shape != reference.shape:
        return math.inf
    if not (reference.is_floating_point() or reference.is_complex()):
        return 0.0 if torch.equal(x, reference) else math.inf
    if not (x.is_floating_point() or x.is_complex()):
        return math.inf
    wide = torch.complex128 if reference.is_complex() else torch.float64
    x, reference = x.to(wide), reference.to(wide)
    finite = reference.isfinite()
    if not torch.equal(finite, x.isfinite()):
        return math.inf
    if not finite.any():
        return 0.0
    x, reference = x[finite], reference[finite]
    delta = float((x - reference).abs().max())
    return _share(delta, _scale(x, reference) if scale is None else scale)


def _scale(x: Tensor, reference: Tensor) -> float:
    """The largest reference value, unless it is a constant that masks: -1e9 would hide every difference."""
    largest = float(reference.abs().max())
    if largest >= _MASK:
        moved = _largest(reference[x != reference])
        if 0 < moved <= largest / _MASK:
            return moved
    return largest


def _share(delta: float, scale: float) -> float:
    if math.isnan(delta):
        return math.inf
    return 0.0 if delta == 0 else delta / scale if scale > 0 else math.inf


def compare(
    before: Sequence[Observation],
    after: Sequence[Observation],
    bypassed: Observation,
    sites: Mapping[str, str],
) -> Report:
    """Judge a fold by runs in float64 on the same inputs.

    Args:
        before: the original.
        after: the folded model.
        bypassed: the original without its BatchNorms on the first input, which shows what a difference
            looks like.
        sites: the edited sites in order of execution, each with the tap at which its fold must show: its
            own, or that of the last of several that fold into one host.

    Returns:
        ``failed`` if outputs or a site differ by more than `TOLERANCE`; ``inconclusive`` if nothing differs
        but bypassing would not have shown either; else ``passed``.
    """
    pairs = list(zip(before, after, strict=True))
    error = max((difference(a.outputs, b.outputs) for b, a in pairs), default=0.0)
    power = difference(bypassed.outputs, before[0].outputs)
    checks = tuple(_check(name, tap, pairs) for name, tap in sites.items())
    broken = next((c.name for c in checks if c.error > TOLERANCE), "")
    weak = [c.name for c in checks if c.power <= POWER]
    verdict, why = Verdict.PASSED, ""
    if broken or error > TOLERANCE:
        worst = max([error, *(c.error for c in checks)])
        verdict, why = (
            Verdict.FAILED,
            f"{broken or 'the outputs'} differ by {worst:.1e} of the scale in float64",
        )
        why += f", {TOLERANCE:.0e} at most can be rounding"
    elif sites and not any(o.is_floating_point() and o.isfinite().any() for b in before for o in b.outputs):
        verdict, why = Verdict.INCONCLUSIVE, "on these inputs no output is a finite number"
    elif sites and power <= POWER:
        verdict, why = Verdict.INCONCLUSIVE, "the outputs would not move without the BatchNorms either"
    elif weak:
        verdict, why = (
            Verdict.INCONCLUSIVE,
            f"{weak[0]} is the identity on these inputs: a wrong fold would not show",
        )
    return Report(verdict, error, TOLERANCE, power, checks, broken=broken, why=why)


def _check(name: str, tap: str, pairs: Sequence[tuple[Observation, Observation]]) -> SiteCheck:
    error = power = 0.0
    for before, after in pairs:
        old, new, own = before.taps.get(tap), after.taps.get(tap), before.taps.get(name)
        if old is None and new is None:  # a path that these inputs do not take
            continue
        if old is None or new is None:
            return SiteCheck(name, math.inf, power)
        error = max(error, _difference(new.values, old.values, old.scale))
        power = max(power, own.power if own is not None else 0.0)
    return SiteCheck(name, error, power)


def agreement(a: Sequence[Tensor], b: Sequence[Tensor]) -> float | None:
    """The share of rows of the first output whose largest entry is at the same place."""
    if not a or not b or a[0].ndim < 2 or a[0].shape != b[0].shape or a[0].shape[1] < 2:
        return None
    if not a[0].numel() or a[0].isnan().any():
        return None
    return float((a[0].argmax(1) == b[0].argmax(1)).double().mean())

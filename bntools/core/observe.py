"""Look at what a model returns, and at what its modules return on the way, without leaving a trace on it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bntools.core.exact import exact, in_float64
from bntools.core.example import Example
from bntools.core.fit import registered
from bntools.core.leaves import values_of
from bntools.core.untouched import untouched

_SAMPLE = 1 << 16
_MASK = 1e4
"""Equal values that are this large, and this much larger than all that differ, say nothing of their scale."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Some of the values that a module returned, evenly spread, with their scale.

    Args:
        values: at most 65 536 of them.
        scale: the largest absolute value of all of them.
        power: how far a module that did nothing would have been off, as a share of the scale.
        at: their places in the flattened value.
        shape: of the value.
    """

    values: Tensor
    scale: float
    power: float
    at: Tensor
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Observation:
    """What one run returned, and what its taps saw.

    Args:
        outputs: every tensor of the result, on the CPU.
        taps: by path, with ``#2`` for a second call.
    """

    outputs: tuple[Tensor, ...]
    taps: Mapping[str, Sample] = field(default_factory=dict)


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
            module = registered(model, path)
            if module is not None:  # a program loses what nobody calls any more
                hook = _tap(path, samples, calls)
                stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
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
        scale = largest(out)
        power = 0.0
        for came in (*args, *kwargs.values()):
            if isinstance(came, Tensor) and came.shape == out.shape:
                power = _share(largest(out - came), scale)
        values = out.flatten()[at.to(out.device)].clone()
        samples[name] = Sample(values, scale, power, at, tuple(out.shape))

    return hook


def largest(values: Tensor) -> float:
    """The largest absolute value of those that are finite."""
    finite = values[values.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def difference(a: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """``max|a − reference| / max|reference|``, the worst of all outputs; infinite if they cannot be compared.

    Values that are not finite must be so at the same places, and outputs that are no floats must be equal.
    """
    if len(a) != len(reference):
        return math.inf
    return max((difference_of(x, r) for x, r in zip(a, reference, strict=True)), default=0.0)


def types_of(runs: Sequence[Observation]) -> list[torch.dtype]:
    """The dtypes of all outputs."""
    return [output.dtype for run in runs for output in run.outputs]


def distance(run: Observation, reference: Observation) -> float:
    """The worst difference of two runs, at the outputs and at every tap that both saw."""
    at_taps = (
        difference_of(sample.values, known.values, known.scale)
        for name, sample in run.taps.items()
        if (known := reference.taps.get(name)) is not None
    )
    return max([difference(run.outputs, reference.outputs), *at_taps])


def difference_of(x: Tensor, reference: Tensor, scale: float | None = None) -> float:
    """The same for one tensor, by another scale if one is given."""
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
    most = float(reference.abs().max())
    if most >= _MASK:
        moved = largest(reference[x != reference])
        if 0 < moved <= most / _MASK:
            return moved
    return most


def _share(delta: float, scale: float) -> float:
    if math.isnan(delta):
        return math.inf
    return 0.0 if delta == 0 else delta / scale if scale > 0 else math.inf


def agreement(a: Sequence[Tensor], b: Sequence[Tensor]) -> float | None:
    """The share of rows of the first output whose largest entry is at the same place."""
    if not a or not b or a[0].ndim < 2 or a[0].shape != b[0].shape or a[0].shape[1] < 2:
        return None
    if not a[0].numel() or a[0].isnan().any():
        return None
    return float((a[0].argmax(1) == b[0].argmax(1)).double().mean())

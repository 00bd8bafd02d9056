"""Two sides against each other by the reference's own rounding: a file against the model that it came from.

No fixed tolerance tells a right file from a wrong one: how far rounding carries is a matter of the model and
of its inputs. So the model says itself how far: in float64, and in the type in which it ships.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bntools.core.child import CrashError, HangError, RefusalError
from bntools.core.example import Example
from bntools.core.moving import STILL, Moving
from bntools.core.observe import agreement, difference_of
from bntools.core.sides import FileSide, ModuleSide, Outputs, Side
from bntools.core.variants import jitter_, variant
from bntools.core.verify import TOLERANCE, Report, Verdict
from bntools.errors import BntoolsError, CaptureError, first_line, in_a_line

FLOORS = {torch.float64: TOLERANCE, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""The smallest error, as a share of the scale, that counts as rounding whatever the reference's own is."""
NOISY = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 1e-1}
"""Where the reference's own rounding is larger than this share of the scale, nothing can be told."""
TIMES = 10.0
# Not by words alone: its messages hold names and paths too.
_NO_KERNEL = re.compile(
    r"^NotImplemented: |Could not find an implementation for \w"
    r"|Unsupported model IR version: \d| is till opset \d|No opset import for domain '"
)


@dataclass(slots=True)
class _Trial:
    """What came of one input: for each output the error and the noise, as shares of its scale."""

    example: Example
    errors: list[float]
    noises: list[float]
    agreed: float | None = None
    odd: float = 0.0

    @property
    def noise(self) -> float:
        return max(self.noises, default=0.0)


@dataclass(slots=True)
class _Found:
    """The trials so far, and what else there is to say."""

    trials: list[_Trial] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    moving: Moving = field(default_factory=Moving)

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(f"{each.example} ({each.example.origin})" for each in self.trials)


def check(a: Side, b: Side, examples: Iterable[Example]) -> Report:
    """Hold *b* against *a* on several inputs.

    With r the reference in float64, t in its own type and z the other side, for each output
    ``max|z − r| ≤ max(10·max|t − r|, noise, floor)`` as shares of ``max|r|``, where noise is the largest
    ``max|t − r|`` of all outputs; and shapes, types and what is not finite must agree. The side that is a
    torch model is the reference. Of two files the first is: r is what it computes without the runtime's
    optimisations, t with them, and with each weight an ulp off.

    Args:
        a, b: the two.
        examples: the first is what was given; others that the model does not take, or that it amplifies
            rounding on, count for nothing.

    Raises:
        CaptureError: if the reference does not run on the first of them.
    """
    reference, other = (b, a) if isinstance(a, FileSide) and isinstance(b, ModuleSide) else (a, b)
    runtime = next((side.runtime.name for side in (a, b) if isinstance(side, FileSide)), "")
    found = _Found()
    dtype = other.dtype if other.dtype in FLOORS else torch.float32
    try:
        for side in (reference, other):
            if isinstance(side, FileSide):
                _load(side)
        with _as_reference(reference, dtype) as known:
            for number, example in enumerate(examples):
                _try(known, other, example, found, first=number == 0)
    except _EndError as end:
        report = Report(end.verdict, error=end.error, noise=None, inputs=found.inputs, why=str(end))
        return replace(report, runtime=runtime, notes=tuple(found.notes))
    return replace(_judged(found, dtype), runtime=runtime)


class _EndError(Exception):
    """A verdict that needs no numbers."""

    def __init__(self, verdict: Verdict, why: str) -> None:
        super().__init__(why)
        self.verdict = verdict
        self.error = math.inf if verdict is Verdict.FAILED else 0.0


def _load(side: FileSide) -> None:
    if side.dtype is torch.bfloat16:
        raise _EndError(Verdict.UNVERIFIED, f"{side.runtime.name} has no kernels for bfloat16 on a CPU")
    for optimise in (False, True):
        with _verdicts("does not load the file"):
            side.session(optimise=optimise)


@contextmanager
def _verdicts(what: str) -> Iterator[None]:
    """What the runtime's process does is a verdict on the file."""
    try:
        yield
    except RefusalError as error:
        verdict = Verdict.UNVERIFIED if _NO_KERNEL.search(str(error)) else Verdict.FAILED
        raise _EndError(verdict, f"ONNX Runtime {what}: {first_line(error)}") from error
    except CrashError as error:
        raise _EndError(Verdict.FAILED, f"ONNX Runtime {what}: {error}") from error
    except HangError as error:
        raise _EndError(Verdict.UNVERIFIED, f"ONNX Runtime {what}: {error}") from error


class _Reference:
    """What the other side must compute, and how far rounding moves it."""

    def __init__(self, side: Side, dtype: torch.dtype, near: FileSide | None) -> None:
        self.side, self._dtype, self._near = side, dtype, near

    def __call__(self, example: Example) -> tuple[Outputs, list[Outputs]]:
        """In float64, and otherwise."""
        if isinstance(self.side, ModuleSide):
            exact = self.side.exact(example)
            return exact, [self.side.own(example, self._dtype if self._narrower else None)]
        with _verdicts(f"does not run on {example}"):
            assert self._near is not None
            runs = [self.side.run(example, optimise=optimise) for optimise in (False, True)]
            return runs[0], [runs[1], self._near.run(example, optimise=False)]

    @property
    def _narrower(self) -> bool:
        return FLOORS[self._dtype] > FLOORS.get(self.side.dtype, 0.0)


@contextmanager
def _as_reference(side: Side, dtype: torch.dtype) -> Iterator[_Reference]:
    if isinstance(side, ModuleSide):
        yield _Reference(side, dtype, None)
        return
    with variant(side.path, jitter_) as near:
        yield _Reference(side, dtype, FileSide(near, side.runtime))


def _try(known: _Reference, other: Side, example: Example, found: _Found, *, first: bool) -> None:
    files = [side for side in (known.side, other) if isinstance(side, FileSide)]
    if not all(side.takes(example) for side in files):
        if first:
            shapes = "; ".join("x".join(str(n or "N") for n in shape) for shape in files[0].shapes)
            raise CaptureError(f"the file takes {shapes}, not {example}", todo="give such inputs")
        found.notes.append(f"the file is made for other shapes than {example}")
        return
    try:
        exact, owns = known(example)
    except (_EndError, BntoolsError):
        raise
    except Exception as error:
        if not first:
            found.notes.append(f"the model does not run on {example}")
            return
        raise CaptureError(
            f"the model does not run on {example}: {in_a_line(error)}",
            todo="give inputs that it runs on (--input 2x3x224x224, or --inputs file.npz)",
        ) from error
    if not exact:
        raise _EndError(Verdict.INCONCLUSIVE, "the reference returns nothing that could be compared")
    ran = False
    trial = _Trial(example, [0.0] * len(exact), [0.0] * len(exact))
    for own in owns:
        trial.noises = [max(n, _off(x, r)) for n, x, r in zip(trial.noises, own, exact, strict=True)]
    for outputs in _outputs(other, example, found, first=first):
        ran = True
        if why := _unlike(outputs, owns[0], same=other.dtype == known.side.dtype):
            found.trials.append(trial)
            raise _EndError(Verdict.FAILED, why)
        trial.errors = [max(e, _off(x, r)) for e, x, r in zip(trial.errors, outputs, exact, strict=True)]
        agreed = agreement(outputs, exact)
        trial.agreed = agreed if trial.agreed is None else min(trial.agreed, agreed or 0.0)
    if not ran:
        return
    found.moving.look(example.tensors, exact)
    trial.odd = max((float((~r.isfinite()).double().mean()) for r in exact if r.numel()), default=0.0)
    found.trials.append(trial)


def _outputs(side: Side, example: Example, found: _Found, *, first: bool) -> Iterator[Outputs]:
    if isinstance(side, FileSide):
        for optimise in (False, True):
            with _verdicts(f"does not run on {example}"):
                outputs = side.run(example, optimise=optimise)
            yield outputs
        return
    try:
        outputs = side.own(example)
    except Exception as error:
        why = f"{side.what} does not run on {example}: {in_a_line(error)}"
        if side.program is not None and not first:  # it may be made for one batch size
            found.notes.append(why)
            return
        raise _EndError(Verdict.FAILED, why) from error
    yield outputs


def _unlike(outputs: Outputs, own: Outputs, *, same: bool) -> str:
    """How the outputs differ in kind; with *same* types also in type."""
    if len(outputs) != len(own):
        return f"it returns {len(outputs)} values, the reference {len(own)}"
    for number, (x, r) in enumerate(zip(outputs, own, strict=True), 1):
        if x.shape != r.shape:
            return f"output {number} has the shape {list(x.shape)}, that of the reference {list(r.shape)}"
        floats = x.is_floating_point() and r.is_floating_point()
        if x.dtype != r.dtype and (same or not floats):
            return f"output {number} is {str(x.dtype)[6:]}, that of the reference {str(r.dtype)[6:]}"
    return ""


def _off(x: Tensor, r: Tensor) -> float:
    """The error of an output; infinite if it is not NaN or not infinite where the reference is."""
    if x.shape == r.shape and x.is_floating_point() and r.is_floating_point():
        odd = ~r.isfinite()
        if odd.any():
            there, given = x.double()[odd], r.double()[odd]
            if not bool(((there == given) | (there.isnan() & given.isnan())).all()):
                return math.inf
    return difference_of(x, r)


def _judged(found: _Found, dtype: torch.dtype) -> Report:
    """The verdict on what was measured."""
    given, notes = found.trials[0], list(found.notes)
    kept = [t for t in found.trials if t is given or t.noise <= NOISY[dtype]]
    if len(kept) < len(found.trials):
        left = len(found.trials) - len(kept)
        notes.append(f"{left} of the redraws amplify the model's own rounding, and count for nothing")
    agreed = [t.agreed for t in kept if t.agreed is not None]
    odd = max(t.odd for t in kept)
    if odd > 0:
        notes.append(f"{odd:.1%} of an output is not finite, which must be so on both sides")
    noises = [max(column) for column in zip(*(t.noises for t in kept), strict=True)]
    errors = [max(column) for column in zip(*(t.errors for t in kept), strict=True)]
    # One output of few values may be rounded right by chance: what the others show counts as well.
    limits = [max(TIMES * n, max(noises), FLOORS[dtype]) for n in noises]
    at = max(range(len(errors)), key=lambda i: errors[i] / limits[i] if math.isfinite(limits[i]) else -1.0)
    verdict, why = Verdict.PASSED, ""
    if given.noise > NOISY[dtype]:
        verdict = Verdict.INCONCLUSIVE
        why = (
            f"the model's own rounding is {given.noise:.1e} of the scale on these inputs: give inputs that "
            "it was trained for"
        )
    elif not errors[at] <= limits[at]:
        verdict = Verdict.FAILED
        which = "the output" if len(errors) == 1 else f"output {at + 1}"
        why = f"{which} is off by {errors[at]:.1e} of the scale, {limits[at]:.1e} at most can be rounding"
    elif odd == 1.0:
        verdict, why = Verdict.INCONCLUSIVE, "on these inputs an output has no finite number on either side"
    elif found.moving.is_still:
        verdict, why = Verdict.INCONCLUSIVE, STILL
    return Report(
        verdict,
        error=errors[at],
        tolerance=limits[at],
        noise=noises[at],
        agreement=min(agreed) if agreed else None,
        inputs=tuple(f"{t.example} ({t.example.origin})" for t in kept),
        why=why,
        notes=tuple(notes),
    )

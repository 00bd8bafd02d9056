"""What a pass finds out about each BatchNorm: collected part by part, written at the end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bntools.core.batches import Batch
from bntools.core.lockstep import Stop
from bntools.core.moments import Moments, merged, moments_of
from bntools.core.names import own_tensor
from bntools.errors import UsageError

_PLAIN = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm
_APART = 1e-2


@dataclass(frozen=True, slots=True)
class Statistics:
    """The running statistics of a BatchNorm, in float64.

    Args:
        mean: μ, shape (C,).
        var: σ², unbiased, as it is stored, shape (C,).
    """

    mean: Tensor
    var: Tensor


def statistics_of(norm: nn.Module) -> Statistics:
    """Those that a BatchNorm holds, copied."""
    mean, var = own_tensor(norm, "running_mean"), own_tensor(norm, "running_var")
    assert mean is not None
    assert var is not None
    return Statistics(*(tensor.detach().to(torch.float64, copy=True) for tensor in (mean, var)))


class Running:
    """Meets forwards at their stops: normalises them by what they have in common, and remembers it.

    Args:
        norms: by their path.
        prior: as how many samples the old statistics count.
        ema: collect an exponential moving average, with the momentum of each, instead of the whole.

    Attributes:
        old: what they held before, by path.
        unfit: those that turned out to compute in a way of their own, by path; they keep their statistics.
        calls: in how many calls of a forward each was met.
    """

    def __init__(self, norms: Mapping[str, nn.Module], prior: float = 0.0, *, ema: bool = False) -> None:
        self._norms, self._prior, self._ema = norms, prior, ema
        self.old = {path: statistics_of(norm) for path, norm in norms.items()}
        self.unfit: dict[str, str] = {}
        self._fit: set[str] = set()
        self._rehearsing = False
        self._halves: tuple[dict[str, Moments], dict[str, Moments]] = ({}, {})
        self._moving: dict[str, tuple[int, Statistics]] = {}
        self._group: Sequence[Batch] = ()
        self._per_sample: dict[str, float] = {}
        self._sound: list[tuple[str, int, Tensor]] = []
        self.calls: dict[str, int] = defaultdict(int)

    @contextmanager
    def group(self, batches: Sequence[Batch]) -> Iterator[None]:
        """Inside this, the forwards of these batches are met.

        Raises:
            UsageError: at the end, if NaN or infinity has reached a BatchNorm.
        """
        self._group = batches
        yield
        sound = torch.stack([each for _, _, each in self._sound]).tolist() if self._sound else []
        for (path, number, _), is_sound in zip(self._sound, sound, strict=True):
            if not is_sound:
                raise UsageError(
                    f"batch {number}: what reaches {path} holds NaN or infinity",
                    todo="look at that batch, or at the layers in front",
                )
        self._sound.clear()

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Inside this, forwards are let pass."""
        self._rehearsing = True
        try:
            yield
        finally:
            self._rehearsing = False

    def meet(self, stop: Stop, there: Sequence[tuple[int, Tensor]]) -> None:
        """Normalise all that stand at a stop by the moments of all of them."""
        path, norm = stop.path, self._norms[stop.path]
        if self._rehearsing or not self._is_fit(path, there[0][1]):
            return
        self.calls[path] = max(self.calls[path], stop.call)
        parts = []
        for number, x in there:
            part, batch = moments_of(x), self._group[number]
            # Looked at when all are done, since on a GPU each look waits for all that came before.
            self._sound.append((path, batch.number, (part.mean.isfinite() & part.m2.isfinite()).all()))
            half = self._halves[batch.number % 2]
            half[path] = merged([half[path], part]) if path in half else part
            parts.append(part)
        whole = merged(parts)
        self._per_sample[path] = whole.n / sum(self._group[number].samples for number, _ in there)
        if self._ema:
            self._move(path, norm, whole)
        else:
            whole = self._with_prior(path, whole)
        write(norm, whole.mean, whole.var)

    def _with_prior(self, path: str, whole: Moments) -> Moments:
        """The moments with those of the old statistics, as if so many samples had been seen before."""
        if not self._prior:
            return whole
        n, old = self._prior * self._per_sample[path], self.old[path]
        return merged([Moments(n, old.mean, old.var * n), whole])

    def _move(self, path: str, norm: nn.Module, whole: Moments) -> None:
        if whole.n < 2:
            raise UsageError(_one_value(path), todo="give larger batches")
        count, now = self._moving.get(path, (0, self.old[path]))
        momentum: Any = getattr(norm, "momentum", None)
        m = 1 / (count + 1) if momentum is None else float(momentum)
        moved = Statistics(
            (1 - m) * now.mean + m * whole.mean,
            (1 - m) * now.var + m * whole.unbiased,
        )
        self._moving[path] = count + 1, moved

    def _is_fit(self, path: str, x: Tensor) -> bool:
        """Whether a BatchNorm normalises what it is given by its running statistics."""
        if path in self.unfit:
            return False
        norm = self._norms[path]
        if path not in self._fit:
            if why := _unfit(norm, x):
                self.unfit[path] = why
                return False
            self._fit.add(path)
        return True

    def found(self) -> dict[str, Statistics]:
        """The new statistics of each that was reached.

        Raises:
            UsageError: if a layer has seen one value a channel.
        """
        if self._ema:
            return {path: moved for path, (_, moved) in self._moving.items()}
        new = {}
        for path in self._norms:
            parts = [half[path] for half in self._halves if path in half]
            if not parts:
                continue
            whole = self._with_prior(path, merged(parts))
            if whole.n < 2:
                raise UsageError(_one_value(path), todo="give more than one sample")
            new[path] = Statistics(whole.mean, whole.unbiased)
        return new

    def errors(self) -> dict[str, tuple[float, float]]:
        """The standard errors of each, from two halves of the batches: of μ in units of σ, and of log σ²."""
        errors = {}
        one, two = self._halves
        for path in one.keys() & two.keys():
            a, b = one[path], two[path]
            if min(a.n, b.n) > 1:
                sigma = merged([a, b]).var.sqrt().clamp_min(1e-30)
                mean = ((a.mean - b.mean).abs() / 2 / sigma).max()
                var = ((a.var / b.var).log().abs() / 2).nan_to_num(0.0, 0.0, 0.0).max()
                errors[path] = float(mean), float(var)
        return errors


def write(norm: nn.Module, mean: Tensor, var: Tensor) -> None:
    """Put statistics into the buffers of a BatchNorm, in place: others may hold them too."""
    with torch.no_grad():
        own_tensor(norm, "running_mean").copy_(mean)  # type: ignore[union-attr]
        own_tensor(norm, "running_var").copy_(var)  # type: ignore[union-attr]


def _one_value(path: str) -> str:
    return f"{path}: expected several values a channel, there is one, which has no variance"


def _unfit(norm: nn.Module, x: Tensor) -> str:
    """Why a module is no BatchNorm of its input in eval; empty if it is.

    It returns the same for ``2x + b`` with the statistics ``2μ + b``, ``4σ²`` as for x with μ, σ².
    """
    old = statistics_of(norm)
    if x.ndim < 2 or x.shape[1] != len(old.mean) or not x.is_floating_point():
        return f"{len(old.mean)} channels are not what axis 1 of {list(x.shape)} holds"
    if type(norm) in _PLAIN:
        return ""
    kind = type(norm).__name__
    shape = (1, -1, *(1,) * (x.ndim - 2))
    mean, var = moments_of(x).mean, moments_of(x).var + 100.0  # beside which ε is nothing
    offset = torch.linspace(-1, 1, len(mean), device=x.device, dtype=torch.float64)
    try:
        write(norm, mean, var)
        one = norm.forward(x)
        write(norm, 2 * mean + offset, 4 * var)
        two = norm.forward(2 * x + offset.reshape(shape).to(x.dtype))
        write(norm, mean + 10, var)
        three = norm.forward(x)
    except Exception as error:
        return f"{kind} does not run by itself: {type(error).__name__}"
    finally:
        write(norm, old.mean, old.var)
    if not isinstance(one, Tensor) or not isinstance(two, Tensor):
        return f"{kind} returns something else than one tensor"
    if torch.equal(one, three) or (one - two).abs().max() > _APART * one.abs().max():
        return f"{kind} normalises in a way of its own"
    return ""

"""What a pass finds out about each BatchNorm: collected part by part, written at the end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bntools.core.batches import Batch
from bntools.core.lockstep import Stop
from bntools.core.moments import Moments, merged, moments_of
from bntools.core.ranks import Ranks
from bntools.core.stored import Statistics, statistics_of, why_unfit, write
from bntools.errors import UsageError


class Running:
    """Meets forwards at their stops: normalises them by what they have in common, and remembers it.

    Args:
        norms: by their path.
        ranks: the processes whose forwards are met together.
        prior: as how many samples the old statistics count.
        ema: collect an exponential moving average, with the momentum of each, instead of the whole.

    Attributes:
        old: what they held before, by path.
        unfit: those that turned out to compute in a way of their own, by path; they keep their statistics.
        calls: in how many calls of a forward each was met.
    """

    def __init__(
        self, norms: Mapping[str, nn.Module], ranks: Ranks, prior: float = 0.0, *, ema: bool = False
    ) -> None:
        self.norms, self.ranks, self._prior, self._ema = norms, ranks, prior, ema
        self.old = _of_the_first({path: statistics_of(norm) for path, norm in norms.items()}, ranks)
        self.unfit: dict[str, str] = {}
        self._fit: set[str] = set()
        self._halves: tuple[dict[str, list[Moments]], ...] = (defaultdict(list), defaultdict(list))
        self._moving: dict[str, tuple[int, Statistics]] = {}
        self._group: Sequence[Batch] = ()
        self._per_sample: dict[str, float] = {}
        self._sound: list[tuple[str, list[int], Tensor]] = []
        self.calls: dict[str, int] = defaultdict(int)

    @property
    def stops(self) -> Sequence[tuple[str, nn.Module]]:
        """Where forwards are met."""
        return tuple(self.norms.items())

    @contextmanager
    def group(self, batches: Sequence[Batch]) -> Iterator[None]:
        """Inside this, the forwards of these batches are met.

        Raises:
            UsageError: at the end, if NaN or infinity has reached a BatchNorm.
        """
        self._group = batches
        yield
        sound = torch.cat([each for _, _, each in self._sound]).tolist() if self._sound else []
        seen = [(path, number) for path, numbers, _ in self._sound for number in numbers]
        for (path, number), is_sound in zip(seen, sound, strict=True):
            if not is_sound:
                raise UsageError(
                    f"batch {number}: what reaches {path} holds NaN or infinity",
                    todo="look at that batch, or at the layers in front",
                )
        self._sound.clear()

    def meet(self, stop: Stop, there: Sequence[tuple[int, Tensor]]) -> None:
        """Normalise all that stand at a stop, in any process, by the moments of all of them."""
        path, norm = stop.path, self.norms[stop.path]
        if path in self.unfit:
            return
        why = self._why_unfit(path, there[0][1]) if there else ""
        now = self._halves_of(path, there) if there and not why else {}
        said = self.ranks.talk((why, sum(self._group[number].samples for number, _ in there), now))
        if unfit := [why for why, _, _ in said if why]:
            self.unfit[path] = unfit[0]
            return
        self.calls[path] = max(self.calls[path], stop.call)
        parts = []
        for parity, half in enumerate(self._halves):
            if theirs := [now[parity] for _, _, now in said if parity in now]:
                parts.append(merged(theirs).to(self.old[path].mean.device))
                half[path].append(parts[-1])
        whole = merged(parts)
        self._per_sample[path] = whole.n / sum(samples for _, samples, _ in said)
        if self._ema:
            self._move(path, norm, whole)
        else:
            whole = self._with_prior(path, whole)
        write(norm, whole.mean, whole.var)

    def _halves_of(self, path: str, there: Sequence[tuple[int, Tensor]]) -> dict[int, Moments]:
        """The moments of those with even and with odd numbers."""
        batches, xs = [self._group[number] for number, _ in there], [x for _, x in there]
        parts = [moments_of(x) for x in xs]
        halves = _halves(batches, parts, self.ranks.rank)
        if xs[0].dtype == torch.float32 and not xs[0].is_cuda and any(h.is_far for h in halves.values()):
            parts = [moments_of(x.double()) for x in xs]
            halves = _halves(batches, parts, self.ranks.rank)
        # Looked at when all are done, since on a GPU each look waits for all that came before.
        sound = torch.cat([(part.mean + part.m2).reshape(part.rows, -1) for part in parts]).isfinite().all(1)
        numbers = [b.number for b, part in zip(batches, parts, strict=True) for _ in range(part.rows)]
        self._sound.append((path, numbers, sound))
        return {parity: half.to(self.ranks.desk(half.mean.device)) for parity, half in halves.items()}

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

    def _why_unfit(self, path: str, x: Tensor) -> str:
        """Why a BatchNorm does not normalise what it is given by its running statistics; empty if it does."""
        if path in self._fit:
            return ""
        why = why_unfit(self.norms[path], x)
        if not why:
            self._fit.add(path)
        return why

    def found(self) -> dict[str, Statistics]:
        """The new statistics of each that was reached.

        Raises:
            UsageError: if a layer has seen one value a channel.
        """
        if self._ema:
            return {path: moved for path, (_, moved) in self._moving.items()}
        new = {}
        for path in (path for path in self.norms if path not in self.unfit):
            parts = [part for half in self._halves for part in half.get(path, ())]
            if not parts:
                continue
            whole = self._with_prior(path, merged(parts))
            if whole.n < 2:
                raise UsageError(_one_value(path), todo="give more than one sample")
            new[path] = Statistics(whole.mean, whole.unbiased)
        return new

    def errors(self) -> dict[str, tuple[float, float]]:
        """The standard errors of each, from two halves of the batches: of μ in units of σ, and of log σ²."""
        return {path: (float(mean.max()), float(var.max())) for path, mean, var in self._off()}

    def chance(self) -> dict[str, float]:
        """The divergence of each, the mean over channels, that so few samples alone would make.

        Near 0 the divergence of `bntools.core.drift` is ``z² + ½·(log σ'²/σ²)²``.
        """
        return {path: float((mean**2 + var**2 / 2).mean()) for path, mean, var in self._off()}

    def _off(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """How far each may be off in each channel: half of what two halves of the batches differ by."""
        one, two = self._halves
        for path in one.keys() & two.keys():
            a, b = merged(one[path]), merged(two[path])
            if min(a.n, b.n) > 1:
                sigma = merged([a, b]).var.sqrt().clamp_min(1e-30)
                mean = (a.mean - b.mean).abs() / 2 / sigma
                yield path, mean, ((a.var / b.var).log().abs() / 2).nan_to_num(0.0, 0.0, 0.0)


def _halves(batches: Sequence[Batch], parts: Sequence[Moments], rank: int) -> dict[int, Moments]:
    """The moments of those with even and with odd numbers, as far as there are any.

    Each process counts its own from 0: even there is odd in the next.
    """
    halves: dict[int, list[Moments]] = defaultdict(list)
    for batch, part in zip(batches, parts, strict=True):
        halves[(batch.number + rank) % 2].append(part)
    return {parity: merged(each) for parity, each in halves.items()}


def _of_the_first(old: Mapping[str, Statistics], ranks: Ranks) -> dict[str, Statistics]:
    """Of the first process: each has its own after training, and would else find something else."""
    if ranks.size == 1:
        return dict(old)
    first = ranks.talk({path: (each.mean.cpu(), each.var.cpu()) for path, each in old.items()})[0]
    return {
        path: Statistics(*(tensor.to(old[path].mean.device) for tensor in pair))
        for path, pair in first.items()
    }


def _one_value(path: str) -> str:
    return f"{path}: expected several values a channel, there is one, which has no variance"

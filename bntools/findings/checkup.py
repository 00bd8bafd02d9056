"""One pass over data with two models in lock-step: the model as it is, and a copy that is recalibrated.

The one shows what reaches each layer at inference, the other what the statistics would be. How far these are
from those stored is the divergence of `bntools.core.drift`, each variance with the ε that the layer adds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from bntools.core.batches import Batch, Batches, Forward, call, fresh, halved
from bntools.core.drift import concluded, divergence
from bntools.core.exact import copied
from bntools.core.lockstep import Stop
from bntools.core.moments import Moments, merged, moments_of
from bntools.core.ranks import Ranks
from bntools.core.rounds import Progress, Rounds
from bntools.core.running import Running
from bntools.core.select import select
from bntools.core.stored import Statistics
from bntools.core.untouched import untouched
from bntools.errors import UsageError
from bntools.findings.passed import Pass, Reached

_FEW = 4
"""How many samples are kept to find folds with."""
_ENOUGH = 4
"""Of fewer batches nobody can say whether they were drawn at random."""
_SURE = 8.0
"""How many standard deviations of the means of batches drawn at random they have to be off."""


def look_over(
    model: nn.Module,
    data: Iterable[Any],
    *,
    forward: Forward | None = None,
    max_samples: int | None = 8192,
    progress: Progress = lambda step, samples: None,
) -> Pass:
    """Run a model on data; it is as it was afterwards.

    Args:
        model: an eager module.
        data: an iterable of batches, gone through once. Those that hold NaN or infinity are left out.
        forward: runs a model on a batch.
        max_samples: where to stop reading; None for all.
        progress: told how many samples are done.

    Raises:
        UsageError: if the data is empty, or gives no batches; a model without statistics is run on none.
        CaptureError: if the model does not run on one.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(1)).eval()
        >>> passed = look_over(net, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0]])])
        >>> passed.samples, passed.reached["0"].high.tolist(), round(passed.drift.layers[0].mean, 3)
        (3, [5.0], 3.0)
    """
    with torch.inference_mode(False):
        batches = Batches(data, model, max_samples, skip=True)
        waiting = iter(batches)
        first = next(waiting, None)
        some = fresh(first.first(_FEW)).content if first is not None else None
        if not _norms(model):
            return Pass(0, 0, (), {}, some)
        twin = copied(model)
        meeting = Checkup(twin, model)
        rounds = Rounds((twin, model), meeting, "looking", forward or call, None, progress)
        drift = None
        with untouched(twin), untouched(model):
            twin.eval()
            model.eval()
            try:
                rounds.run(halved(chain([] if first is None else [first], waiting)), "auto", True, None)
                meeting.new, drift = concluded(rounds, meeting.running, batches.skipped)
            except UsageError:
                if meeting.poisoned is None:  # then it was something else
                    raise
        paths = tuple(meeting.running.norms)
        return Pass(
            batches.samples,
            rounds.batches,
            paths,
            meeting.reached(),
            some,
            drift,
            tuple(batches.skipped),
            tuple(getattr(data, "left_out", ())),
            meeting.poisoned,
        )


class Checkup:
    """Meets the forwards of a copy, which it normalises by what they have in common, and of the model itself,
    which it only looks at.

    Args:
        twin: the copy; its statistics change on the way.
        model: the other.

    Attributes:
        running: what the copy's statistics become.
        ranks: this process alone.
        new: the statistics that were found, by path.
    """

    def __init__(self, twin: nn.Module, model: nn.Module) -> None:
        self.ranks = Ranks()
        self.running = Running(_norms(twin), self.ranks)
        self.new: dict[str, Statistics] = {}
        self._own = _norms(model)
        self._group: Sequence[Batch] = ()
        self._numbers: list[int] = []
        self._calls: dict[str, Counter[int]] = defaultdict(Counter)
        self._ends: dict[str, tuple[int, Tensor, Tensor]] = {}
        self._means: dict[str, tuple[int, Moments, Tensor]] = {}
        self._sound: list[tuple[str, int, Tensor]] = []

    @property
    def stops(self) -> Sequence[tuple[str, nn.Module]]:
        """Where forwards are met."""
        return *self.running.stops, *self._own.items()

    @contextmanager
    def group(self, batches: Sequence[Batch]) -> Iterator[None]:
        """Inside this, the forwards of these batches are met: those of the copy first."""
        self._group = batches
        self._numbers += [batch.number for batch in batches]
        with self.running.group(batches):
            yield

    def errors(self) -> Mapping[str, tuple[float, float]]:
        """The standard errors of the copy's statistics."""
        return self.running.errors()

    def meet(self, stop: Stop, there: Sequence[tuple[int, Tensor]]) -> None:
        """Normalise the copy's forwards, look at the others."""
        size = len(self._group)
        if ours := [(number, x) for number, x in there if number < size]:
            self.running.meet(stop, ours)
        if stop.path in self.running.unfit:
            return
        for number, x in there:
            if number >= size:
                self._look(stop, self._group[number - size], x.detach())

    def _look(self, stop: Stop, batch: Batch, x: Tensor) -> None:
        path = stop.path
        self._calls[path][batch.number] += 1
        if x.numel() == 0 or x.ndim < 2 or x.shape[1] != len(self.running.old[path].mean):
            return
        rows = x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)
        low, high = rows.amin((0, 2)).double(), rows.amax((0, 2)).double()
        self._sound.append((path, batch.number, (low + high).isfinite().all()))
        count = len(x) * rows.shape[2]
        if path in self._ends:
            before, least, most = self._ends[path]
            count, low, high = before + count, torch.minimum(low, least), torch.maximum(high, most)
        self._ends[path] = count, low, high
        # The steps of a loop differ, whatever is in the batches; and the tokens of a sample are alike.
        if stop.call == 1 and len(x) == batch.samples:
            part = merged([moments_of(rows.double().mean(2))])
            groups, whole, within = self._means.get(path, (0, None, None))
            whole = part if whole is None else merged([whole, part])
            self._means[path] = groups + 1, whole, part.m2 if within is None else within + part.m2

    @property
    def poisoned(self) -> tuple[str, int] | None:
        """The first layer that NaN or infinity has reached, and in which batch."""
        if not self._sound:
            return None
        sound = torch.stack([each for _, _, each in self._sound]).tolist()
        bad = [(path, number) for (path, number, _), fine in zip(self._sound, sound, strict=True) if not fine]
        return bad[0] if bad else None

    def reached(self) -> dict[str, Reached]:
        """What came to each layer, by path."""
        chance = self.running.chance()
        found = {}
        for path, (values, low, high) in self._ends.items():
            calls = self._calls[path]
            often = [calls[number] for number in set(self._numbers)]
            new, old = self.new.get(path), self.running.old[path]
            found[path] = Reached(
                min(often),
                max(often),
                values,
                low.cpu().numpy(),
                high.cpu().numpy(),
                self._grouping(path),
                None if new is None else _divergence(old, new, self.running.norms[path]).cpu().numpy(),
                chance.get(path),
            )
        return found

    def _grouping(self, path: str) -> float | None:
        """The F of an analysis of variance of the samples' means, over the batches, the mean over channels.

        Of batches drawn at random it is 1 give or take √(2/(B − 1)) at most, however the channels hang
        together; None below that.
        """
        batches, whole, within = self._means.get(path, (0, None, None))
        if whole is None or within is None or batches < _ENOUGH or whole.n <= batches:
            return None
        moving = within > 0
        if not bool(moving.any()):
            return None
        between = ((whole.m2 - within) / (batches - 1))[moving]
        ratio = float((between / (within[moving] / (whole.n - batches))).mean())
        chance = (2 / (batches - 1)) ** 0.5
        return ratio if ratio <= 1 or ratio - 1 > _SURE * chance else 1.0


def _norms(model: nn.Module) -> Mapping[str, nn.Module]:
    """All that have statistics of batches, frozen or not."""
    try:
        return select(model, include_frozen=True).norms
    except UsageError:  # there is no BatchNorm to select from
        return {}


def _divergence(old: Statistics, new: Statistics, norm: nn.Module) -> Tensor:
    eps = float(getattr(norm, "eps", 0.0) or torch.finfo(torch.float32).tiny)
    before, after = old.var.clamp_min(0) + eps, new.var.clamp_min(0) + eps
    return divergence(before, after, (new.mean - old.mean).square())

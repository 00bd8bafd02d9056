"""One pass over the data: groups of batches in lock-step, until it ends or more of it changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from bntools.core.batches import Batch, Forward, cut, fresh, no_batches, run
from bntools.core.inputs import type_and_device
from bntools.core.leaves import tensors_of
from bntools.core.lockstep import Lockstep, Stop
from bntools.core.memory import Meter, free
from bntools.core.ranks import Ranks

CONVERGED = 0.01, 0.02
"""The standard errors, of μ in units of σ and of log σ², below which more data is not asked for."""
_MORE = 1.1
"""By how much the data has to grow until it is looked at again whether it is enough."""
_FEW = 4
"""How many samples show the memory that a forward takes, and the gap."""


Progress = Callable[[str, float], None]
"""Told what is being done, and of how many samples that is done: a share of those in lock-step counts."""


class Meeting(Protocol):
    """Meets forwards at their stops, and finds something out from what they bring.

    Attributes:
        stops: where: modules with their paths.
        ranks: the processes whose forwards are met together.
    """

    @property
    def stops(self) -> Sequence[tuple[str, nn.Module]]: ...

    @property
    def ranks(self) -> Ranks: ...

    def group(self, batches: Sequence[Batch]) -> AbstractContextManager[None]:
        """Inside this, the forwards of these batches are met: those of the first model, then of the next."""

    def meet(self, stop: Stop, there: Sequence[tuple[int, Tensor]]) -> None:
        """Look at all that stand at a stop before they go on."""

    def errors(self) -> Mapping[str, tuple[float, float]]:
        """The standard errors of what has been found out, by path: of μ in units of σ, and of log σ²."""


@dataclass(slots=True)
class Rounds:
    """Runs models on batches, in groups.

    Args:
        models: in eval; each batch is run by each of them.
        meeting: meets the forwards.
        word: what is being done.
        forward: runs a model on a batch.
        autocast: the type to run it in, None for its own.
        progress: told how far it is.

    Attributes:
        lockstep: lets them wait for one another.
        samples, batches, groups: how much has been run, in all processes.
        virtual_batch: the largest number of samples in a group.
        memory: the bytes that it was chosen for, if it was.
        converged: whether more data would change nothing.
        probe: a few samples, with what the model returned for them before and in lock-step.
    """

    models: Sequence[nn.Module]
    meeting: Meeting
    word: str
    forward: Forward
    autocast: torch.dtype | None
    progress: Progress
    lockstep: Lockstep = field(init=False)
    samples: int = 0
    batches: int = 0
    groups: int = 0
    virtual_batch: int = 0
    memory: int | None = None
    converged: bool = False
    probe: tuple[Batch, Any, Any] | None = None
    _stops: int = 0
    _checked: int = 0
    _waiting: int = 0

    def __post_init__(self) -> None:
        self.lockstep = Lockstep(self.meeting.stops, self._meet, self.meeting.ranks)

    @property
    def order(self) -> tuple[str, ...]:
        """The paths of the modules that were reached, in order of execution."""
        return tuple(dict.fromkeys(stop.path for stop in self.lockstep.order))

    def run(
        self,
        batches: Iterable[Batch],
        virtual_batch: int | Literal["auto", "all", "single"],
        stop: bool,
        memory: int | None,
    ) -> None:
        """Run all groups.

        Args:
            batches: to run.
            virtual_batch: how many samples a group holds at most, in all processes; a batch is never split.
            stop: whether to stop when the standard errors are small.
            memory: how many bytes ``"auto"`` may take, None for half of what is free.

        Raises:
            UsageError: if there are no batches, or what the model makes of one is not finite.
            CaptureError: if the model does not run on one.
        """
        talk = self.meeting.ranks.talk
        waiting = iter(batches)
        first = next(waiting, None)
        if not any(talk(first is not None)):
            raise no_batches()
        most, order = self._rehearse(first, virtual_batch, memory) if first else (0.0, ())
        for each in talk(order):
            self.lockstep.learn(each)
        groups = self._groups(first, waiting, most) if first else iter(())
        while any(talk((group := next(groups, None)) is not None)):
            if self.converged:
                break
            said = talk((sum(batch.samples for batch in group or ()), len(group or ())))
            samples = sum(samples for samples, _ in said)
            self._stops, self._waiting = 0, samples
            with self.meeting.group(group or ()):
                results = self._forwards(group or ())
            if self.probe is not None and self.probe[2] is None:
                few, before, _ = self.probe
                assert first is not None
                self.probe = few, before, cut(results[0], first.samples, few.samples)
            self.groups += 1
            self.batches += sum(batches for _, batches in said)
            self.samples += samples
            self.virtual_batch = max(self.virtual_batch, samples)
            self.progress(self.word, self.samples)
            self.converged = stop and self.groups > 1 and talk(self._is_enough())[0]
        else:
            self.converged = False  # whether more would change something, nobody knows: there is none

    def _meet(self, stop: Stop, there: Sequence[tuple[int, Tensor]]) -> None:
        self.meeting.meet(stop, there)
        self._stops += 1
        share = min(self._stops / len(self.lockstep.order), 1.0)
        self.progress(self.word, self.samples + self._waiting * share)

    def _rehearse(self, first: Batch, asked: int | str, memory: int | None) -> tuple[float, tuple[Stop, ...]]:
        """Run a few samples as the model is: for how many fit into the memory, and the order of the stops."""
        probe = first.first(_FEW)
        alone = Lockstep(self.meeting.stops, lambda stop, there: None, Ranks())
        with Meter() as meter, self._casting():
            before, *_ = alone.run([partial(self._run, model, probe, True) for model in self.models])
        self.probe = probe, before, None
        return self._size(probe, meter.peak, asked, memory), alone.order

    def _groups(self, first: Batch, others: Iterator[Batch], most: float) -> Iterator[list[Batch]]:
        """Batches that are to be in lock-step, read when they are asked for."""
        group, samples, read = [first], first.samples, first.samples
        for batch in others:
            if samples + batch.samples > most:
                yield group
                group, samples = [], 0
            group.append(batch)
            samples += batch.samples
            read += batch.samples
            self.progress("reading", read)
        yield group

    def gap(self) -> tuple[float | None, float | None]:
        """How far the outputs are from those in lock-step: with the old statistics, and with those now."""
        gaps: tuple[float | None, float | None] = None, None
        if self.probe is not None:
            batch, before, trained = self.probe
            with self._casting():
                after = self._run(self.models[0], batch, True)
            gaps = _apart(before, trained), _apart(after, trained)
        said = self.meeting.ranks.talk(gaps)
        old, new = zip(*said, strict=True)
        return max(_known(old), default=None), max(_known(new), default=None)

    def _size(self, probe: Batch, peak: int, asked: int | str, memory: int | None) -> float:
        if asked == "all":
            return float("inf")
        if asked == "single":
            return 0
        ranks = self.meeting.ranks
        if asked != "auto":
            return int(asked) / ranks.size
        tensors = list(tensors_of(probe.content))
        device = tensors[0].device
        there = free(device) // (ranks.neighbours if device.type == "cpu" else 1)
        self.memory = there if memory is None else memory
        size = peak + sum(tensor.nbytes for tensor in tensors)
        return self.memory * probe.samples / max(size, 1)

    def _is_enough(self) -> bool:
        if self.samples < self._checked * _MORE:
            return False
        self._checked = self.samples
        errors = self.meeting.errors().values()
        return all(mean < CONVERGED[0] and var < CONVERGED[1] for mean, var in errors)

    def _forwards(self, group: Sequence[Batch]) -> list[Any]:
        with self._casting():
            return self.lockstep.run(
                [
                    partial(self._run, model, batch, keep=at == 0)
                    for model in self.models
                    for at, batch in enumerate(group)
                ]
            )

    def _casting(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(type_and_device(self.models[0])[1].type, self.autocast)

    def _run(self, model: nn.Module, batch: Batch, keep: bool) -> Any:
        result = run(self.forward, model, fresh(batch) if len(self.models) > 1 else batch)
        return result if keep else None


def _known(gaps: Iterable[float | None]) -> list[float]:
    return [gap for gap in gaps if gap is not None]


def _apart(one: Any, two: Any) -> float | None:
    """The largest difference, as a share of the largest value of the second."""
    both = zip(tensors_of(one), tensors_of(two), strict=False)
    pairs = [(a.double(), b.double()) for a, b in both if a.shape == b.shape and a.is_floating_point()]
    gaps = [(float((a - b).abs().max()), float(b.abs().max())) for a, b in pairs if b.numel()]
    if not gaps:
        return None
    return max(gap for gap, _ in gaps) / (max(size for _, size in gaps) or 1.0)

"""One pass over the data: groups of batches in lock-step, until it ends or more of it changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from bntools.core.batches import Batch, Forward, cut
from bntools.core.capture import first_line
from bntools.core.inputs import type_and_device
from bntools.core.leaves import tensors_of
from bntools.core.lockstep import Lockstep
from bntools.core.memory import Meter, free
from bntools.core.running import Running
from bntools.errors import BntoolsError, CaptureError, UsageError

CONVERGED = 0.01, 0.02
"""The standard errors, of μ in units of σ and of log σ², below which more data is not asked for."""
_FEW = 4
"""How many samples show the memory that a forward takes, and the gap."""


@dataclass(slots=True)
class Rounds:
    """Runs a model on batches, in groups.

    Args:
        model: in eval.
        running: meets the forwards.
        lockstep: lets them wait for one another.
        forward: runs the model on a batch.
        autocast: the type to run it in, None for its own.
        progress: told how far it is.

    Attributes:
        samples, batches, groups: how much has been run.
        virtual_batch: the largest number of samples in a group.
        memory: the bytes that it was chosen for, if it was.
        converged: whether more data would change nothing.
        probe: a few samples, with what the model returned for them before and in lock-step.
    """

    model: nn.Module
    running: Running
    lockstep: Lockstep
    forward: Forward
    autocast: torch.dtype | None
    progress: Callable[[str], None]
    samples: int = 0
    batches: int = 0
    groups: int = 0
    virtual_batch: int = 0
    memory: int | None = None
    converged: bool = False
    probe: tuple[Batch, Any, Any] | None = None

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
            virtual_batch: how many samples a group holds at most; a batch is never split.
            stop: whether to stop when the standard errors are small.
            memory: how many bytes ``"auto"`` may take, None for half of what is free.

        Raises:
            UsageError: if there are no batches, or what the model makes of one is not finite.
            CaptureError: if the model does not run on one.
        """
        waiting = iter(batches)
        first = next(waiting, None)
        if first is None:
            raise UsageError("data: expected batches, there is none", todo="look at what the data gives")
        few = min(first.samples, _FEW)
        probe = Batch(first.number, few, cut(first.content, first.samples, few))
        with self.running.rehearsal(), Meter() as meter:
            (before,) = self._forwards([probe])
        most = self._size(probe, meter.peak, virtual_batch, memory)
        for group in _groups(first, waiting, most):
            with self.running.group(group):
                (result, *_) = self._forwards(group)
            self.probe = self.probe or (probe, before, cut(result, first.samples, few))
            self.groups += 1
            self.batches += len(group)
            samples = sum(batch.samples for batch in group)
            self.samples += samples
            self.virtual_batch = max(self.virtual_batch, samples)
            self.progress(f"{self.samples} samples")
            if stop and self.groups > 1 and self._is_enough():
                self.converged = True
                break

    def gap(self) -> tuple[float | None, float | None]:
        """How far the outputs are from those in lock-step: with the old statistics, and with those now."""
        if self.probe is None:
            return None, None
        batch, before, trained = self.probe
        with self._casting():
            after = self._run(batch, True)
        return _apart(before, trained), _apart(after, trained)

    def _size(self, probe: Batch, peak: int, asked: int | str, memory: int | None) -> float:
        if asked == "all":
            return float("inf")
        if asked == "single":
            return 0
        if asked != "auto":
            return int(asked)
        tensors = list(tensors_of(probe.content))
        self.memory = free(tensors[0].device) if memory is None else memory
        size = peak + sum(tensor.nbytes for tensor in tensors)
        return self.memory * probe.samples / max(size, 1)

    def _is_enough(self) -> bool:
        errors = self.running.errors().values()
        return all(mean < CONVERGED[0] and var < CONVERGED[1] for mean, var in errors)

    def _forwards(self, group: Sequence[Batch]) -> list[Any]:
        with self._casting():
            return self.lockstep.run([partial(self._run, batch, at == 0) for at, batch in enumerate(group)])

    def _casting(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(type_and_device(self.model)[1].type, self.autocast)

    def _run(self, batch: Batch, keep: bool) -> Any:
        try:
            result = self.forward(self.model, batch.content)
        except BntoolsError:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {first_line(error)}"
            raise CaptureError(
                f"batch {batch.number}: the model does not run on it: {what}",
                todo="give batches as its forward takes them, or forward=",
            ) from error
        return result if keep else None


def _groups(first: Batch, others: Iterator[Batch], most: float) -> Iterator[list[Batch]]:
    group, samples = [first], first.samples
    for batch in others:
        if samples + batch.samples > most:
            yield group
            group, samples = [], 0
        group.append(batch)
        samples += batch.samples
    yield group


def _apart(one: Any, two: Any) -> float | None:
    """The largest difference, as a share of the largest value of the second."""
    both = zip(tensors_of(one), tensors_of(two), strict=False)
    pairs = [(a.double(), b.double()) for a, b in both if a.shape == b.shape and a.is_floating_point()]
    gaps = [(float((a - b).abs().max()), float(b.abs().max())) for a, b in pairs if b.numel()]
    if not gaps:
        return None
    return max(gap for gap, _ in gaps) / (max(size for _, size in gaps) or 1.0)

"""What data adds to a swap: norms fitted to it one by one, then tuned together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bntools.core.batches import Batch, Batches, Forward, fresh, no_batches, run
from bntools.core.change import Trial
from bntools.core.changes import Swap
from bntools.core.distill import tuned
from bntools.core.exact import copied
from bntools.core.fitting import fitted
from bntools.core.graft import graft_
from bntools.core.plan import Plan
from bntools.core.rounds import Progress

_FEW = 32
"""On how many samples the difference of two models is measured."""


@dataclass(frozen=True, slots=True)
class Passes:
    """Batches that are read more than once.

    Args:
        content: an iterable of batches.
        model: where they go.
        max_samples: how many are read each time; None for all.
        forward: runs a model on a batch.
    """

    content: Iterable[Any]
    model: nn.Module
    max_samples: int | None
    forward: Forward

    @classmethod
    def of(
        cls, content: Iterable[Any], model: nn.Module, max_samples: int | None, forward: Forward
    ) -> Passes:
        """What can be read only once, as a generator, is held in memory."""
        if isinstance(content, Iterator):
            content = [batch.content for batch in Batches(content, model, max_samples)]
        return cls(content, model, max_samples, forward)

    def batches(self) -> Iterator[Batch]:
        """All of them, from the first."""
        return iter(Batches(self.content, self.model, self.max_samples))

    def few(self) -> Trial:
        """Some samples to run models on.

        Raises:
            UsageError: if there are none.
        """
        batch = next(iter(Batches(self.content, self.model, _FEW)), None)
        if batch is None:
            raise no_batches()
        return Trial(
            f"{batch.samples} samples of the data", lambda model: run(self.forward, model, fresh(batch))
        )


@dataclass(frozen=True, slots=True)
class Refined:
    """What came of it.

    Args:
        tensors: by key, of the norms that were reached; with tuning, all parameters that are trained.
        samples: how many were used.
        tuned: the difference of the outputs before and after tuning; None without.
    """

    tensors: Mapping[str, Tensor]
    samples: int
    tuned: tuple[float, float] | None = None


def refined(
    model: nn.Module,
    plan: Plan,
    tensors: Mapping[str, Tensor],
    swaps: tuple[Swap, ...],
    data: Passes,
    steps: int,
    progress: Progress,
) -> Refined:
    """Fit the norms of a swap to data, layer by layer, and tune them on the outputs.

    Args:
        model: as it is before the swap; left alone.
        plan, tensors: the swap, with the numbers to start from.
        swaps: those of its norms that data says something of.
        data: to run.
        steps: of tuning; 0 for none.
        progress: told what is being done.
    """
    found, samples = fitted(
        model, _swapped(model, plan, tensors), swaps, data.batches(), data.forward, progress
    )
    if not steps:
        return Refined(found, samples)
    new = _swapped(model, plan, {**tensors, **found})
    made, distances = tuned(model, new, data.batches, steps, data.forward, progress)
    return Refined({**found, **made}, samples, distances)


def _swapped(model: nn.Module, plan: Plan, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A model of its own: what is done to it is done to none of these tensors."""
    new = copied(model)
    graft_(new, plan, {key: tensor.clone() for key, tensor in tensors.items()})
    return new


def wants_data(model: nn.Module, swap: Swap) -> bool:
    """Whether data says something of a new norm: it has no running statistics, or the old one has none."""
    old = model.get_submodule(swap.paths[0])
    return not swap.norm.tracks or isinstance(old, nn.GroupNorm)

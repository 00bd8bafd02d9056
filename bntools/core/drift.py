"""How far the statistics of each BatchNorm have moved, in terms of what it normalises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bntools.core.rounds import Rounds
from bntools.core.running import Running
from bntools.core.stored import Statistics, write

DRIFTED = 0.01
"""A layer has drifted if its mean divergence is above this: a shift of 0.1 σ, or a variance 15 % larger."""


@dataclass(frozen=True, slots=True)
class LayerDrift:
    """One BatchNorm, before → after.

    Args:
        path: of its module.
        mean: the largest ``|μ' − μ|/σ`` of a channel, with the σ from before.
        var: the largest ``|log(σ'²/σ²)|`` of a channel.
        divergence: Kullback and Leibler's, both ways, of two normal distributions, the mean over channels:
            ``½·((σ² + δ²)/σ'² + (σ'² + δ²)/σ² − 2)`` with ``δ = μ' − μ``.
        calls: how many calls a forward has; their values are taken together.
        error_mean, error_var: the standard errors of μ' in units of σ', and of log σ'², each of the worst
            channel, from two halves of the batches; None if there is one batch only.
    """

    path: str
    mean: float
    var: float
    divergence: float
    calls: int = 1
    error_mean: float | None = None
    error_var: float | None = None

    @property
    def drifted(self) -> bool:
        """Whether it had; a divergence that is no number is of statistics that were none."""
        return not self.divergence <= DRIFTED


@dataclass(frozen=True, slots=True)
class Drift:
    """What a recalibration did.

    Args:
        layers: those that were reached, in order of execution.
        samples, batches: how much data went in.
        groups: how many groups were in lock-step; 1 is what one batch of everything would give.
        virtual_batch: how many samples are in a group at most.
        memory: the bytes that the choice of it was about, None if it was given.
        skipped: the numbers of batches that held NaN or infinity.
        converged: whether it stopped since more data would change nothing.
        gap_before, gap_after: how far the outputs in eval are from those in lock-step, on the first samples,
            as a share of the largest; None if outputs are no tensors.
        processes: how many have worked together.
    """

    layers: tuple[LayerDrift, ...]
    samples: int
    batches: int
    groups: int
    virtual_batch: int
    memory: int | None = None
    skipped: tuple[int, ...] = ()
    converged: bool = False
    gap_before: float | None = None
    gap_after: float | None = None
    processes: int = 1

    @property
    def first(self) -> str | None:
        """The first layer in order of execution that had drifted, None if none had."""
        return next((layer.path for layer in self.layers if layer.drifted), None)


def concluded(
    rounds: Rounds, running: Running, skipped: Sequence[int]
) -> tuple[dict[str, Statistics], Drift]:
    """Write what a pass has found into the BatchNorms that were recalibrated on the way.

    Args:
        rounds: the pass, over the models of *running* first.
        running: what it has found.
        skipped: the numbers of the batches that this process has left out.

    Returns:
        the new statistics by path, and how far they are from those before.

    Raises:
        UsageError: if a layer has seen one value a channel.
    """
    new, old, errors = running.found(), running.old, running.errors()
    for path, found in new.items():
        write(running.norms[path], found.mean, found.var)
    gaps = rounds.gap()
    drift = Drift(
        tuple(
            LayerDrift(path, *_apart(old[path], new[path]), running.calls[path], *errors.get(path, ()))
            for path in rounds.order
            if path in new
        ),
        rounds.samples,
        rounds.batches,
        rounds.groups,
        rounds.virtual_batch,
        rounds.memory,
        tuple(number for theirs in running.ranks.talk(skipped) for number in theirs),
        rounds.converged,
        *gaps,
        processes=running.ranks.size,
    )
    return new, drift


def divergence(before: Tensor, after: Tensor, delta: Tensor) -> Tensor:
    """Kullback and Leibler's, both ways, of normal distributions: ``½·((σ² + δ²)/σ'² + (σ'² + δ²)/σ² − 2)``.

    Args:
        before, after: σ² and σ'², above 0, shape (C,).
        delta: δ², of the means, shape (C,).

    Example:
        >>> divergence(torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([0.25])).tolist()
        [0.25]
    """
    return ((before + delta) / after + (after + delta) / before - 2) / 2


def _apart(old: Statistics, new: Statistics) -> tuple[float, float, float]:
    tiny = torch.finfo(torch.float32).tiny
    before, after = old.var.clamp_min(tiny), new.var.clamp_min(tiny)
    delta: Tensor = (new.mean - old.mean).square()
    found = torch.stack(
        (
            (delta / before).sqrt().max(),
            (after / before).log().abs().max(),
            divergence(before, after, delta).mean(),
        )
    ).tolist()
    return found[0], found[1], found[2]

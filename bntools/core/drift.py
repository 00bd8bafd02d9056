"""How far the statistics of each BatchNorm have moved, in terms of what it normalises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bntools.core.stored import Statistics

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


def drift_of(
    old: Mapping[str, Statistics],
    new: Mapping[str, Statistics],
    order: Sequence[str],
    calls: Mapping[str, int],
    errors: Mapping[str, tuple[float, float]],
) -> tuple[LayerDrift, ...]:
    """The drift of each layer that has new statistics, in the order given."""
    layers = []
    for path in order:
        if path in new:
            mean, var, divergence = _apart(old[path], new[path])
            layers.append(
                LayerDrift(path, mean, var, divergence, calls[path], *errors.get(path, (None, None)))
            )
    return tuple(layers)


def _apart(old: Statistics, new: Statistics) -> tuple[float, float, float]:
    tiny = torch.finfo(torch.float32).tiny
    before, after = old.var.clamp_min(tiny), new.var.clamp_min(tiny)
    delta: Tensor = (new.mean - old.mean).square()
    divergence = ((before + delta) / after + (after + delta) / before - 2) / 2
    found = torch.stack(
        ((delta / before).sqrt().max(), (after / before).log().abs().max(), divergence.mean())
    ).tolist()
    return found[0], found[1], found[2]

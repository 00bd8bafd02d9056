"""What `inspect` tells of a model, and how it is told of tensors alone. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bntools.core.arrays import StateTensor
from bntools.core.keys import statistics_in
from bntools.core.plan import Plan, Site
from bntools.errors import UsageError
from bntools.findings.examine import asked_of, examine
from bntools.findings.finding import Finding
from bntools.findings.mixtures import Mixture, mixtures_in
from bntools.findings.passed import Pass
from bntools.findings.subject import of_tensors
from bntools.findings.thresholds import check_thresholds

if TYPE_CHECKING:
    from bntools.core.example import Example


@dataclass(frozen=True, slots=True)
class Census:
    """The BatchNorms of a model.

    Args:
        sites: every call of one, in order of execution, then those that no call reached.
        plan: which of them fold and why the others do not; None for bare tensors without a model.
        example: what the model was run on.
        findings: what is wrong with them, the worst first.
        mixtures: of each SwitchableNorm, how much it normalises by what.
        asked: the ids of the rules that were asked: those that had what they look at.
        passed: what a pass over data showed; ``passed.drift`` is as of `bntools.recalibrate`.
    """

    sites: tuple[Site, ...]
    plan: Plan | None = None
    example: Example | None = None
    findings: tuple[Finding, ...] = ()
    mixtures: tuple[Mixture, ...] = ()
    asked: tuple[str, ...] = ()
    passed: Pass | None = field(default=None, repr=False)


def census_of_tensors(
    tensors: Mapping[str, StateTensor],
    *,
    thresholds: Mapping[str, float] | None = None,
    batch_size: int | None = None,
    decays: Mapping[str, float] | None = None,
) -> Census:
    """List the BatchNorms of a bare state dict: a BatchNorm is a pair of running statistics.

    Args:
        tensors: by key; values are asked for of those that stand beside running statistics.
        thresholds: from where on a rule speaks up, by its id.
        batch_size: how many samples each device gets in training.
        decays: the weight decay of each parameter that an optimizer has, by key.

    Raises:
        UsageError: if a threshold is for no rule that has one, or the batch is of no samples.

    Example:
        >>> import numpy as np
        >>> one = StateTensor("float32", (2,), np.ones(2))
        >>> census = census_of_tensors({"a.running_mean": one, "a.running_var": one})
        >>> [(site.name, site.channels) for site in census.sites], census.findings
        ([('a', 2)], ())
    """
    check_choices(thresholds, batch_size)
    sites = []
    for stem in statistics_in(tensors):
        name = stem.rstrip(".")
        batches = tensors.get(f"{stem}num_batches_tracked")
        mean = tensors[f"{stem}running_mean"]
        sites.append(Site(name, name, "BatchNorm", mean.size, None, None, batches.count if batches else None))
    subject = of_tensors(tensors, sites, batch_size, decays)
    findings = examine(subject, thresholds)
    return Census(tuple(sites), None, None, findings, mixtures_in(tensors), asked_of(subject))


def check_choices(thresholds: Mapping[str, float] | None, batch_size: int | None) -> None:
    """Before minutes go into a run."""
    check_thresholds(thresholds or {})
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size: {batch_size} is no number of samples", todo="give 1 or more")

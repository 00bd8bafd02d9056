"""Look at the BatchNorms of a model: what they are, which of them fold, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bntools.core.capture import capture, check_eager
from bntools.core.example import Example
from bntools.core.guess import guess
from bntools.core.plan import Plan, Site
from bntools.core.planning import plan_folds, plan_of
from bntools.errors import CaptureError, UsageError
from bntools.findings import Finding
from bntools.findings.examine import examine
from bntools.findings.mixtures import Mixture, mixtures_in, mixtures_of
from bntools.findings.subject import Seen, of_model, of_tensors
from bntools.findings.thresholds import check_thresholds


@dataclass(frozen=True, slots=True)
class Census:
    """The BatchNorms of a model.

    Args:
        sites: every call of one, in order of execution, then those that no call reached.
        plan: which of them fold and why the others do not; None for bare tensors without a model.
        example: what the model was run on.
        findings: what is wrong with them, the worst first.
        mixtures: of each SwitchableNorm, how much it normalises by what.
    """

    sites: tuple[Site, ...]
    plan: Plan | None = None
    example: Example | None = None
    findings: tuple[Finding, ...] = ()
    mixtures: tuple[Mixture, ...] = ()


def inspect(
    model: nn.Module,
    inputs: Any = None,
    *,
    thresholds: Mapping[str, float] | None = None,
    batch_size: int | None = None,
) -> Census:
    """List every BatchNorm of a model with its verdict and what is wrong with it; nothing is changed.

    Args:
        model: an eager module, in the mode that it will be used in.
        inputs: as for `fold`; guessed if None.
        thresholds: from where on a rule speaks up, by its id, such as ``{"BN007": 0.05}``.
        batch_size: how many samples each device gets in training, to be told whether those are enough.

    Raises:
        CaptureError: if no inputs were given and none could be guessed.
        UsageError: if *model* is no eager module, or a threshold is for no rule that has one.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.BatchNorm2d(2)).eval()
        >>> census = inspect(net, torch.ones(1, 1, 5, 5))
        >>> [(r.site.name, r.reason.value) for r in census.plan.refusals]
        [('2', 'blocked')]
        >>> [(finding.rule, finding.severity.value, finding.layer) for finding in census.findings]
        [('BN003', 'error', '2')]
    """
    check_eager(model)
    _check(thresholds, batch_size)
    example = guess(model) if inputs is None else Example.of(inputs, model)
    try:
        captured = capture(model, example)
    except CaptureError:  # then the plan says so of every site
        plan, _ = plan_folds(model, example)
        seen = None
    else:
        plan, folded = plan_of(model, captured)
        seen = Seen(captured, plan, folded)
    findings = examine(of_model(model, plan.sites, seen, batch_size), thresholds)
    return Census(plan.sites, plan, example, findings, mixtures_of(model))


def inspect_tensors(
    tensors: Mapping[str, Tensor],
    *,
    thresholds: Mapping[str, float] | None = None,
    batch_size: int | None = None,
) -> Census:
    """List the BatchNorms of a bare state dict: a BatchNorm is a pair of running statistics.

    Names and values are all there is: no eps, no momentum, no verdict, and only the findings that need no
    more.

    Args:
        tensors: a state dict.
        thresholds, batch_size: as for `inspect`.

    Raises:
        UsageError: if a threshold is for no rule that has one.
    """
    _check(thresholds, batch_size)
    sites = []
    for key, mean in tensors.items():
        if not (key == "running_mean" or key.endswith(".running_mean")):
            continue
        stem = key.removesuffix("running_mean")
        if f"{stem}running_var" not in tensors:
            continue
        batches = tensors.get(f"{stem}num_batches_tracked")
        name = stem.rstrip(".")
        known = batches is not None and batches.numel() == 1 and not batches.is_floating_point()
        count = int(batches) if batches is not None and known else None
        sites.append(Site(name, name, "BatchNorm", mean.numel(), None, None, count))
    findings = examine(of_tensors(tensors, sites, batch_size), thresholds)
    return Census(tuple(sites), findings=findings, mixtures=mixtures_in(tensors))


def _check(thresholds: Mapping[str, float] | None, batch_size: int | None) -> None:
    """Before minutes go into a run."""
    check_thresholds(thresholds or {})
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size: {batch_size} is no number of samples", todo="give 1 or more")

"""Look at the BatchNorms of a model: what they are, and which of them fold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bntools.core.capture import check_eager
from bntools.core.example import Example
from bntools.core.guess import guess
from bntools.core.plan import Plan, Site
from bntools.core.planning import plan_folds


@dataclass(frozen=True, slots=True)
class Census:
    """The BatchNorms of a model.

    Args:
        sites: every call of one, in order of execution, then those that no call reached.
        plan: which of them fold and why the others do not; None for bare tensors without a model.
        example: what the model was run on.
    """

    sites: tuple[Site, ...]
    plan: Plan | None = None
    example: Example | None = None


def inspect(model: nn.Module, inputs: Any = None) -> Census:
    """List every BatchNorm of a model with its verdict; nothing is changed.

    Args:
        model: an eager module, in the mode that it will be used in.
        inputs: as for `fold`; guessed if None.

    Raises:
        CaptureError: if no inputs were given and none could be guessed.
        UsageError: if *model* is no eager module.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.BatchNorm2d(2)).eval()
        >>> census = inspect(net, torch.ones(1, 1, 5, 5))
        >>> [(r.site.name, r.reason.value) for r in census.plan.refusals]
        [('2', 'blocked')]
    """
    check_eager(model)
    example = guess(model) if inputs is None else Example.of(inputs, model)
    plan, _ = plan_folds(model, example)
    return Census(plan.sites, plan, example)


def inspect_tensors(tensors: Mapping[str, Tensor]) -> Census:
    """List the BatchNorms of a bare state dict: a BatchNorm is a pair of running statistics.

    Names and shapes are all there is: no eps, no momentum, and no verdict.

    Args:
        tensors: a state dict.
    """
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
    return Census(tuple(sites))

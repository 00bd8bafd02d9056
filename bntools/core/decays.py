"""The weight decay that an optimizer gives each parameter: of a live one, or of its state in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from bntools.core.names import named_tensors

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_ENTRIES = ("optimizer", "optimizer_state_dict", "optimizer_states", "optim", "opt", "optimizers")


def decays_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, float]:
    """The weight decay of each parameter of a model that an optimizer has, by key; a shared one under each.

    Example:
        >>> net = nn.BatchNorm1d(1)
        >>> decays_of(torch.optim.SGD([net.weight], lr=0.1, weight_decay=0.01), net)
        {'weight': 0.01}
    """
    decays = {id(p): _decay(group) for group in optimizer.param_groups for p in group["params"]}
    return {key: decays[id(tensor)] for key, tensor in named_tensors(model) if id(tensor) in decays}


def states_in(checkpoint: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The states of optimizers among the entries of a checkpoint."""
    found: list[Mapping[str, Any]] = []
    for name in _ENTRIES:
        entry = (checkpoint or {}).get(name)
        several = entry if isinstance(entry, list | tuple) else [entry]
        found += [each for each in several if isinstance(each, Mapping) and _groups(each)]
    return found


def decays_in(state: Mapping[str, Any], keys: Iterable[str]) -> dict[str, float] | None:
    """`decays_of` for the state of an optimizer, as far as it tells which parameter is which.

    It numbers them and mostly keeps no names. They are known where there are names (`param_names`), or where
    there are as many as the model has and all groups decay alike.

    Args:
        state: of ``optimizer.state_dict()``.
        keys: of the model's state dict, in order; those of statistics are no parameters.

    Returns:
        None where nothing is known.

    Example:
        >>> decays_in({"param_groups": [{"params": [0, 1], "weight_decay": 0.1}]}, ["weight", "bias"])
        {'weight': 0.1, 'bias': 0.1}
    """
    groups = _groups(state)
    if all("param_names" in group for group in groups):
        return {str(name): _decay(group) for group in groups for name in group["param_names"]}
    known = [key for key in keys if key.rpartition(".")[2] not in _BUFFERS]
    count = sum(len(group["params"]) for group in groups)
    if count != len(known):
        return None
    decays = {_decay(group) for group in groups}
    return dict.fromkeys(known, decays.pop()) if len(decays) == 1 else None


def _groups(state: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Those with parameters; none if it is the state of something else."""
    groups = state.get("param_groups")
    if not isinstance(groups, list | tuple):
        return ()
    fit = all(isinstance(g, Mapping) and isinstance(g.get("params"), list | tuple) for g in groups)
    return [group for group in groups if group["params"]] if fit else ()


def _decay(group: Mapping[str, Any]) -> float:
    value = group.get("weight_decay", 0.0)
    return float(value) if isinstance(value, int | float) else 0.0

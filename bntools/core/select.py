"""Which BatchNorms of a model a verb is about: by pattern, and by what their statistics do in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from bntools.core.names import modules_of, own_tensor
from bntools.core.plan import Site
from bntools.core.reasons import Reason
from bntools.errors import UsageError


@dataclass(frozen=True, slots=True)
class Selected:
    """The BatchNorms to work on, and why the others are left alone.

    Args:
        norms: by their first path, in the order in which the model registers them.
        left: by path, the reason and a sentence.
    """

    norms: Mapping[str, nn.Module]
    left: Mapping[str, tuple[Reason, str]]


def select(model: nn.Module, only: str | Sequence[str] = "*", *, include_frozen: bool = False) -> Selected:
    """The BatchNorms of a model that have statistics and are asked for.

    Args:
        model: any module.
        only: patterns of paths, as a shell's; one that starts with ``!`` leaves out. A pattern that matches a
            module is about all that is inside it.
        include_frozen: also those that a training loop would leave as they are: in eval in a model that
            trains, with a momentum of 0, or of a class that never updates them.

    Raises:
        UsageError: if a pattern matches no BatchNorm.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.BatchNorm1d(2)))
        >>> [*select(net, "1").norms]
        ['1.0']
    """
    patterns = [only] if isinstance(only, str) else [*only]
    norms: dict[str, nn.Module] = {}
    left: dict[str, tuple[Reason, str]] = {}
    paths: dict[int, list[str]] = {}
    for path, module in modules_of(model):
        if isinstance(module, _BatchNorm | _InstanceNorm) or own_tensor(module, "running_mean") is not None:
            paths.setdefault(id(module), []).append(path)
    modules = dict(modules_of(model))
    for pattern in patterns:
        if not any(_matches(path, pattern.removeprefix("!")) for names in paths.values() for path in names):
            known = ", ".join([names[0] for names in paths.values()][:3])
            todo = f"write patterns of paths such as {known}" if known else "the model has none"
            raise UsageError(f"only: {pattern!r} matches no BatchNorm", todo=todo)
    for names in paths.values():
        path, module = names[0], modules[names[0]]
        if not any(_chosen(name, patterns) for name in names):
            left[path] = Reason.NOT_SELECTED, "it was not asked for"
        elif own_tensor(module, "running_mean") is None or own_tensor(module, "running_var") is None:
            left[path] = Reason.NO_STATISTICS, "it has no running statistics"
        elif isinstance(module, torch.jit.ScriptModule):
            left[path] = Reason.COMPILED, "it is TorchScript"
        elif "running_mean" in module._parameters:
            left[path] = Reason.UNRECOGNISED, "its statistics are parameters, to be trained"
        elif isinstance(module, _InstanceNorm):
            left[path] = Reason.UNRECOGNISED, "its statistics are of single samples"
        elif not include_frozen and (why := _frozen(module, model)):
            left[path] = Reason.FROZEN, why
        else:
            norms[path] = module
    return Selected(norms, left)


def _chosen(path: str, patterns: Sequence[str]) -> bool:
    """The last pattern that matches decides; if all of them leave out, the rest is chosen."""
    chosen = all(pattern.startswith("!") for pattern in patterns)
    for pattern in patterns:
        if _matches(path, pattern.removeprefix("!")):
            chosen = not pattern.startswith("!")
    return chosen


def _matches(path: str, pattern: str) -> bool:
    steps = path.split(".")
    return any(fnmatchcase(".".join(steps[:n]), pattern) for n in range(len(steps), 0, -1))


def _frozen(module: nn.Module, model: nn.Module) -> str:
    """Why its statistics would stay as they are in training; empty if they would not."""
    if model.training and not module.training:
        return "it is in eval mode in a model that is in training mode"
    if getattr(module, "momentum", None) == 0:
        return "its momentum is 0"
    if "momentum" not in vars(module):
        return f"{type(module).__name__} never updates its statistics"
    return ""


def site_of(path: str, module: nn.Module, at: int | None) -> Site:
    """How a BatchNorm is named in a plan.

    Args:
        path: its first path.
        module: the BatchNorm.
        at: its place in the order of execution.
    """
    mean, seen = own_tensor(module, "running_mean"), own_tensor(module, "num_batches_tracked")
    return Site(
        name=path,
        module=path,
        kind=type(module).__name__,
        channels=len(mean) if mean is not None else int(getattr(module, "num_features", 0)),
        eps=getattr(module, "eps", None),
        momentum=getattr(module, "momentum", None),
        batches=int(seen) if seen is not None else None,
        at=at,
    )

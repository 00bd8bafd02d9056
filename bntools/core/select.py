"""Which BatchNorms of a model a verb is about: by pattern, and by what their statistics do in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from bntools.core.calls import ModuleFacts
from bntools.core.facts import facts_of
from bntools.core.names import modules_of, own_tensor
from bntools.core.reasons import Reason
from bntools.errors import UsageError
from bntools.norms.frozen import frozen


@dataclass(frozen=True, slots=True)
class Selected:
    """The BatchNorms to work on, and why the others are left alone.

    Args:
        facts: of all BatchNorms, by their first path, in the order in which the model registers them.
        norms: those to work on.
        left: by path, the reason and a sentence.
    """

    facts: Mapping[str, ModuleFacts]
    norms: Mapping[str, nn.Module]
    left: Mapping[str, tuple[Reason, str]]


def select(
    model: nn.Module,
    only: str | Sequence[str] = "*",
    *,
    include_frozen: bool = False,
    others: tuple[type[nn.Module], ...] = (),
) -> Selected:
    """The BatchNorms of a model that have statistics and are asked for.

    Args:
        model: any module.
        only: patterns of paths, as a shell's; one that starts with ``!`` leaves out. A pattern that matches a
            module is about all that is inside it.
        include_frozen: also those that a training loop would leave as they are: in eval in a model that
            trains, with a momentum of 0, or of a class that never updates them.
        others: classes of other norms that are asked for as well.

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
    modules = dict(modules_of(model))
    facts = {
        path: each
        for path, each in facts_of(model).items()
        if _is_norm(modules[path]) or isinstance(modules[path], others)
    }
    paths = [path for each in facts.values() for path in each.paths]
    for pattern in patterns:
        if not any(_matches(path, pattern.removeprefix("!")) for path in paths):
            known = ", ".join([*facts][:3])
            todo = f"write patterns of paths such as {known}" if known else "the model has none"
            raise UsageError(f"only: {pattern!r} matches no BatchNorm", todo=todo)
    for path, each in facts.items():
        module = modules[path]
        if not any(_chosen(name, patterns) for name in each.paths):
            left[path] = Reason.NOT_SELECTED, "it was not asked for"
        elif not each.statistics and not isinstance(module, others):
            left[path] = Reason.NO_STATISTICS, "it has no running statistics"
        elif each.compiled:
            left[path] = Reason.COMPILED, "it is TorchScript"
        elif "running_mean" in module._parameters:
            left[path] = Reason.UNRECOGNISED, "its statistics are parameters, to be trained"
        elif isinstance(module, _InstanceNorm) and not isinstance(module, others):
            left[path] = Reason.UNRECOGNISED, "its statistics are of single samples"
        elif not include_frozen and (why := _frozen(module, model)):
            left[path] = Reason.FROZEN, why
        else:
            norms[path] = module
    return Selected(facts, norms, left)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm | _InstanceNorm) or own_tensor(module, "running_mean") is not None


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
    if (how := frozen(module)) is not None and how.stats:
        return "it was frozen"
    if model.training and not module.training:
        return "it is in eval mode in a model that is in training mode"
    if getattr(module, "momentum", None) == 0:
        return "its momentum is 0"
    if "momentum" not in vars(module):
        return f"{type(module).__name__} never updates its statistics"
    return ""

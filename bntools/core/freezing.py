"""What can be frozen, which layers come first, and what an optimizer would do to what is frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bntools.core.capture import capture
from bntools.core.changes import Switch
from bntools.core.decays import decays_of
from bntools.core.example import Example
from bntools.core.keys import key_of
from bntools.core.names import modules_of, own_tensor
from bntools.core.reasons import Reason
from bntools.core.sites import find_sites
from bntools.core.untouched import untouched
from bntools.errors import UsageError
from bntools.norms.frozen import AFFINE, affine_of, freeze_, frozen

_SHAPES = ((4,), (4, 3), (4, 3, 3), (4, 3, 3, 3))
"""Of samples and space: what inputs are tried."""
_STATISTICS = ("running_mean", "running_var")

Why = dict[str, tuple[Reason, str]]
"""Why modules are left as they are, by path: the reason and a sentence."""


@dataclass(frozen=True, slots=True)
class Freezing:
    """What a freeze has done.

    Args:
        statistics: the paths of the modules whose statistics are frozen now.
        parameters: the keys of the parameters that are frozen now.
        held: of those, the ones that the optimizer still holds: without a gradient it leaves them alone.
        decayed: of those, the ones with weight decay: they would move if somebody gave them a gradient of
            zeros, as ``zero_grad(set_to_none=False)`` before the freeze does.
    """

    statistics: tuple[str, ...]
    parameters: tuple[str, ...]
    held: tuple[str, ...] = ()
    decayed: tuple[str, ...] = ()


def freezing_of(model: nn.Module, optimizer: Optimizer | None) -> Freezing:
    """What is frozen in a model, and what an optimizer holds of it."""
    statistics: list[str] = []
    parameters: list[str] = []
    first: dict[int, tuple[str, nn.Module]] = {}
    for path, module in modules_of(model):
        first.setdefault(id(module), (path, module))
    for path, module in first.values():
        how = frozen(module)
        if how is not None:
            statistics += [path] * how.stats
            there = affine_of(module)
            parameters += [key_of(path, name) for name in how.grads if name in there]
    decays = decays_of(optimizer, model) if optimizer is not None else {}
    held = [key for key in parameters if key in decays]
    decayed = [key for key in held if decays[key]]
    return Freezing(tuple(statistics), tuple(parameters), tuple(held), tuple(decayed))


def resists(module: nn.Module, *, stats: bool) -> str:
    """Why a module cannot be frozen; empty if it can. It is tried out, and left as it was.

    In eval it must normalise by its running statistics; once frozen and told to train, it must return the
    same, bit for bit, and leave its statistics alone.

    Args:
        module: with running statistics.
        stats: whether those are to be frozen, which is done by its mode; else there is nothing to try out.
    """
    kind = type(module).__name__
    if "train" in vars(module) and frozen(module) is None:
        return "its train is its own"
    if not stats:
        return ""
    with untouched(module):
        mean = _plain(module)
        for shape in _SHAPES:
            x = torch.randn(shape[0], len(mean), *shape[1:]).to(mean) * 3 + 1
            try:
                told = module.train(False).forward(x)
                before = _statistics(module)
                freeze_(module, affine=False)
                module.train()
                for child in module.children():
                    child.eval()
                again = module.forward(x)
            except Exception:  # an input of that shape is not for it
                continue
            if not isinstance(told, Tensor) or not isinstance(again, Tensor):
                return f"{kind} returns something else than one tensor"
            still = all(map(torch.equal, before, _statistics(module)))
            if not still or not torch.equal(told, again) or not _goes_by(module, x, told):
                return f"{kind} goes by the batch in either mode"
            return ""
    return f"{kind} does not run by itself"


def _plain(module: nn.Module) -> Tensor:
    """Give a module tensors of its own, with μ = 0, σ² = 1, γ = 1, β = 0; returns the running mean.

    A γ of zeros, or a mean so far away that an activation behind it is shut, would hide what it goes by.
    """
    values = {"running_mean": 0.0, "running_var": 1.0, "weight": 1.0, "bias": 0.0}
    both: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
    for held in both:
        for name, tensor in held.items():
            if tensor is not None:
                own = tensor.detach().clone()
                own = own.fill_(values[name]) if name in values else own
                held[name] = nn.Parameter(own) if isinstance(tensor, nn.Parameter) else own
    return _statistics(module)[0]


def _statistics(module: nn.Module) -> tuple[Tensor, Tensor]:
    mean, var = own_tensor(module, "running_mean"), own_tensor(module, "running_var")
    assert mean is not None
    assert var is not None
    return mean.clone(), var.clone()


def _goes_by(module: nn.Module, x: Tensor, told: Tensor) -> bool:
    """Whether what a module returns changes with its running mean."""
    module._buffers["running_mean"] = torch.ones_like(_statistics(module)[0])
    return not torch.equal(module.forward(x), told)


def freezes(
    model: nn.Module, norms: Mapping[str, nn.Module], *, stats: bool = True, affine: bool = True
) -> tuple[dict[str, Switch], Why]:
    """What freezes some of a model's BatchNorms, and why others of them cannot be; both by path."""
    left: Why = {}
    for path, module in norms.items():
        if why := resists(module, stats=stats):
            left[path] = Reason.UNRECOGNISED, why
    free = {path: module for path, module in norms.items() if path not in left}
    names = _STATISTICS * stats + AFFINE * affine
    for path, other in tied(free, modules_of(model), names).items():
        left[path] = Reason.TIED, f"{other or 'the model'} has a tensor of it too"
    return {path: Switch(path, True, stats, affine) for path in norms if path not in left}, left


def unfreezes(model: nn.Module, norms: Mapping[str, nn.Module]) -> tuple[dict[str, Switch], Why]:
    """What makes some of a model's BatchNorms what they were, and why others of them stay; both by path."""
    left: Why = {}
    for path, module in norms.items():
        if frozen(module) is None:
            left[path] = Reason.NOT_FROZEN, "bntools has not frozen it"
    holding = [(path, m) for path, m in modules_of(model) if (how := frozen(m)) and how.grads]
    chosen = {path: module for path, module in holding if path in norms}
    for path, other in tied(chosen, holding, AFFINE).items():
        left[path] = Reason.TIED, f"{other or 'the model'} has a tensor of it too, and stays frozen"
    return {path: Switch(path, freeze=False) for path in norms if path not in left}, left


def tied(
    chosen: Mapping[str, nn.Module], among: Iterable[tuple[str, nn.Module]], names: Sequence[str]
) -> dict[str, str]:
    """Of the modules that are chosen, those whose tensors a layer that is not has too: both paths.

    Args:
        chosen: by path.
        among: the layers that count, with their paths.
        names: of the tensors.
    """
    layers = [*among]
    left: dict[str, str] = {}
    while True:  # one that is left makes others stay that it is tied to
        norms = {path: module for path, module in chosen.items() if path not in left}
        ours = {id(module) for module in norms.values()}
        others = {
            id(tensor): path
            for path, module in layers
            if id(module) not in ours
            for tensor in (*module._parameters.values(), *module._buffers.values())
            if tensor is not None
        }
        found = {
            path: others[id(tensor)]
            for path, module in norms.items()
            for tensor in (own_tensor(module, name) for name in names)
            if id(tensor) in others
        }
        if not found:
            return left
        left |= found


def early(model: nn.Module, example: Example, first: int | None, until: str | None) -> frozenset[str]:
    """The paths of the BatchNorms that come first in the order of execution.

    Args:
        model: run once, in its own mode; it is as it was afterwards.
        example: what to run it on.
        first: how many of them; None for all.
        until: the path of the module with which they end; None for the last.

    Raises:
        UsageError: if no module of that path is called.
        CaptureError: if the model does not run on the example.
    """
    seen = capture(model, example)
    ends = [call.end for call in seen.modules if call.path == until]
    if until is not None and not ends:
        raise UsageError(
            f"until: {until!r} is not called", todo="write the path of a module that a forward reaches"
        )
    sites, _ = find_sites(seen)
    order = [
        site.site.module
        for site in sites
        if site.site.module is not None and (until is None or (site.site.at or 0) < max(ends))
    ]
    return frozenset([*dict.fromkeys(order)][:first])

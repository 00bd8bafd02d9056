"""Whether a plan fits a model: a plan from a file may say anything, and nothing may be half done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from bntools.core.affine import ACTIVATIONS
from bntools.core.capture import fingerprint
from bntools.core.changes import MIXING, NORM, Norm, Part, Standardization, Swap, Switch
from bntools.core.host import Host
from bntools.core.names import own_tensor
from bntools.core.parametrised import is_parametrised
from bntools.core.plan import REDUCED, Edit, Plan, Reduction
from bntools.core.records import plain
from bntools.core.untouched import untouched
from bntools.errors import PlanError
from bntools.norms.frozen import frozen
from bntools.norms.padded import PADDED
from bntools.norms.standardized import why_not

_CLASSES = {name: len(args) for name, args in ACTIVATIONS.values()}


def check_fit(model: nn.Module, plan: Plan, tensors: Mapping[str, Tensor]) -> None:
    """Check everything that `bntools.core.graft.graft_` is about to do.

    Raises:
        PlanError: if the plan or the tensors do not fit the model.
    """
    if plan.fingerprint != fingerprint(model):
        raise PlanError(
            "plan: it was made for a model with other tensors (names or shapes differ)",
            todo="give a fresh instance of the class that was folded, with the same arguments",
        )
    if plan.keys != set(tensors):
        differ = ", ".join(map(plain, sorted(plan.keys ^ set(tensors))[:5]))
        raise PlanError(
            f"plan: the tensors that it needs and those given differ: {differ}", todo="fold the model again"
        )
    for where, problem, verb in _problems(model, plan, tensors):
        raise PlanError(f"plan: {plain(where)}: {plain(problem, 300)}", todo=f"{verb} the model again")


def _problems(model: nn.Module, plan: Plan, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str, str]]:
    """What cannot be done: where, why, and the verb that makes a plan with which it can."""
    for host in plan.hosts:
        for problem in _problems_of_host(model, host, tensors):
            yield host.path, problem, "fold"
    for change in plan.changes:
        more = _problems_of_reduction(change, tensors) if isinstance(change, Reduction) else ()
        for problem in (*_problems_of_change(model, change), *more):
            yield change.site.name, problem, "fold"
    for swap in plan.swaps:
        for problem in _problems_of_swap(model, swap, tensors):
            yield (swap.paths[0] if swap.paths else "a swap"), problem, "swap"
    for conv in plan.standardized:
        for problem in _problems_of_standardization(model, conv, tensors):
            yield conv.path, problem, "swap"
    for switch in plan.switches:
        for problem in _problems_of_switch(model, switch):
            yield switch.path, problem, "freeze"
    for key in plan.tuned:
        for problem in _problems_of_parameter(model, key, tensors[key]):
            yield key, problem, "swap"
    for key in plan.statistics:
        for problem in _problems_of_statistics(model, key, tensors[key]):
            yield key, problem, "recalibrate"


def _problems_of_parameter(model: nn.Module, key: str, new: Tensor) -> Iterator[str]:
    path, _, name = key.rpartition(".")
    module = registered(model, path)
    old = module._parameters.get(name) if module is not None else None
    if old is None:
        yield "the model has no such parameter"
    else:
        yield from _problems_of_values(old, new)


def _problems_of_statistics(model: nn.Module, key: str, new: Tensor) -> Iterator[str]:
    path, _, name = key.rpartition(".")
    module = registered(model, path)
    old = own_tensor(module, name) if module is not None else None
    if old is None or isinstance(old, nn.Parameter):
        yield "the model has no such statistics"
    else:
        yield from _problems_of_values(old, new)


def _problems_of_values(old: Tensor, new: Tensor) -> Iterator[str]:
    """What of new values does not fit into a tensor that is written in place."""
    if (old.shape, old.dtype) != (new.shape, new.dtype):
        yield f"it is {list(old.shape)} {old.dtype}, not {list(new.shape)} {new.dtype}"
    elif not bool(new.isfinite().all()):
        yield "it is not finite in its type"


def _problems_of_swap(model: nn.Module, swap: Swap, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    found = [registered(model, path) for path in swap.paths if path]
    if not found or len(found) < len(swap.paths) or any(each is not found[0] for each in found):
        yield "the model has no such BatchNorm"
        return
    mean = own_tensor(found[0], "running_mean") if found[0] is not None else None
    if (mean is None or mean.numel() != swap.channels) and not _is_group(found[0], swap):
        yield f"it has no running statistics of {swap.channels} channels"
    if swap.groups < 1 or swap.channels % swap.groups or swap.space not in (1, 2, 3) or not swap.eps >= 0:
        yield f"{swap.groups} groups, {swap.space} axes and an ε of {swap.eps} make no norm"
    for key in swap.keys:
        name = key.rpartition(".")[2]
        shape = () if name == "num_batches_tracked" else (3,) if name in MIXING else (swap.channels,)
        if tensors[key].shape != shape:
            yield f"{key} has another shape: {list(tensors[key].shape)}"
    yield from _problems_of_parts(swap.keeps, found[0], {*vars(nn.Sequential()), *dir(nn.Sequential), NORM})


def _is_group(module: nn.Module | None, swap: Swap) -> bool:
    """Whether it is a GroupNorm that a BatchNorm can take the place of."""
    return type(module) is nn.GroupNorm and swap.norm is Norm.BATCH and module.num_channels == swap.channels


def _problems_of_standardization(
    model: nn.Module, conv: Standardization, tensors: Mapping[str, Tensor]
) -> Iterator[str]:
    module: Any = registered(model, conv.path)
    if module is None or not conv.path:
        yield "the model has no such convolution"
        return
    if why := why_not(module):
        yield f"it cannot be standardised: {why}"
        return
    if not conv.eps > 0:
        yield f"an ε of {conv.eps}"
    for key in conv.keys:
        if tensors[key].shape != (module.out_channels,) or not tensors[key].is_floating_point():
            yield f"{key} should be {[module.out_channels]} numbers, not {list(tensors[key].shape)}"


def _problems_of_switch(model: nn.Module, switch: Switch) -> Iterator[str]:
    module = registered(model, switch.path)
    if module is None or own_tensor(module, "running_mean") is None:
        yield "the model has no such BatchNorm"
    elif "train" in vars(module) and frozen(module) is None:
        yield "its train is its own"


def _problems_of_reduction(reduction: Reduction, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    if any(part.name == REDUCED for part in reduction.keeps):
        yield f"{REDUCED} is no name for what it keeps"
    for key in reduction.keys if reduction.removes else ():
        if tensors[key].shape != (reduction.site.channels,) or not tensors[key].is_floating_point():
            yield f"{key} should be {[reduction.site.channels]} numbers, not {list(tensors[key].shape)}"


def _problems_of_change(model: nn.Module, change: Edit | Reduction) -> Iterator[str]:
    if not change.removes:
        yield "it removes no BatchNorm"
    for path in change.removes:
        module = registered(model, path)
        if module is None:
            yield f"there is no module {path}"
            return
        mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if not path or not isinstance(mean, Tensor) or not isinstance(var, Tensor):
            yield f"{path or 'the model'} is no BatchNorm"
        elif mean.numel() != change.site.channels:
            yield f"{path} has {mean.numel()} channels, not {change.site.channels}"
        yield from _problems_of_parts(change.keeps, module, {*vars(nn.Sequential()), *dir(nn.Sequential)})


def _problems_of_parts(parts: Sequence[Part], module: nn.Module | None, taken: set[str]) -> Iterator[str]:
    """What of the things that a module keeps doing cannot be done; *taken* are names that they cannot
    have.
    """
    for part in parts:
        if module is not None and not part.op and part.name not in module._modules:
            yield f"there is no child {part.name}"
        if part.op and not _is_activation(part):
            yield f"{part.op} is no activation that a BatchNorm can leave behind"
        if not part.name or "." in part.name or part.name in taken:
            yield f"{part.name or 'nothing'} is no name for what it keeps"
        taken.add(part.name)


def _problems_of_host(model: nn.Module, host: Host, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """What of a host's new tensors has no place in this model."""
    weight = tensors[host.weight_key]
    if bool(host.weight) is bool(host.new_weight) or (host.bias and host.new_bias):
        yield f"it names no weight of {host.path or 'the model'}, or two, or two biases"
        return
    if host.pad:
        conv: Any = registered(model, host.path)
        is_torchs = isinstance(conv, nn.modules.conv._ConvNd) and type(conv) in PADDED
        if not is_torchs or conv.padding_mode != "zeros" or host.pad != f"{host.path}.pad_value":
            yield "it is no convolution that could pad with other values"
        elif hasattr(conv, "pad_value"):
            yield f"there is something at {host.pad}"
        elif (tensors[host.pad].shape, tensors[host.pad].dtype) != ((conv.in_channels,), weight.dtype):
            yield f"{host.pad} should be {[conv.in_channels]} {weight.dtype}"
    if host.layout == "table" and host.bias_key:
        yield f"a table has no bias: {host.bias_key}"
    for keys, made in ((host.weight, host.new_weight), (host.bias, host.new_bias)):
        baked = host.bake if keys is host.weight else ""
        there = [_standing(model, key, host.path if baked else None, baked) for key in keys]
        if made and _standing(model, made) is not None:
            yield f"there is no place for {made}"
        for key, old in zip(keys, there, strict=True):
            if not isinstance(old, Tensor):
                yield f"there is no {key}" + (f" that could be baked in {host.path}" if baked else "")
            elif old is not there[0] and not baked:
                yield f"{keys[0]} and {key} are one tensor in the plan and two in the model"
        for key in (*keys[:1], made) if keys or made else ():
            like = there[0] if keys else None
            want = (
                (like.shape, like.dtype)
                if isinstance(like, Tensor)
                else ((_channels(weight, host),), weight.dtype)
            )
            new = tensors.get(key)
            if new is not None and (new.shape, new.dtype) != want:
                yield f"{key} should be {list(want[0])} {want[1]}, not {list(new.shape)} {new.dtype}"


def _channels(weight: Tensor, host: Host) -> int:
    """How many output channels a layer with that weight has."""
    at = 1 if host.layout == "transposed" else 0
    return weight.shape[at] * (host.groups if at else 1) if weight.ndim > at else 0


def _standing(model: nn.Module, key: str, path: str | None = None, baked: str = "") -> Tensor | str | None:
    """What stands under a key: a tensor, None where one can be made, else a word."""
    owner, name = registered(model, key.rpartition(".")[0]), key.rpartition(".")[2]
    if owner is None:
        return "missing"
    if not baked:
        return {**owner._buffers, **owner._parameters}.get(name, "missing")
    if owner is not registered(model, path or "") or name != baked or not is_parametrised(owner, name):
        return "missing"
    with untouched(owner):
        shape = getattr(owner, name).shape
    # The old kind keeps the computed tensor as an attribute, in whatever type it was last computed in.
    return next(p for p in owner.parameters() if p.is_floating_point()).detach().new_empty(shape)


def built(part: Part) -> nn.Module:
    """A new module for what a BatchNorm does besides."""
    module: nn.Module = getattr(nn, part.op)(*part.args)
    return module


def _is_activation(part: Part) -> bool:
    """Whether a part is one that `bntools.core.sites` makes."""
    if len(part.args) != _CLASSES.get(part.op, -1):
        return False
    if part.op == "GELU":
        return part.args[0] in ("none", "tanh")
    return all(type(a) in (int, float) for a in part.args) and (
        part.op != "Hardtanh" or float(part.args[0]) < float(part.args[1])
    )


def registered(model: nn.Module, path: str) -> nn.Module | None:
    """The module of that path, by the registered children only; None if there is none."""
    module: nn.Module | None = model
    for name in path.split(".") if path else ():
        module = module._modules.get(name) if module is not None else None
    return module

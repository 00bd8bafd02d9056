"""The only knife: whatever lastingly changes a user's model does it here, all of it or nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from bntools.core.changes import NORM, Part, Swap, Switch
from bntools.core.compute import get_tensor
from bntools.core.fit import built, check_fit, registered
from bntools.core.host import Host
from bntools.core.operator import Operator
from bntools.core.parametrised import bake_
from bntools.core.plan import REDUCED, Edit, Plan, Reduction
from bntools.core.records import plain
from bntools.core.swapping import norm_of
from bntools.core.untouched import restore
from bntools.errors import PlanError
from bntools.norms.channelwise import ChannelAffine
from bntools.norms.frozen import affine_of, freeze_, frozen, unfreeze_
from bntools.norms.padded import pad_with_
from bntools.norms.standardized import standardize_

_HOOKS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")


def graft_(model: nn.Module, plan: Plan, tensors: Mapping[str, Tensor]) -> Callable[[], None]:
    """Put *tensors* into the hosts and take the BatchNorms out, or give those other statistics, or freeze
    them.

    First everything is checked, then everything is done; on any exception in between, Ctrl-C included, the
    model is as it was. New parameters keep ``requires_grad``, dtype and device of those that they replace, a
    new bias those of its weight. Tensors that were tied stay tied.

    Args:
        model: changed in place.
        plan: made for a model with the same tensors.
        tensors: the new weights and biases by key, as `bntools.core.compute.fold_tensors` makes them, or the
            new statistics.

    Returns:
        a function that undoes the change.

    Raises:
        PlanError: if the plan or the tensors do not fit the model, which is then untouched.
    """
    check_fit(model, plan, tensors)
    undo = _remember(model, plan)
    try:
        for path, name in dict.fromkeys((h.path, h.bake) for h in plan.hosts if h.bake):
            bake_(model.get_submodule(path), name)
        for host in plan.hosts:
            _write(model, host, tensors)
        for change in plan.changes:
            _replace(model, change, tensors)
        _refill(model, {key: tensors[key] for key in (*plan.statistics, *plan.tuned)})
        for swap in plan.swaps:
            _exchange(model, swap, tensors)
        for conv in plan.standardized:
            kept = {key.rpartition(".")[2]: tensors[key] for key in conv.keys}
            standardize_(model.get_submodule(conv.path), kept, eps=conv.eps)
        for switch in plan.switches:
            _switch(model.get_submodule(switch.path), switch)
    except BaseException:
        undo()
        raise
    return undo


def _refill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Write in place: others may hold these tensors too."""
    with torch.no_grad():
        for key, new in tensors.items():
            statistic = get_tensor(model, key)
            assert statistic is not None
            statistic.copy_(new)


def _exchange(model: nn.Module, swap: Swap, tensors: Mapping[str, Tensor]) -> None:
    """Put another norm in the place of a module, under all its paths."""
    old = registered(model, swap.paths[0])
    assert old is not None
    norm = norm_of(swap, old, {key.rpartition(".")[2]: tensors[key] for key in swap.keys})
    rest = _followed(NORM, norm, old, swap.keeps) if swap.keeps else norm
    # The hooks of the module are hooks on what stands there, and their handles go on to work.
    vars(rest).update({name: value for name, value in vars(old).items() if name.endswith(_HOOKS)})
    for path in swap.paths:
        parent, _, name = path.rpartition(".")
        owner = registered(model, parent)
        assert owner is not None
        owner._modules[name] = rest


def _switch(module: nn.Module, switch: Switch) -> None:
    if switch.freeze:
        freeze_(module, stats=switch.stats, affine=switch.affine)
    else:
        unfreeze_(module)


def bypass_(model: nn.Module, plan: Plan) -> None:
    """Take the BatchNorms of a plan out and leave their hosts as they are: a fold that forgets them."""
    for change in plan.changes:
        _replace(model, change, None)


def _replace(model: nn.Module, change: Edit | Reduction, tensors: Mapping[str, Tensor] | None) -> None:
    """Put what is left of a BatchNorm in its place; without *tensors* nothing is left of a reduced one."""
    rest: nn.Module | None = None
    for path in change.removes:
        parent, _, name = path.rpartition(".")
        owner, module = registered(model, parent), registered(model, path)
        if owner is None or module is None:
            raise PlanError(
                f"plan: {plain(change.site.name)}: {plain(path)} has gone", todo="fold the model again"
            )
        if rest is None:
            layer = None
            if isinstance(change, Reduction) and tensors is not None:
                layer = _layer(module, change, tensors)
            rest = _rest(module, change.keeps, layer)
        owner._modules[name] = rest


def _layer(module: Any, reduction: Reduction, tensors: Mapping[str, Tensor]) -> nn.Module:
    """What a BatchNorm becomes, on the device of its statistics; trained if a parameter of its own was."""
    bias, device = tensors[reduction.bias_key], module.running_mean.device
    grad = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    layer = ChannelAffine(len(bias), scale=bool(reduction.weight_key), device=device, dtype=bias.dtype)
    for key in reduction.keys:
        parameter = nn.Parameter(tensors[key].to(device), requires_grad=grad)
        layer.register_parameter(key.rpartition(".")[2], parameter)
    return layer.train(module.training)


def _rest(module: nn.Module, keeps: tuple[Part, ...], layer: nn.Module | None) -> nn.Module:
    """What is left of a BatchNorm module: nothing or a layer, and what it does behind its normalisation."""
    if not hasattr(module, "running_mean"):
        return module  # the second site of a module that has gone already
    if layer is not None and not keeps:
        return layer
    if not keeps:
        nothing = nn.Identity().train(module.training)
        if isinstance(module, Operator):  # what is below it in a program is no part of it
            nothing._modules.update(module._modules)
        return nothing
    return _followed(REDUCED, layer, module, keeps)


def _followed(name: str, layer: nn.Module | None, old: nn.Module, keeps: Sequence[Part]) -> nn.Module:
    """A layer by that name, if there is one, and behind it what a module did behind its normalisation."""
    rest = nn.Sequential()
    if layer is not None:
        rest.add_module(name, layer)
    for part in keeps:
        rest.add_module(part.name, built(part) if part.op else old.get_submodule(part.name))
    rest.training = old.training
    return rest


def _write(model: nn.Module, host: Host, tensors: Mapping[str, Tensor]) -> None:
    old = get_tensor(model, host.weight_key)
    weight = tensors[host.weight_key]
    if old is None:  # a norm without a weight: it goes where its other tensors are
        module = model.get_submodule(host.path)
        near = next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), weight)
        weight = weight.to(near.device)
    for key in host.weight or (host.new_weight,):
        weight = _put(model, key, weight, like=old)
    if host.pad:
        pad_with_(model.get_submodule(host.path), tensors[host.pad].to(weight.device))
    if not host.bias_key:
        return
    bias = tensors[host.bias_key]
    like = get_tensor(model, host.bias_key)
    for key in host.bias or (host.new_bias,):
        bias = _put(model, key, bias, like=like if like is not None else weight)


def _put(model: nn.Module, key: str, tensor: Tensor, like: Tensor | None) -> Tensor:
    """Set one tensor, as the kind of thing that stood there; returns what now stands there."""
    path, _, name = key.rpartition(".")
    module = model.get_submodule(path)
    if like is not None:
        tensor = tensor.to(like.device)
        if tensor.shape == like.shape and tensor.stride() != like.stride():  # a file keeps no memory format
            tensor = torch.empty_like(like, requires_grad=False).copy_(tensor)
    if name in module._buffers:
        module._buffers[name] = tensor
        return tensor
    if not isinstance(tensor, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=like.requires_grad if like is not None else True)
        vars(tensor).update(vars(like) if like is not None and name in module._parameters else {})
    module._parameters[name] = tensor
    module.__dict__.pop(name, None)  # where a removed parametrization left a plain tensor
    return tensor


def _remember(model: nn.Module, plan: Plan) -> Callable[[], None]:
    """Keep what the edits will touch; the function that it returns puts all of it back."""
    paths = {key.rpartition(".")[0] for h in plan.hosts for key in (*h.weight, *h.bias, *h.keys)}
    paths |= {path.rpartition(".")[0] for change in plan.changes for path in change.removes}
    paths |= {host.path for host in plan.hosts if host.bake}
    paths |= {switch.path for switch in plan.switches} | {conv.path for conv in plan.standardized}
    paths |= {path.rpartition(".")[0] for swap in plan.swaps for path in swap.paths}
    kept: list[tuple[nn.Module, type, dict[str, Any], list[tuple[dict[Any, Any], dict[Any, Any]]]]] = []
    for module in {id(m): m for m in map(model.get_submodule, sorted(paths))}.values():
        # The dicts stay the ones that they are: the handle of a hook holds on to its own.
        inner = [(v, v.copy()) for v in vars(module).values() if type(v) in (dict, OrderedDict)]
        kept.append((module, type(module), vars(module).copy(), inner))

    switched = [model.get_submodule(switch.path) for switch in plan.switches]
    trained = [(p, p.requires_grad, p.grad) for module in switched for p in affine_of(module).values()]
    held = [(vars(how), vars(how).copy()) for how in map(frozen, switched) if how is not None]
    written = {key: get_tensor(model, key).detach().clone() for key in (*plan.statistics, *plan.tuned)}  # type: ignore[union-attr]

    def undo() -> None:
        _refill(model, written)
        for module, kind, state, inner in kept:
            with suppress(TypeError):
                module.__class__ = kind
            for now, before in ((vars(module), state), *inner):
                restore(now, before)
        for now, before in held:
            restore(now, before)
        for parameter, grad, gradient in trained:
            parameter.requires_grad_(grad)
            parameter.grad = gradient

    return undo

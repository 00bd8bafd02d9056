"""The only knife: whatever lastingly changes a user's model does it here, all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from bntools.core.affine import ACTIVATIONS
from bntools.core.capture import fingerprint
from bntools.core.compute import get_tensor
from bntools.core.plan import Edit, Part, Plan
from bntools.errors import PlanError

_CLASSES = frozenset(name for name, _ in ACTIVATIONS.values())


def graft_(model: nn.Module, plan: Plan, tensors: Mapping[str, Tensor]) -> Callable[[], None]:
    """Put *tensors* into the hosts and take the BatchNorms out, as *plan* says.

    First everything is checked, then everything is done; on any exception in between, Ctrl-C included, the
    model is as it was. New parameters keep ``requires_grad``, dtype and device of those that they replace, a
    new bias those of its weight. Tensors that were tied stay tied.

    Args:
        model: changed in place.
        plan: made for a model with the same tensors.
        tensors: the new weights and biases by key, as `bntools.core.compute.fold_tensors` makes them.

    Returns:
        a function that undoes the change.

    Raises:
        PlanError: if the plan or the tensors do not fit the model, which is then untouched.
    """
    _check(model, plan, tensors)
    undo = _remember(model, plan)
    try:
        for edit in plan.edits:
            if edit.host.bake:
                _bake(model.get_submodule(edit.host.path), edit.host.bake)
        for edit in plan.edits:
            _write(model, edit, tensors)
        bypass_(model, plan)
    except BaseException:
        undo()
        raise
    return undo


def bypass_(model: nn.Module, plan: Plan) -> None:
    """Take the BatchNorms of a plan out and leave their hosts as they are: a fold that forgets them."""
    for edit in plan.edits:
        rest: nn.Module | None = None
        for path in edit.removes:
            parent, _, name = path.rpartition(".")
            owner = model.get_submodule(parent)
            if rest is None:
                rest = _rest(owner.get_submodule(name), edit.keeps)
            owner._modules[name] = rest


def _rest(module: nn.Module, keeps: tuple[Part, ...]) -> nn.Module:
    """What is left of a BatchNorm module: nothing, or what it does behind its normalisation."""
    if not hasattr(module, "running_mean"):
        return module  # the second site of a module that has gone already
    if not keeps:
        return nn.Identity().train(module.training)
    rest = nn.Sequential()
    for part in keeps:
        child = getattr(nn, part.op)(*part.args) if part.op else module.get_submodule(part.name)
        rest.add_module(part.name, child)
    rest.training = module.training
    return rest


def _write(model: nn.Module, edit: Edit, tensors: Mapping[str, Tensor]) -> None:
    host = edit.host
    old = get_tensor(model, host.weight_key)
    weight = tensors[host.weight_key]
    for key in host.weight or (host.new_weight,):
        weight = _put(model, key, weight, like=old)
    if host.layout == "table":
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
    if name in module._buffers:
        module._buffers[name] = tensor
        return tensor
    if not isinstance(tensor, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=like.requires_grad if like is not None else True)
    module._parameters[name] = tensor
    module.__dict__.pop(name, None)  # where a removed parametrization left a plain tensor
    return tensor


def _bake(module: nn.Module, name: str) -> None:
    """Make a parametrised tensor a plain parameter; its value is written afterwards."""
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm) and hook.name == name:
            remove_weight_norm(module, name)
        elif isinstance(hook, SpectralNorm) and hook.name == name:
            remove_spectral_norm(module, name)
    if not parametrize.is_parametrized(module, name):
        return
    # Not torch's remove_parametrizations: it deletes the property from the class, which copies share.
    lists, kind = module.parametrizations, type(module)
    assert isinstance(lists, nn.ModuleDict)
    held = list(lists[name].parameters())
    rest = nn.ModuleDict({key: lists[key] for key in lists if key != name})
    if rest:
        module._modules["parametrizations"] = rest
        members = {k: v for k, v in vars(kind).items() if k not in (name, "__dict__", "__weakref__")}
        module.__class__ = type(kind.__name__, kind.__bases__, members)
    else:
        del module._modules["parametrizations"]
        module.__class__ = kind.__bases__[0]
    device, grad = held[0].device, any(p.requires_grad for p in held)
    module.register_parameter(name, nn.Parameter(torch.empty(0, device=device), requires_grad=grad))


def _is_parametrised(module: nn.Module, name: str) -> bool:
    hooks = module._forward_pre_hooks.values()
    old_style = any(isinstance(h, WeightNorm | SpectralNorm) and h.name == name for h in hooks)
    return old_style or parametrize.is_parametrized(module, name)


# Checking


def _check(model: nn.Module, plan: Plan, tensors: Mapping[str, Tensor]) -> None:
    if plan.fingerprint != fingerprint(model):
        raise PlanError(
            "plan: it was made for a model with other tensors (names or shapes differ)",
            todo="give a fresh instance of the class that was folded, with the same arguments",
        )
    expected = {k for e in plan.edits for k in _keys(e)}
    if expected != set(tensors):
        differ = ", ".join(sorted(expected ^ set(tensors))[:5])
        raise PlanError(
            f"plan: the tensors that it needs and those given differ: {differ}", todo="fold the model again"
        )
    for edit in plan.edits:
        for problem in _problems(model, edit, tensors):
            raise PlanError(f"plan: {edit.site.name}: {problem}", todo="fold the model again")


def _keys(edit: Edit) -> Iterator[str]:
    yield edit.host.weight_key
    if edit.host.layout != "table":
        yield edit.host.bias_key


def _problems(model: nn.Module, edit: Edit, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """What of an edit cannot be done on this model; a plan from a file may say anything."""
    host = edit.host
    for key in (*host.weight, *host.bias, host.new_weight, host.new_bias):
        if host.bake and key in host.weight:
            continue
        try:
            there = get_tensor(model, key)
        except AttributeError:
            yield f"there is no {key}"
            return
        made = key in (host.new_weight, host.new_bias)
        if key and not made and there is None:
            yield f"{key} is absent"
        if there is not None and key in tensors:
            new = tensors[key]
            if (there.shape, there.dtype) != (new.shape, new.dtype):
                yield f"{key} is {list(there.shape)} {there.dtype}, the new one {list(new.shape)} {new.dtype}"
        if key and there is None and tuple(tensors[key].shape) != (edit.site.channels,):
            yield f"{key} should get shape [{edit.site.channels}], the new one is {list(tensors[key].shape)}"
    if host.bake and not _is_parametrised(model.get_submodule(host.path), host.bake):
        yield f"{host.bake} of {host.path} is not parametrised"
    for path in edit.removes:
        try:
            module = model.get_submodule(path)
        except AttributeError:
            yield f"there is no module {path}"
            return
        if not path or not hasattr(module, "running_mean"):
            yield f"{path or 'the model'} is no BatchNorm"
        for part in edit.keeps:
            if part.op and part.op not in _CLASSES:
                yield f"{part.op} is no activation that a BatchNorm can leave behind"
            if not part.op and part.name not in module._modules:
                yield f"{path} has no child {part.name}"


# Undoing


def _remember(model: nn.Module, plan: Plan) -> Callable[[], None]:
    """Keep what the edits will touch; the function that it returns puts all of it back."""
    paths = {key.rpartition(".")[0] for e in plan.edits for key in (*e.host.weight, *e.host.bias, *_keys(e))}
    paths |= {path.rpartition(".")[0] for e in plan.edits for path in e.removes}
    kept: list[tuple[nn.Module, type, dict[str, Any]]] = []
    for module in {id(m): m for m in map(model.get_submodule, sorted(paths))}.values():
        state = {name: v.copy() if isinstance(v, dict) else v for name, v in module.__dict__.items()}
        kept.append((module, type(module), state))

    def undo() -> None:
        for module, kind, state in kept:
            with suppress(TypeError):
                module.__class__ = kind
            module.__dict__.clear()
            module.__dict__.update(state)

    return undo

"""Tensors that a module computes from others: torch's weight_norm and spectral_norm, old and new."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

from bntools.core.exact import exact_copy
from bntools.core.untouched import untouched


def is_parametrised(module: nn.Module, name: str) -> bool:
    """Whether the tensor of that name is computed."""
    return any(_old_kind(module, name)) or parametrize.is_parametrized(module, name)


def baked(module: nn.Module, name: str) -> Tensor:
    """The tensor that a parametrised module computes with, in float64, without a new estimate of its norm."""
    module = exact_copy(module)
    for hook in _old_kind(module, name):
        if isinstance(hook, SpectralNorm):
            return hook.compute_weight(module, do_power_iteration=False).detach()
        weight: Tensor = hook.compute_weight(module)
        return weight.detach()
    with untouched(module):
        value: Tensor = getattr(module, name)
    return value.detach()


def bake_(module: nn.Module, name: str) -> None:
    """Make a parametrised tensor a plain parameter; its value is written afterwards."""
    for hook in list(_old_kind(module, name)):
        remove = remove_weight_norm if isinstance(hook, WeightNorm) else remove_spectral_norm
        remove(module, name)
    _forget_loading(module, name)
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


def _old_kind(module: nn.Module, name: str) -> Iterator[WeightNorm | SpectralNorm]:
    """The hooks that compute it: so did torch before it had parametrizations, and it still does."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm | SpectralNorm) and hook.name == name:
            yield hook


def _forget_loading(module: nn.Module, name: str) -> None:
    """Drop what torch's removers leave: hooks that look for the parametrised tensor when a state is loaded.

    One of them makes the state dict of the plain module unloadable, the other the module unpicklable.
    """
    for key, wrapper in list(module._load_state_dict_pre_hooks.items()):
        hook = getattr(wrapper, "hook", wrapper)
        spectral = isinstance(hook, SpectralNormLoadStateDictPreHook) and hook.fn.name == name
        if spectral or getattr(hook, "__qualname__", "").startswith("weight_norm.<locals>"):
            del module._load_state_dict_pre_hooks[key]

"""Another norm in the place of a BatchNorm: which, with what numbers, and where there can be none."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bntools.core.algebra import group_affine
from bntools.core.capture import capture
from bntools.core.changes import MIXING, Norm, Part, Standardization, Swap
from bntools.core.example import Example
from bntools.core.names import own_tensor
from bntools.core.reasons import Reason
from bntools.core.sites import find_sites
from bntools.errors import CaptureError
from bntools.norms.standardized import standardization_of
from bntools.norms.switchable import SWITCHABLE, dominant

_BATCH = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_SPACE: Mapping[type[nn.Module], int] = {kind: space for space, kind in _BATCH.items()}
_INSTANCE = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_NAMES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_MOST, _FEWEST = 32, 16
"""How many groups there are at most, and how many channels are in one at least, if nobody says otherwise."""


@dataclass(frozen=True, slots=True)
class Left:
    """Why a module is left as it is."""

    reason: Reason
    detail: str


def groups_for(channels: int) -> int:
    """The largest number of groups, 32 at most, that divides the channels and leaves 16 of them in each.

    Example:
        >>> [groups_for(channels) for channels in (8, 24, 64, 96, 512, 1280)]
        [1, 1, 4, 6, 32, 32]
    """
    fits = (g for g in range(_MOST, 1, -1) if channels % g == 0 and channels // g >= _FEWEST)
    return next(fits, 1)


def swap_of(
    module: nn.Module,
    paths: tuple[str, ...],
    norm: Norm,
    groups: int | None = None,
    shape: tuple[int, ...] | None = None,
    *,
    data: bool = False,
) -> Swap | Left:
    """What takes the place of a module, or why nothing does.

    Args:
        module: with running statistics; for a BatchNorm also a GroupNorm.
        paths: all of its.
        norm: what is asked for.
        groups: of a GroupNorm; None for `groups_for` its channels.
        shape: of what comes to it, if that is known.
        data: whether there is some to find statistics in.
    """
    if type(module) is nn.GroupNorm:
        return _from_group(module, paths, norm, shape if data else None)
    kind = type(module).__name__
    mean, eps = own_tensor(module, "running_mean"), getattr(module, "eps", None)
    if mean is None:
        return Left(Reason.NO_STATISTICS, "it has no running statistics")
    channels = len(mean)
    if not isinstance(eps, float):
        return Left(Reason.UNRECOGNISED, f"{kind} does not say its ε")
    keeps: tuple[Part, ...] = ()
    space = _SPACE.get(type(module), 0)
    if (norm is Norm.BATCH and space) or (norm is Norm.SYNC and type(module) is nn.SyncBatchNorm):
        return Left(Reason.ALREADY, f"it is a {kind}")
    if not space:
        found = _alone(module, channels)
        if isinstance(found, Left):
            return found
        space, keeps = found
    if norm.tracks:
        momentum = getattr(module, "momentum", 0.1)
        weight, bias = (own_tensor(module, name) is not None for name in ("weight", "bias"))
        return Swap(paths, norm, channels, eps, momentum, 1, space, weight, bias, keeps)
    count = channels if norm is Norm.INSTANCE else groups or groups_for(channels)
    if channels % count:
        return Left(Reason.GROUPS, f"{count} groups do not divide {channels} channels")
    single = channels // count * math.prod(shape[2:]) == 1 if shape else space == 1 and count == channels
    if single:
        of = f"({', '.join(map(str, ('N', *shape[1:])))})" if shape else "(N, C)"
        return Left(Reason.ONE_VALUE, f"of an input {of} each group would hold one value a sample")
    return Swap(paths, norm, channels, eps, None, count, space, keeps=keeps)


def _from_group(
    module: nn.GroupNorm, paths: tuple[str, ...], norm: Norm, shape: tuple[int, ...] | None
) -> Swap | Left:
    """A BatchNorm for a GroupNorm: what its statistics are, only data can tell."""
    if norm is not Norm.BATCH:
        return Left(Reason.ALREADY, "it is a GroupNorm")
    if shape is None:
        return Left(Reason.NO_DATA, "it knows nothing of other samples than the one that it normalises")
    space = max(len(shape) - 2, 1)
    if space not in _BATCH:
        return Left(Reason.UNRECOGNISED, f"torch has no BatchNorm for inputs of {len(shape)} axes")
    return Swap(paths, norm, module.num_channels, module.eps, momentum=0.1, space=space)


def _alone(module: nn.Module, channels: int) -> tuple[int, tuple[Part, ...]] | Left:
    """How many axes the inputs of a module of another class have, and what it does behind its BatchNorm."""
    kind, why = type(module).__name__, "it does not run by itself"
    like = own_tensor(module, "running_mean")
    assert like is not None
    mode = module.training
    module.training = False
    alone = nn.Sequential(OrderedDict(it=module))  # a child, in whose place something can be put
    try:
        for space in (2, 1, 3):
            x = torch.randn(4, channels, *(3,) * space).to(like)
            try:
                sites, _ = find_sites(capture(alone, Example((x,))))
            except CaptureError:
                continue
            if len(sites) != 1 or sites[0].refusal is not None:
                why = (
                    sites[0].refusal.detail if len(sites) == 1 and sites[0].refusal else "it is no BatchNorm"
                )
                break
            return space, sites[0].keeps
    finally:
        module.training = mode
    return Left(Reason.SUBCLASS, f"{kind}: {why}")


def tensors_of_swap(module: nn.Module, swap: Swap, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The tensors of the new norm by key, in the types of the old ones; in *dtype* where there are none."""
    own = {name: tensor.detach() for name in _NAMES if (tensor := own_tensor(module, name)) is not None}
    if "running_mean" not in own:  # whatever it starts from: it is fitted to data
        ones = own.get("weight", torch.ones(swap.channels, dtype=dtype)).new_ones(swap.channels)
        own = {"weight": ones, "running_var": ones, **own}
        own |= {name: own.get(name, torch.zeros_like(ones)) for name in ("bias", "running_mean")}
    if swap.norm.tracks:
        own |= dict.fromkeys(MIXING, dominant().to(own["running_mean"]))
        count = own.get("num_batches_tracked", torch.tensor(0))
        return {key: own.get(key.rpartition(".")[2], count).clone() for key in swap.keys}
    mean, var = own["running_mean"], own["running_var"]
    gamma, beta = (own[name].double() if name in own else None for name in ("weight", "bias"))
    made = group_affine(gamma, beta, mean.double(), var.double(), swap.eps, swap.groups)
    like = own.get("weight", mean)
    return {key: tensor.to(like) for key, tensor in zip(swap.keys, made, strict=True)}


def tensors_of_standardization(conv: nn.Module, how: Standardization) -> dict[str, Tensor]:
    """What a standardised convolution has besides, by key."""
    weight = own_tensor(conv, "weight")
    assert weight is not None
    return {f"{how.path}.{name}": kept for name, kept in standardization_of(weight, how.eps).items()}


def norm_of(swap: Swap, old: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The new norm, in the mode of the old one and where that is.

    Args:
        swap: what to make.
        old: the module whose place it takes; one with running statistics has the very tensors of it.
        tensors: by their names in it.
    """
    statistics = own_tensor(old, "running_mean")
    like = next(t for t in (statistics, own_tensor(old, "weight"), *tensors.values()) if t is not None)
    norm = _empty(swap).to(like.device)
    for name, tensor in tensors.items():
        was = own_tensor(old, name)
        stays = statistics is not None and swap.norm.tracks
        new = was if was is not None and stays else tensor.to(like.device)
        if name in norm._buffers:
            norm._buffers[name] = new
            continue
        # What was no parameter, or none that is trained, becomes none that is trained.
        trained = name in MIXING or (isinstance(was, nn.Parameter) and was.requires_grad)
        norm._parameters[name] = new if isinstance(new, nn.Parameter) else nn.Parameter(new, trained)
    return norm.train(old.training)


def _empty(swap: Swap) -> nn.Module:
    affine = {"affine": swap.weight}
    if swap.norm is Norm.GROUP:
        return nn.GroupNorm(swap.groups, swap.channels, swap.eps)
    if swap.norm is Norm.INSTANCE:
        return _INSTANCE[swap.space](swap.channels, swap.eps, affine=True)
    if swap.norm is Norm.SWITCHABLE:
        return SWITCHABLE[swap.space](swap.channels, swap.eps, swap.momentum, swap.weight, bias=swap.bias)
    if swap.norm is Norm.SYNC:
        norm: nn.Module = nn.SyncBatchNorm(swap.channels, swap.eps, swap.momentum, **affine)
    else:
        norm = _BATCH[swap.space](swap.channels, swap.eps, swap.momentum, **affine)
    if not swap.bias:
        norm.register_parameter("bias", None)
    assert isinstance(norm, _BatchNorm)
    return norm

"""Plan in, new tensors out: the equations in float64, rounded once at the end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bntools.core.algebra import fold_bias, fold_weight, shift_of
from bntools.core.host import Host
from bntools.core.numbers import Take
from bntools.core.parametrised import baked
from bntools.core.plan import Plan, Reduction
from bntools.errors import PlanError


def fold_tensors(model: nn.Module, plan: Plan) -> tuple[dict[str, Tensor], frozenset[str]]:
    """The new weights and biases that a plan leads to.

    Each host takes in a map behind it, ``new = s·old + t``, and one in front of it, ``old = r·new + v``:
    ``W' = s·W·r``, ``b' = s·(b + W·v) + t``. All arithmetic is in float64, on the model's device where that
    has float64; the results are rounded once, to the dtype of the tensor that they replace.

    Args:
        model: the model that the plan was made for; it is only read.
        plan: from `bntools.core.find.find_folds`.

    Returns:
        the tensors by key, and the names of sites with a host that would overflow its dtype.

    Raises:
        PlanError: if the plan comes from a file, which holds the tensors and not the numbers behind them.
    """
    if plan.maps is None:
        raise PlanError(
            "plan: it comes from a file and has no numbers", todo="replay it, or fold the model again"
        )
    tensors: dict[str, Tensor] = {}
    with torch.no_grad():
        for host in plan.hosts:
            take = plan.maps.takes[host.call]
            if host.weight_key not in tensors or (host.bias_key and host.bias_key not in tensors):
                made = _folded(model, host, take)
                tensors.update({key: t for key, t in made.items() if key not in tensors})
        for reduction in plan.reductions:
            tensors |= _reduced(model, reduction, plan.maps.reduced[reduction.site.name])
        bad = _overflowing(model, tensors, {key for host in plan.hosts for key in (*host.weight, *host.bias)})
    sites = {
        site for host in plan.hosts if not bad.isdisjoint(host.keys) for site in (*host.rows, *host.columns)
    }
    sites |= {each.site.name for each in plan.reductions if not bad.isdisjoint(each.keys)}
    return tensors, frozenset(sites)


def _reduced(model: nn.Module, reduction: Reduction, numbers: tuple[Any, Any]) -> dict[str, Tensor]:
    """The scale and the shift that a BatchNorm becomes, in the dtype of its statistics."""
    like = get_tensor(model, f"{reduction.removes[0]}.running_mean")
    assert like is not None
    scale, shift = (torch.from_numpy(each).to(like.device, like.dtype) for each in numbers)
    weight = {reduction.weight_key: scale} if reduction.weight_key else {}
    return {**weight, reduction.bias_key: shift}


def _folded(model: nn.Module, host: Host, take: Take) -> dict[str, Tensor]:
    """The new weight and bias of one host."""
    like, weight = _weight_like(model, host), _weight(model, host, len(take.s))
    old = get_tensor(model, host.bias_key)
    device = _exact_device(like)

    def numbers(values: Any) -> Tensor | None:
        return None if values is None else torch.from_numpy(values).to(device)

    s, t, r, v, slope, mean = (numbers(x) for x in (take.s, take.t, take.r, take.v, take.slope, take.mean))
    assert s is not None
    assert t is not None
    weight = weight.to(device)
    folded = fold_weight(weight, s, t, host.layout, host.groups, r)
    tensors = {host.weight_key: folded.to(like.device, like.dtype)}
    if host.bias_key:
        added = None
        if slope is not None and mean is not None and r is not None and v is not None:
            added = slope * (v + (r - 1) * mean)
        elif v is not None:
            added = shift_of(weight.double(), v, host.layout, host.groups)
        bias = fold_bias(None if old is None else old.detach().to(device).double(), s, t, added)
        known = old if old is not None else like
        tensors[host.bias_key] = bias.to(known.device, known.dtype)
    if host.pad and r is not None and v is not None:
        tensors[host.pad] = (-v / r).to(like.device, like.dtype)
    return tensors


def _overflowing(model: nn.Module, tensors: Mapping[str, Tensor], before: Collection[str]) -> set[str]:
    """The keys of tensors that are not finite although the old ones were, with one look at each device.

    Args:
        model: with the old ones.
        tensors: the new ones.
        before: the keys of those that it has.
    """
    by_device: dict[torch.device, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        if tensor.numel():
            by_device[tensor.device][key] = torch.stack(tensor.aminmax()).isfinite().all()
    bad = set()
    for finite in by_device.values():
        for key, fine in zip(finite, torch.stack(list(finite.values())).tolist(), strict=True):
            if not fine:
                old = get_tensor(model, key) if key in before else None
                if old is None or bool(old.isfinite().all()):
                    bad.add(key)
    return bad


def _weight_like(model: nn.Module, host: Host) -> Tensor:
    """The tensor whose dtype and device the new weight gets."""
    if host.bake:
        return next(p for p in model.get_submodule(host.path).parameters() if p.is_floating_point())
    like = get_tensor(model, host.weight_key)
    if like is None:  # a norm without a weight gets one like its bias, or like its statistics
        module = model.get_submodule(host.path)
        like = next(
            t
            for t in (get_tensor(model, host.bias_key), *module.buffers(), *model.parameters())
            if t is not None and t.is_floating_point()
        )
    return like


def _weight(model: nn.Module, host: Host, channels: int) -> Tensor:
    """The weight before the fold: ones where a norm has none, in float64 where it must be computed first."""
    if host.bake:
        return baked(model.get_submodule(host.path), host.bake)
    weight = get_tensor(model, host.weight_key)
    if weight is None:
        like = _weight_like(model, host)
        return torch.ones(channels, dtype=like.dtype, device=like.device)
    return weight.detach()


def get_tensor(model: nn.Module, key: str) -> Tensor | None:
    """The parameter or buffer of that key, None if it is absent or the key is empty."""
    if not key:
        return None
    path, _, name = key.rpartition(".")
    tensor: Tensor | None = getattr(model.get_submodule(path), name)
    return tensor


def _exact_device(tensor: Tensor) -> torch.device:
    """Where to compute in float64: Apple's GPU has none."""
    return torch.device("cpu") if tensor.device.type == "mps" else tensor.device

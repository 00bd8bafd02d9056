"""Plan in, new tensors out: the equations in float64, rounded once at the end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from bntools.core.algebra import affine_of, compose, fold_bias, fold_weight
from bntools.core.exact import exact_copy
from bntools.core.plan import Edit, Plan
from bntools.core.untouched import untouched

Map = tuple[Tensor, Tensor]


def fold_tensors(model: nn.Module, plan: Plan) -> tuple[dict[str, Tensor], frozenset[str]]:
    """The new weights and biases that a plan's edits lead to.

    Each host takes in the maps of its sites, composed in order of execution: ``W' = s·W``, ``b' = s·b + t``.
    All arithmetic is in float64, on the model's device where that has float64; the results are rounded once,
    to the dtype of the tensor that they replace.

    Args:
        model: the model that the plan was made for; it is only read.
        plan: from `bntools.core.find.find_folds`.

    Returns:
        the tensors by key, and the names of sites whose host would overflow its dtype.
    """
    tensors: dict[str, Tensor] = {}
    with torch.no_grad():
        single = {edit.site.name: _map(model, edit) for edit in plan.edits}
        for key, sites in _sites_by(plan.edits, lambda e: e.host.weight_key).items():
            host, like = sites[0].host, _weight_like(model, sites[0])
            scale, shift = _composed([single[e.site.name] for e in sites])
            weight = _weight(model, sites[0]).to(scale.device)
            folded = fold_weight(weight, scale, shift, host.layout, host.groups)
            tensors[key] = folded.to(like.device, like.dtype)
        with_bias = [e for e in plan.edits if e.host.layout != "table"]
        for key, sites in _sites_by(with_bias, lambda e: e.host.bias_key).items():
            old = get_tensor(model, key)
            like = old if old is not None else tensors[sites[0].host.weight_key]
            scale, shift = _composed([single[e.site.name] for e in sites])
            bias = fold_bias(old if old is None else _exact(old).to(scale.device), scale, shift)
            tensors[key] = bias.to(like.device, like.dtype)
        bad = _overflowing(model, tensors)
    return tensors, frozenset(e.site.name for e in plan.edits if {e.host.weight_key, e.host.bias_key} & bad)


def _composed(maps: Sequence[Map]) -> Map:
    """One map for several in a row, on the device of the first: a model may be spread over several."""
    device = maps[0][0].device
    return reduce(compose, [(scale.to(device), shift.to(device)) for scale, shift in maps])


def _overflowing(model: nn.Module, tensors: Mapping[str, Tensor]) -> set[str]:
    """The keys of tensors that are not finite although the old ones were, with one look at each device."""
    by_device: dict[torch.device, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        if tensor.numel():
            by_device[tensor.device][key] = torch.stack(tensor.aminmax()).isfinite().all()
    bad = set()
    for finite in by_device.values():
        for key, fine in zip(finite, torch.stack(list(finite.values())).tolist(), strict=True):
            if not fine:
                old = get_tensor(model, key)
                if old is None or bool(old.isfinite().all()):
                    bad.add(key)
    return bad


def _weight_like(model: nn.Module, edit: Edit) -> Tensor:
    """The tensor whose dtype and device the new weight gets."""
    host = edit.host
    if host.bake:
        return next(p for p in model.get_submodule(host.path).parameters() if p.is_floating_point())
    like = get_tensor(model, host.weight_key)
    if like is None:
        like = get_tensor(model, edit.reads[3])
    assert like is not None
    return like


def _weight(model: nn.Module, edit: Edit) -> Tensor:
    """The weight before the fold: ones where a norm has none, in float64 where it must be computed first."""
    host = edit.host
    if host.bake:
        return _baked(model.get_submodule(host.path), host.bake)
    weight = get_tensor(model, host.weight_key)
    return torch.ones_like(_weight_like(model, edit)) if weight is None else weight.detach()


def _baked(module: nn.Module, name: str) -> Tensor:
    """The tensor that a parametrised module computes with, in float64, without a new estimate of its norm."""
    module = exact_copy(module)
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == name:
            weight: Tensor = hook.compute_weight(module)
            return weight.detach()
        if isinstance(hook, SpectralNorm) and hook.name == name:
            return hook.compute_weight(module, do_power_iteration=False).detach()
    with untouched(module):
        value: Tensor = getattr(module, name)
    return value.detach()


def _sites_by(edits: Sequence[Edit], key: Callable[[Edit], str]) -> dict[str, list[Edit]]:
    """For each tensor to change, the sites behind one call of its host, in order.

    Every call of a host takes in the same maps, or the plan would have refused them: one call counts.
    """
    found: Mapping[str, list[Edit]] = defaultdict(list)
    for edit in edits:
        sites = found[key(edit)]
        if not sites or sites[0].host.call == edit.host.call:
            sites.append(edit)
    return dict(found)


def _map(model: nn.Module, edit: Edit) -> Map:
    """The scale and shift of a site, in float64."""
    tensors = (get_tensor(model, key) for key in edit.reads)
    gamma, beta, mean, var = (None if t is None else _exact(t) for t in tensors)
    assert mean is not None
    assert var is not None
    assert edit.site.eps is not None
    return affine_of(gamma, beta, mean, var, edit.site.eps)


def get_tensor(model: nn.Module, key: str) -> Tensor | None:
    """The parameter or buffer of that key, None if it is absent or the key is empty."""
    if not key:
        return None
    path, _, name = key.rpartition(".")
    tensor: Tensor | None = getattr(model.get_submodule(path), name)
    return tensor


def _exact(tensor: Tensor) -> Tensor:
    # Apple's GPU has no float64.
    device = "cpu" if tensor.device.type == "mps" else tensor.device
    return tensor.detach().to(device, torch.float64)

"""Plan in, new tensors out: the equations in float64, rounded once at the end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from bntools.core.algebra import affine_of, fold_bias, fold_weight
from bntools.core.exact import exact_copy
from bntools.core.plan import Edit, Plan
from bntools.core.untouched import untouched

Map = tuple[Tensor, Tensor]


def fold_tensors(model: nn.Module, plan: Plan) -> tuple[dict[str, Tensor], frozenset[str]]:
    """The new weights and biases that a plan's edits lead to.

    Each host takes in the maps of its sites in order of execution: ``W ← s·W``, ``b ← s·b + t``. All
    arithmetic is in float64, on the model's device where that has float64; the results are rounded once, to
    the dtype of the tensor that they replace.

    Args:
        model: the model that the plan was made for; it is only read.
        plan: from `bntools.core.find.find_folds`.

    Returns:
        the tensors by key, and the names of sites whose host would overflow its dtype.
    """
    tensors: dict[str, Tensor] = {}
    finite: dict[str, Tensor] = {}
    with untouched(model):  # looking at a spectral norm in training mode moves its estimate
        for sites in _sites_by(plan.edits, lambda e: e.host.weight_key).values():
            host, maps = sites[0].host, [_map(model, e) for e in sites]
            old = get_tensor(model, host.weight_key)
            like = old if old is not None else get_tensor(model, sites[0].reads[3])
            assert like is not None
            new = _exact(old) if old is not None else torch.ones_like(maps[0][0])
            if host.bake:
                new = _baked(model.get_submodule(host.path), host.bake).to(new.device)
            for scale, shift in maps:
                new = fold_weight(new, scale, shift, host.layout, host.groups)
            _round(tensors, finite, host.weight_key, new, like)
        with_bias = [e for e in plan.edits if e.host.layout != "table"]
        for sites in _sites_by(with_bias, lambda e: e.host.bias_key).values():
            host, maps = sites[0].host, [_map(model, e) for e in sites]
            old = get_tensor(model, host.bias_key)
            like = old if old is not None else tensors[host.weight_key]
            bias = _exact(old) if old is not None else None
            for scale, shift in maps:
                bias = fold_bias(bias, scale, shift)
            assert bias is not None
            _round(tensors, finite, host.bias_key, bias, like)
    keys = list(finite)
    good = torch.stack([finite[k].cpu() for k in keys]).tolist() if keys else []  # one look at the device
    bad = {key for key, fine in zip(keys, good, strict=True) if not fine}
    return tensors, frozenset(e.site.name for e in plan.edits if {e.host.weight_key, e.host.bias_key} & bad)


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
    gamma, beta, mean, var = (
        None if t is None else _exact(t) for t in (get_tensor(model, k) for k in edit.reads)
    )
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


def _round(
    tensors: dict[str, Tensor], finite: dict[str, Tensor], key: str, new: Tensor, like: Tensor
) -> None:
    """Round to the dtype of *like*, keep its memory format, and note whether that overflowed."""
    rounded = (
        torch.empty_like(like) if like.shape == new.shape else new.new_empty(new.shape, dtype=like.dtype)
    )
    rounded = rounded.to(like.device).copy_(new)
    tensors[key] = rounded
    finite[key] = rounded.isfinite().all() | ~new.isfinite().all()

"""What there is to know of each module of a model without running it, and of what hangs on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import (
    SpectralNorm,
    SpectralNormLoadStateDictPreHook,
    SpectralNormStateDictHook,
)
from torch.nn.utils.weight_norm import WeightNorm

from bntools.core.absent import accepted, is_torchs
from bntools.core.calls import Call, ModuleCall, ModuleFacts
from bntools.core.keys import key_of
from bntools.core.names import modules_of, own_tensor
from bntools.core.operator import Operator

_HOOKS = {
    "_forward_pre_hooks": "a forward pre-hook",
    "_forward_hooks": "a forward hook",
    "_backward_hooks": "a backward hook",
    "_backward_pre_hooks": "a backward pre-hook",
    "_state_dict_hooks": "a state-dict hook",
    "_load_state_dict_pre_hooks": "a load-state-dict hook",
}
_OF_TORCH = (WeightNorm, SpectralNorm, SpectralNormLoadStateDictPreHook, SpectralNormStateDictHook)


def facts_of(
    model: nn.Module, runs: Sequence[ModuleCall] = (), calls: Sequence[Call] = ()
) -> dict[str, ModuleFacts]:
    """The facts of each module, by its first path.

    Args:
        model: whose modules.
        runs, calls: of a capture, by which it is found out what a forward would do with an absent bias.
    """
    paths: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    for path, module in modules_of(model):
        paths.setdefault(id(module), []).append(path)
        modules[id(module)] = module
    by_path: dict[str, list[ModuleCall]] = {}
    for run in runs:
        by_path.setdefault(run.path, []).append(run)
    batches = _batches(list(modules.values()))
    return {
        paths[i][0]: _facts(
            module, tuple(paths[i]), batches.get(i), accepted(module, by_path.get(paths[i][0], ()), calls)
        )
        for i, module in modules.items()
    }


def hooks_see(module: nn.Module) -> frozenset[str]:
    """The kinds of values that hooks on a module see: any of ``inputs`` and ``outputs``."""
    seen = set()
    if any(_registered(module, h) for h in ("_forward_pre_hooks", "_backward_pre_hooks")):
        seen.add("inputs")
    if any(_registered(module, h) for h in ("_forward_hooks", "_backward_hooks")):
        seen.update(("inputs", "outputs"))
    return frozenset(seen)


def unsound_tensors(model: nn.Module) -> dict[str, str]:
    """Tensors beside running statistics that no number can come from: by key, what is wrong."""
    found: list[tuple[str, str, Tensor]] = []
    for path, module in modules_of(model):
        var = own_tensor(module, "running_var")
        if var is None:
            continue
        # The logarithm is finite where a normalisation is possible: above zero.
        above = var.detach() + (_number(module, "eps") or 0.0)
        found.append((key_of(path, "running_var"), "is not positive", above.log()))
        for name in ("running_mean", "running_var", "weight", "bias"):
            tensor = own_tensor(module, name)
            if tensor is not None and tensor.is_floating_point():
                found.append((key_of(path, name), "is not finite", tensor.detach()))
    if _all_finite([tensor for _, _, tensor in found]):
        return {}
    return {key: why for key, why, tensor in found if not _all_finite([tensor])}


def _facts(
    module: nn.Module, paths: tuple[str, ...], batches: int | None, accepts: frozenset[str]
) -> ModuleFacts:
    mean = own_tensor(module, "running_mean")
    statistics = mean is not None and own_tensor(module, "running_var") is not None
    batchnorm = isinstance(module, _BatchNorm)
    normalises = statistics or batchnorm or isinstance(module, nn.GroupNorm)
    return ModuleFacts(
        paths=paths,
        kind=module.kind if isinstance(module, Operator) else type(module).__name__,
        compiled=isinstance(module, torch.jit.ScriptModule),
        torchs=is_torchs(module),
        hooks=tuple(words for name, words in _HOOKS.items() if _registered(module, name)),
        parametrised=frozenset(_parametrised(module)),
        accepts=accepts,
        statistics=statistics,
        batchnorm=batchnorm,
        channels=mean.numel() if mean is not None else int(_channels(module) or 0),
        eps=_number(module, "eps") if normalises else None,
        momentum=_number(module, "momentum") if normalises else None,
        batches=batches,
    )


def _channels(module: nn.Module) -> float | None:
    return _number(module, "num_features") or _number(module, "num_channels")


def _number(module: nn.Module, name: str) -> float | None:
    try:
        value = getattr(module, name, None)
    except Exception:  # a property of somebody's
        return None
    return float(value) if isinstance(value, int | float) else None


def _batches(modules: Sequence[nn.Module]) -> dict[int, int]:
    """``num_batches_tracked`` by the id of its module, with one look at each device."""
    by_device: dict[torch.device, list[tuple[int, Tensor]]] = {}
    for module in modules:
        count = own_tensor(module, "num_batches_tracked")
        if count is not None and count.numel() == 1 and not count.is_floating_point():
            by_device.setdefault(count.device, []).append((id(module), count.detach().reshape(()).long()))
    return {
        key: int(number)
        for counts in by_device.values()
        for (key, _), number in zip(counts, torch.stack([c for _, c in counts]).tolist(), strict=True)
    }


def _registered(module: nn.Module, name: str) -> list[Any]:
    """The hooks of one kind, without those by which torch computes a normalised weight."""
    hooks = getattr(module, name, None) or {}
    return [h for h in hooks.values() if not isinstance(getattr(h, "hook", h), _OF_TORCH)]


def _parametrised(module: nn.Module) -> Iterator[str]:
    if parametrize.is_parametrized(module):
        yield from module.parametrizations  # type: ignore[misc]
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm | SpectralNorm):
            yield hook.name


def _all_finite(tensors: list[Tensor]) -> bool:
    """Whether all are, with one look at each device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        wide = tensor if tensor.itemsize > 1 else tensor.float()  # float8 has no arithmetic
        by_device.setdefault(tensor.device, []).append(wide.flatten())
    return all(bool(torch.cat(parts).isfinite().all()) for parts in by_device.values())

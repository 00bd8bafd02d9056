"""How much each SwitchableNorm normalises by the sample, by the layer and by the batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from bntools.core.names import modules_of
from bntools.norms.switchable import SwitchableNorm1d, SwitchableNorm2d, SwitchableNorm3d

_KINDS = (SwitchableNorm1d, SwitchableNorm2d, SwitchableNorm3d)
_LOGITS = ("mean_weight", "var_weight")


@dataclass(frozen=True, slots=True)
class Shares:
    """How much each kind of statistics counts; the three add up to 1."""

    instance: float
    layer: float
    batch: float


@dataclass(frozen=True, slots=True)
class Mixture:
    """What one SwitchableNorm has learned.

    Args:
        layer: the path of the module.
        mean, var: the weights of each kind in the mean and in the variance that it normalises by.
    """

    layer: str
    mean: Shares
    var: Shares


def mixtures_of(model: nn.Module) -> tuple[Mixture, ...]:
    """Of every SwitchableNorm of a model, in the order of its modules.

    Example:
        >>> round(mixtures_of(nn.Sequential(SwitchableNorm1d(4)))[0].mean.layer, 3)
        0.333
    """
    seen: dict[int, Mixture] = {}
    for path, module in modules_of(model):
        if isinstance(module, _KINDS) and id(module) not in seen:
            weights = module.weights()
            seen[id(module)] = Mixture(path, Shares(**weights["mean"]), Shares(**weights["var"]))
    return tuple(seen.values())


def mixtures_in(tensors: Mapping[str, Tensor]) -> tuple[Mixture, ...]:
    """Of every one in a bare state dict: running statistics that stand beside the weights of three kinds."""
    found = []
    for key in tensors:
        stem = key.removesuffix(_LOGITS[0])
        both = [tensors.get(stem + name) for name in _LOGITS]
        fits = key.endswith(_LOGITS[0]) and f"{stem}running_var" in tensors
        if fits and all(each is not None and each.shape == (3,) for each in both):
            mean, var = (
                Shares(*each.detach().float().softmax(0).tolist()) for each in both if each is not None
            )
            found.append(Mixture(stem.rstrip("."), mean, var))
    return tuple(found)

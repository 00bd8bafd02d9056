"""How much each SwitchableNorm normalises by the sample, by the layer and by the batch. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from bntools.core.arrays import StateTensor

if TYPE_CHECKING:
    from torch import nn

_LOGITS = ("mean_weight", "var_weight")


@dataclass(frozen=True, slots=True)
class Shares:
    """How much each kind of statistics counts; the three add up to 1."""

    instance: float
    layer: float
    batch: float


KINDS = tuple(field.name for field in fields(Shares))


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

    @property
    def shares(self) -> tuple[float, ...]:
        """Those in the mean, then those in the variance, each in the order of `KINDS`."""
        return *astuple(self.mean), *astuple(self.var)


def mixtures_of(model: nn.Module) -> tuple[Mixture, ...]:
    """Of every SwitchableNorm of a model, in the order of its modules.

    Example:
        >>> from torch import nn
        >>> from bntools.norms import SwitchableNorm1d
        >>> round(mixtures_of(nn.Sequential(SwitchableNorm1d(4)))[0].mean.layer, 3)
        0.333
    """
    from bntools.core.names import modules_of  # whoever has a model has torch
    from bntools.norms.switchable import SwitchableNorm1d, SwitchableNorm2d, SwitchableNorm3d

    kinds = (SwitchableNorm1d, SwitchableNorm2d, SwitchableNorm3d)
    seen: dict[int, Mixture] = {}
    for path, module in modules_of(model):
        if isinstance(module, kinds) and id(module) not in seen:
            weights = module.weights()
            seen[id(module)] = Mixture(path, Shares(**weights["mean"]), Shares(**weights["var"]))
    return tuple(seen.values())


def mixtures_in(tensors: Mapping[str, StateTensor]) -> tuple[Mixture, ...]:
    """Of every one in a bare state dict: running statistics that stand beside the weights of three kinds."""
    found = []
    for key in tensors:
        stem = key.removesuffix(_LOGITS[0])
        if not key.endswith(_LOGITS[0]) or f"{stem}running_var" not in tensors:
            continue
        both = [tensors.get(stem + name) for name in _LOGITS]
        shares = [_softmax(e.values) for e in both if e and e.shape == (3,) and e.values is not None]
        if len(shares) == len(_LOGITS):
            found.append(Mixture(stem.rstrip("."), *shares))
    return tuple(found)


def _softmax(logits: np.ndarray) -> Shares:
    with np.errstate(all="ignore"):  # what is NaN or infinite gives NaN
        powers = np.exp(logits - logits.max())
        return Shares(*(powers / powers.sum()).tolist())

"""What the rules know of one layer: its numbers, in float64, and its settings. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bntools.core.arrays import StateTensor

if TYPE_CHECKING:
    from torch import nn

NAMES = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True, slots=True, eq=False)
class NormLayer:
    """A layer with running statistics, or a BatchNorm without.

    Args:
        path: of its module, the first; that of its tensors where there is no module.
        kind: its class.
        gamma, beta, mean, var: float64, shape (C,); None where it has none.
        dtype: in which its statistics are stored.
        eps, momentum: as on a BatchNorm; None where only tensors are known.
        batches: `num_batches_tracked`, None where it is not counted.
        module: None where only tensors are known.
        configured: whether it has torch's settings, ``eps``, ``momentum`` and ``track_running_stats``.
        batchnorm: whether it is one of torch's BatchNorms, or derived from one.
        sync: whether it is a SyncBatchNorm.
        held: whether its statistics are frozen, so that it goes by them in training too.
        divergence: of each channel from the statistics of data, as `bntools.findings.checkup` has it.
    """

    path: str
    kind: str
    gamma: np.ndarray | None
    beta: np.ndarray | None
    mean: np.ndarray | None
    var: np.ndarray | None
    dtype: str = "float32"
    eps: float | None = None
    momentum: float | None = None
    batches: int | None = None
    module: nn.Module | None = None
    configured: bool = False
    batchnorm: bool = False
    sync: bool = False
    held: bool = False
    divergence: np.ndarray | None = None

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """Those that it has, by the name of the parameter or buffer."""
        both = zip(NAMES, (self.gamma, self.beta, self.mean, self.var), strict=True)
        return {name: tensor for name, tensor in both if tensor is not None}

    @property
    def scale(self) -> np.ndarray | None:
        """``γ/√(σ²+ε)``, shape (C,); None if one of them is unknown, or no number."""
        if self.var is None or self.eps is None or not bool((self.var + self.eps > 0).all()):
            return None
        scale = (1.0 if self.gamma is None else self.gamma) / np.sqrt(self.var + self.eps)
        return scale if bool(np.isfinite(scale).all()) else None

    @property
    def shift(self) -> np.ndarray | None:
        """``β − μ·γ/√(σ²+ε)``, shape (C,); None as for the scale."""
        if self.scale is None or self.mean is None:
            return None
        shift = (0.0 if self.beta is None else self.beta) - self.mean * self.scale
        return shift if bool(np.isfinite(shift).all()) else None


Four = tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None, np.ndarray | None]
"""γ, β, μ and σ²."""


def numbers_of(own: Mapping[str, StateTensor | None]) -> tuple[Four, str]:
    """The γ, β, μ and σ² among tensors, each of shape (C,), and the type of the statistics.

    A module may hold statistics for its outputs, and a weight that is no γ.

    Args:
        own: by the names of the parameters and buffers, None for one that is not there.
    """
    var = own["running_var"]
    channels = var.values.size if var is not None and var.values is not None else None

    def fitting(name: str) -> np.ndarray | None:
        each = own[name]
        values = each.values if each is not None else None
        return values if values is not None and values.size and channels in (None, values.size) else None

    four = fitting("weight"), fitting("bias"), fitting("running_mean"), fitting("running_var")
    return four, var.dtype if var is not None else ""


def median(values: np.ndarray) -> float:
    """Of an even count the lower of the two in the middle, as torch has it: it is a number of the layer.

    Example:
        >>> median(np.array([4.0, 1.0, 2.0, 3.0]))
        2.0
    """
    return float(np.sort(values)[(values.size - 1) // 2])

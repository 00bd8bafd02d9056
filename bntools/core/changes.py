"""What a plan says of modules that are frozen, or that another norm takes the place of. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

NORM = "norm"
"""What a norm is called that stands in front of what its module does besides."""
MIXING = "mean_weight", "var_weight"
"""What a SwitchableNorm has besides: how much each kind of statistics counts."""
FILTER = "gain", "offset"
"""What a standardised convolution has besides: the norm and the mean of each filter."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a BatchNorm subclass does behind its normalisation, and keeps doing.

    Args:
        name: the attribute that holds the child module, or the attribute for a new one.
        op: empty for a child; else the class in ``torch.nn`` to build.
        args: the arguments of that class.
    """

    name: str
    op: str = ""
    args: tuple[float | bool | str, ...] = ()


class Norm(StrEnum):
    """What a BatchNorm is swapped for."""

    GROUP = "group"
    """`torch.nn.GroupNorm`"""
    INSTANCE = "instance"
    """`torch.nn.InstanceNorm2d` and the like: of each sample and channel, without running statistics"""
    BATCH = "batch"
    """`torch.nn.BatchNorm2d` and the like"""
    SYNC = "sync"
    """`torch.nn.SyncBatchNorm`"""
    SWITCHABLE = "switchable"
    """`bntools.norms.SwitchableNorm2d` and the like"""

    @property
    def tracks(self) -> bool:
        """Whether it has running statistics, and takes over those that were there."""
        return self in (Norm.BATCH, Norm.SYNC, Norm.SWITCHABLE)


@dataclass(frozen=True, slots=True)
class Swap:
    """A module that another norm takes the place of.

    Args:
        paths: all of its.
        norm: what comes.
        channels, eps, momentum: of both.
        groups: of a GroupNorm.
        space: how many axes inputs have behind the channels: 1, 2 or 3.
        weight, bias: whether it has γ and β.
        keeps: what the module does behind its normalisation, and keeps doing.
    """

    paths: tuple[str, ...]
    norm: Norm
    channels: int
    eps: float
    momentum: float | None = None
    groups: int = 1
    space: int = 2
    weight: bool = True
    bias: bool = True
    keeps: tuple[Part, ...] = ()

    @property
    def path(self) -> str:
        """Where the new norm stands."""
        return f"{self.paths[0]}.{NORM}" if self.keeps else self.paths[0]

    @property
    def keys(self) -> tuple[str, ...]:
        """Of its tensors."""
        names = ["weight"] * self.weight + ["bias"] * self.bias
        names += ["running_mean", "running_var", "num_batches_tracked"] * self.norm.tracks
        names += [*MIXING] * (self.norm is Norm.SWITCHABLE)
        return tuple(f"{self.path}.{name}" for name in names)


@dataclass(frozen=True, slots=True)
class Standardization:
    """A convolution whose filters are trained apart from their mean and their norm.

    Args:
        path: of the module.
        eps: added to the variance of a filter.
    """

    path: str
    eps: float

    @property
    def keys(self) -> tuple[str, ...]:
        """Of its tensors."""
        return tuple(f"{self.path}.{name}" for name in FILTER)


@dataclass(frozen=True, slots=True)
class Switch:
    """A module that is frozen, or no longer is.

    Args:
        path: of the module.
        freeze: whether it is to be frozen; else it becomes what it was.
        stats: whether its running statistics are.
        affine: whether its γ and β are.
    """

    path: str
    freeze: bool = True
    stats: bool = True
    affine: bool = True

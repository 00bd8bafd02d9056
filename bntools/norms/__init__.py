"""Layers that bntools leaves in a model: plain modules, so that what holds them can be saved and trained."""

from bntools.norms.channelwise import ChannelAffine
from bntools.norms.frozen import Frozen
from bntools.norms.padded import PaddedConv1d, PaddedConv2d, PaddedConv3d
from bntools.norms.standardized import StandardizedConv1d, StandardizedConv2d, StandardizedConv3d
from bntools.norms.switchable import SwitchableNorm1d, SwitchableNorm2d, SwitchableNorm3d

__all__ = [
    "ChannelAffine",
    "Frozen",
    "PaddedConv1d",
    "PaddedConv2d",
    "PaddedConv3d",
    "StandardizedConv1d",
    "StandardizedConv2d",
    "StandardizedConv3d",
    "SwitchableNorm1d",
    "SwitchableNorm2d",
    "SwitchableNorm3d",
]

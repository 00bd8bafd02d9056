"""Layers that bntools leaves in a model: plain modules, so that what holds them can be saved and trained."""

from bntools.norms.channelwise import ChannelAffine

__all__ = ["ChannelAffine"]

"""Rules about what is frozen and what is not, and in which mode a layer is.

A layer that `bntools.norms.frozen.freeze_` has frozen is so on purpose, whatever it looks like.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from bntools.findings.layer import NormLayer
from bntools.findings.remark import Remark
from bntools.findings.subject import Subject
from bntools.norms.frozen import frozen


def half_frozen(subject: Subject, threshold: float) -> Iterator[Remark]:
    """A model in which nothing has gradients is not going to be trained; one of which a part has is."""
    if subject.model is None or not any(p.requires_grad for p in subject.model.parameters()):
        return
    for norm in _unfrozen(subject):
        assert norm.module is not None
        own = [each for each in (norm.module.weight, norm.module.bias) if isinstance(each, nn.Parameter)]
        moves = norm.mean is not None and norm.momentum != 0 and norm.module.track_running_stats
        away = subject.model.training and not norm.module.training
        if own and moves and not away and not any(parameter.requires_grad for parameter in own):
            yield Remark(norm.path, "γ and β have no gradients, the statistics follow each batch", {})


def mixed_modes(subject: Subject, threshold: float) -> Iterator[Remark]:
    if subject.model is None:
        return
    for norm in _unfrozen(subject):
        assert norm.module is not None
        if norm.module is subject.model or norm.module.training == subject.model.training:
            continue
        told = (
            "in training mode, in a model in eval mode"
            if norm.module.training
            else "in eval mode, in a model in training mode"
        )
        yield Remark(norm.path, told, {})


def no_freeze(subject: Subject, threshold: float) -> Iterator[Remark]:
    for norm in _unfrozen(subject):
        if norm.mean is None:
            continue
        assert norm.module is not None
        if not norm.module.track_running_stats:
            yield Remark(norm.path, "track_running_stats is False, and it has statistics", {})
        elif norm.momentum == 0:
            yield Remark(norm.path, "momentum 0", {"momentum": 0.0})


def _unfrozen(subject: Subject) -> Iterator[NormLayer]:
    for norm in subject.norms:
        if norm.configured and norm.module is not None and frozen(norm.module) is None:
            yield norm

"""Ask every rule of a model, or of tensors alone. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from bntools.findings import decay, scales, settings, statistics
from bntools.findings.catalogue import RULES
from bntools.findings.finding import SEVERITIES, Finding, Measure, Needs
from bntools.findings.remark import Check
from bntools.findings.subject import Subject
from bntools.findings.thresholds import check_thresholds

OF_LAYERS: Mapping[str, Check] = MappingProxyType(
    {
        "BN001": statistics.not_finite,
        "BN002": statistics.negative_variance,
        "BN003": statistics.never_trained,
        "BN004": statistics.under_warmed,
        "BN005": settings.momentum_convention,
        "BN006": settings.momentum_left_behind,
        "BN007": statistics.eps_dominates,
        "BN008": scales.scale_outlier,
        "BN011": scales.zero_channels,
        "BN012": scales.zero_branch,
        "BN017": settings.no_statistics,
        "BN018": settings.sync,
        "BN020": statistics.half_precision,
        "BN022": settings.mixed_eps,
        "BN023": settings.mixed_momentum,
        "BN026": settings.small_batch,
        "BN036": decay.decayed,
    }
)
"""By the id of the rule, those that look at each layer by itself. A rule that lacks what it looks at says
nothing."""


def examine(subject: Subject, thresholds: Mapping[str, float] | None = None) -> tuple[Finding, ...]:
    """Every finding about a model, the worst rules first.

    Args:
        subject: what there is to look at.
        thresholds: by the id of a rule, instead of its own.

    Raises:
        UsageError: if a threshold is for no rule, or for one that has none, or is no finite number.

    Example:
        >>> from torch import nn
        >>> from bntools.findings.live import of_model
        >>> [finding.rule for finding in examine(of_model(nn.BatchNorm1d(2)))]
        ['BN003']
    """
    given = check_thresholds(thresholds or {})
    checks = _checks(subject)
    found = []
    with np.errstate(all="ignore"):  # NaN and infinity are what some rules look for
        for rule in sorted(RULES.values(), key=lambda rule: (SEVERITIES.index(rule.severity), rule.id)):
            if rule.id not in checks:
                continue
            threshold = given.get(rule.id, rule.threshold)
            for layer, detail, numbers in checks[rule.id](subject, 0.0 if threshold is None else threshold):
                measures = tuple(Measure(name, _number(value)) for name, value in numbers.items())
                found.append(Finding(rule.id, rule.severity, layer, detail, measures, threshold))
    return tuple(found)


def asked_of(subject: Subject) -> tuple[str, ...]:
    """The ids of the rules that have what they look at; of the others silence says nothing.

    Example:
        >>> "BN001" in asked_of(Subject([])), "BN013" in asked_of(Subject([]))
        (True, False)
    """
    there = {
        Needs.TENSORS: True,
        Needs.MODULES: subject.model is not None,
        Needs.RUN: subject.seen is not None,
        Needs.DATA: subject.passed is not None,
        Needs.OPTIMIZER: subject.decays is not None,
    }
    # The size of the batch is no file's to tell.
    silent = () if subject.batch_size is not None else ("BN026",)
    return tuple(rule.id for rule in RULES.values() if there[rule.needs] and rule.id not in silent)


def _checks(subject: Subject) -> Mapping[str, Check]:
    if subject.model is None:
        return OF_LAYERS
    from bntools.findings.within import OF_MODELS  # whoever has a model has torch

    return {**OF_LAYERS, **OF_MODELS}


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None

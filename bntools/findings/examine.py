"""Ask every rule of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from bntools.findings import affine, modes, settings, statistics, structure
from bntools.findings.catalogue import RULES
from bntools.findings.finding import SEVERITIES, Finding, Measure
from bntools.findings.remark import Check
from bntools.findings.subject import Subject
from bntools.findings.thresholds import check_thresholds

CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "BN001": statistics.not_finite,
        "BN002": statistics.negative_variance,
        "BN003": statistics.never_trained,
        "BN004": statistics.under_warmed,
        "BN005": settings.momentum_convention,
        "BN006": settings.momentum_left_behind,
        "BN007": statistics.eps_dominates,
        "BN008": affine.scale_outlier,
        "BN009": affine.float16_overflow,
        "BN010": affine.dead_channels,
        "BN011": affine.zero_channels,
        "BN012": affine.zero_branch,
        "BN013": structure.redundant_bias,
        "BN014": structure.shared,
        "BN015": modes.half_frozen,
        "BN016": modes.mixed_modes,
        "BN017": settings.no_statistics,
        "BN018": settings.sync,
        "BN019": structure.does_more,
        "BN020": statistics.half_precision,
        "BN021": structure.dropout_upstream,
        "BN022": settings.mixed_eps,
        "BN023": settings.mixed_momentum,
        "BN024": structure.recurrent,
        "BN025": structure.one_value,
        "BN026": settings.small_batch,
        "BN027": modes.no_freeze,
    }
)
"""By the id of the rule. A rule that lacks what it looks at says nothing."""


def examine(subject: Subject, thresholds: Mapping[str, float] | None = None) -> tuple[Finding, ...]:
    """Every finding about a model, the worst rules first.

    Args:
        subject: what there is to look at.
        thresholds: by the id of a rule, instead of its own.

    Raises:
        UsageError: if a threshold is for no rule, or for one that has none, or is no finite number.

    Example:
        >>> from torch import nn
        >>> from bntools.findings.subject import of_model
        >>> [finding.rule for finding in examine(of_model(nn.BatchNorm1d(2)))]
        ['BN003']
    """
    given = check_thresholds(thresholds or {})
    found = []
    for rule in sorted(RULES.values(), key=lambda rule: (SEVERITIES.index(rule.severity), rule.id)):
        threshold = given.get(rule.id, rule.threshold)
        for layer, detail, numbers in CHECKS[rule.id](subject, 0.0 if threshold is None else threshold):
            measures = tuple(Measure(name, _number(value)) for name, value in numbers.items())
            found.append(Finding(rule.id, rule.severity, layer, detail, measures, threshold))
    return tuple(found)


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None

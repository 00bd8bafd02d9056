"""What a rule says about a layer: plain records that turn into JSON. No torch here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad it is, the worst first."""

    ERROR = "error"
    """What the layer computes is wrong, whatever it is used for."""
    WARNING = "warning"
    """The layer computes, or would go on training, as hardly anybody means it to."""
    NOTE = "note"
    """True and worth knowing; many good models have it."""


SEVERITIES = tuple(Severity)


class Needs(StrEnum):
    """What a rule looks at."""

    TENSORS = "tensors"
    """Names and values: a state dict without its architecture will do."""
    MODULES = "modules"
    """Also the settings of the layers."""
    RUN = "run"
    """Also one run on an example input."""
    DATA = "data"
    """Also a pass over data."""
    OPTIMIZER = "optimizer"
    """Tensors, and the optimizer that trains them or its state in a checkpoint."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A question that is asked of every layer.

    Args:
        id: stable, and never given to another rule.
        name: the same in words.
        severity: of all its findings.
        means: one sentence that says what is wrong.
        remedy: what to do about it.
        source: where that is known from.
        needs: what it looks at.
        threshold: from where on it speaks up; None if there is nothing to set.
        unit: what the threshold is of.
    """

    id: str
    name: str
    severity: Severity
    means: str
    remedy: str
    source: str
    needs: Needs
    threshold: float | None = None
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Measure:
    """A number of a finding; None where it is none, as NaN is."""

    name: str
    value: float | None


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule says about one layer.

    Args:
        rule: its id, such as ``BN004``; `bntools.findings.RULES` has the rest.
        severity: that of the rule.
        layer: the path of the module; None for the model as a whole.
        detail: the numbers in words.
        numbers: the same for programs.
        threshold: that the rule had; None if it has none.
    """

    rule: str
    severity: Severity
    layer: str | None
    detail: str
    numbers: tuple[Measure, ...] = ()
    threshold: float | None = None


def together(findings: Iterable[Finding]) -> list[tuple[Finding, ...]]:
    """The findings of each rule as one group, the worst severity first, then by the number of the rule.

    Example:
        >>> made = [Finding(r, s, "bn", "") for r, s in (("BN008", "note"), ("BN002", "error"))]
        >>> [group[0].rule for group in together(made)]
        ['BN002', 'BN008']
    """
    groups: dict[tuple[int, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((SEVERITIES.index(finding.severity), finding.rule), []).append(finding)
    return [tuple(groups[key]) for key in sorted(groups)]

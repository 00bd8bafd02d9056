"""Thresholds and rules that somebody chose: whether they are any. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches

from bntools.errors import UsageError
from bntools.findings.catalogue import RULES
from bntools.findings.finding import Rule


def rule_called(name: str) -> Rule:
    """The rule with that id.

    Raises:
        UsageError: if there is none.

    Example:
        >>> rule_called("BN001").name
        'not-finite'
    """
    rule = RULES.get(name)
    if rule is None:
        near = get_close_matches(name.upper(), RULES, n=1)
        todo = f"did you mean {near[0]}?" if near else f"the rules are {min(RULES)} to {max(RULES)}"
        raise UsageError(f"{name}: no such rule", todo=todo)
    return rule


def check_thresholds(given: Mapping[str, float]) -> dict[str, float]:
    """*given* as it is, if every rule in it has a threshold.

    Raises:
        UsageError: if one is for no rule, for a rule that has none, or is no finite number.
    """
    for name, value in given.items():
        rule = rule_called(name)
        if rule.threshold is None:
            raise UsageError(f"{name} ({rule.name}) has no threshold", todo="leave it out")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UsageError(f"{name}: {value!r} is no threshold", todo="give a finite number")
    return {name: float(value) for name, value in given.items()}

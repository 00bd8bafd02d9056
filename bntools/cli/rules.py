"""What `bntools inspect` is asked to find: thresholds, the rules that are a failure, a baseline."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import typer

from bntools.cli import opening
from bntools.errors import UsageError
from bntools.findings import RULES, Finding, Severity
from bntools.findings.baseline import (
    Compared,
    Known,
    check_baseline,
    compared,
    read_baseline,
    write_baseline,
)
from bntools.findings.finding import SEVERITIES
from bntools.findings.thresholds import check_thresholds, rule_called


def thresholds(given: Sequence[str] | None) -> dict[str, float]:
    """``--set BN007=0.05``, read.

    Raises:
        UsageError: if one is no rule and a number.

    Example:
        >>> thresholds(["BN007=0.05"])
        {'BN007': 0.05}
    """
    values = {}
    for each in given or ():
        name, _, value = each.partition("=")
        try:
            values[name.strip()] = float(value)
        except ValueError:
            raise UsageError(f"--set {each}: no threshold", todo="write it as BN007=0.05") from None
    return check_thresholds(values)


def that_fail(chosen: str | None) -> frozenset[str]:
    """``--fail-on warning,BN013``, read: the rules whose findings are a failure.

    A severity includes those that are worse.

    Raises:
        UsageError: if one is neither a severity nor a rule.

    Example:
        >>> sorted(that_fail("BN013,BN004"))
        ['BN004', 'BN013']
    """
    rules: set[str] = set()
    for each in filter(None, (part.strip() for part in (chosen or "").split(","))):
        if each in SEVERITIES:
            bad = SEVERITIES[: SEVERITIES.index(Severity(each)) + 1]
            rules |= {rule.id for rule in RULES.values() if rule.severity in bad}
        elif each[:2] == "BN":
            rules.add(rule_called(each).id)
        else:
            raise UsageError(
                f"--fail-on {each}: neither a severity nor a rule",
                todo="give error, warning, note or the ids of rules, with commas between them",
            )
    return frozenset(rules)


class Baseline(NamedTuple):
    """A file of known findings: what is in it; None for one that is to be written."""

    path: Path
    entries: Collection[Known] | None
    force: bool = False


def baseline(context: typer.Context) -> Baseline | None:
    """``--baseline`` or ``--write-baseline``, checked before minutes go into a run.

    Raises:
        UsageError: if both are given, or the one cannot be read or the other may not be written.
    """
    known, written = opening.exclusive(context, "baseline", "write_baseline")
    if written:
        check_baseline(written, force=context.params["force"])
        return Baseline(written, None, context.params["force"])
    return Baseline(known, read_baseline(known)) if known else None


def held_against(
    chosen: Baseline | None, findings: Sequence[Finding], asked: Collection[str], *, whole: bool
) -> Compared | None:
    """What of the findings is known by a baseline; it is written now, if that was asked for.

    Args:
        chosen: the baseline.
        findings: all of them.
        asked: the rules that were asked.
        whole: whether all rules had what they look at; else a baseline would miss some, and is not written.
    """
    if chosen is None or (chosen.entries is None and not whole):
        return None
    if chosen.entries is None:
        return write_baseline(chosen.path, findings, force=chosen.force)
    return compared(chosen.path, chosen.entries, findings, asked)

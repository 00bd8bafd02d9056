"""Findings: which are asked for, and how they are shown: the worst rule first, once for all its layers."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import typer
from rich.console import Console

from bntools.cli import opening, text
from bntools.cli.facts import Failure
from bntools.cli.printable import annotation, printable
from bntools.cli.reports import cell, code, plain
from bntools.errors import PromiseError, UsageError
from bntools.findings import RULES, Finding, Severity, together
from bntools.findings.baseline import (
    Compared,
    Known,
    check_baseline,
    compared,
    read_baseline,
    write_baseline,
)
from bntools.findings.finding import SEVERITIES
from bntools.findings.mixtures import Mixture
from bntools.findings.thresholds import check_thresholds, rule_called

_FEW = 3
_WIDEST = 120
"""Longer lines are hard to read on any screen."""
_LABEL = 12
_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}
_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}


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


def rules_of(chosen: str | None) -> frozenset[str]:
    """``--fail-on warning,BN013``, read: the rules whose findings are a failure.

    A severity includes those that are worse.

    Raises:
        UsageError: if one is neither a severity nor a rule.

    Example:
        >>> sorted(rules_of("BN013,BN004"))
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
    known, written = opening.one_of(context, "baseline", "write_baseline")
    if known and written:
        raise UsageError("--baseline and --write-baseline exclude each other", todo="give one of them")
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


def _known(held: Compared | None, few: int | None) -> dict[str, str]:
    """What a baseline hides and what is in it to no avail, by a label."""
    if held is None:
        return {}
    if held.written:
        return {"written": f"{held.path}: {_count(held.known)}, known from now on"}
    told = {"known": f"{_count(held.known)}, in {held.path} and not shown"}
    if held.gone:
        names = [e.rule if e.layer is None else f"{e.rule} in {e.layer or 'the model'}" for e in held.gone]
        more = f" and {len(names) - few} more" if few and len(names) > few else ""
        entries = f"{len(names)} {'entry' if len(names) == 1 else 'entries'}"
        told["gone"] = f"{entries} of {held.path} no longer occur: {', '.join(names[:few])}{more}"
    return told


def _count(number: int) -> str:
    return f"{number} finding{'' if number == 1 else 's'}"


def failure(findings: Sequence[Finding], fatal: frozenset[str]) -> Failure | None:
    """Whether there are findings of the rules that nobody wants."""
    bad = [group for group in together(findings) if group[0].rule in fatal]
    if not bad:
        return None
    told = ", ".join(f"{group[0].rule} {RULES[group[0].rule].name} ({_layers(group)})" for group in bad)
    return Failure(told, "see what to do above, or choose other rules for --fail-on", PromiseError.exit_code)


def data(findings: Sequence[Finding], held: Compared | None) -> dict[str, Any]:
    """Every finding, once what each of their rules means, and what a baseline hides."""
    about = held and {"path": held.path, "written": held.written, "known": held.known, "gone": held.gone}
    return {"findings": findings, "rules": {f.rule: RULES[f.rule] for f in findings}, "baseline": about}


def screen(out: Console, findings: Sequence[Finding], held: Compared | None, *, every: bool) -> None:
    """For people: a paragraph for each rule, as wide as the screen.

    Args:
        out: the screen.
        findings: all of them.
        held: what a baseline hides.
        every: name all layers, not the first few.
    """
    text.line(out, "findings", summary(findings))
    for group in together(findings):
        rule = RULES[group[0].rule]
        colour = _COLOURS[rule.severity]
        head = f"[{colour}]{rule.id}[/{colour}] [bold]{rule.name}[/bold]: {_layers(group)}"
        out.print(f"[{colour}]{rule.severity.value:<{_LABEL}}[/{colour}]{head}")
        paragraph(out, rule.means)
        for told in _by_detail(group, None if every else _FEW):
            paragraph(out, told)
        paragraph(out, f"→ {rule.remedy}")
    for label, told in _known(held, None if every else _FEW).items():
        text.line(out, label, told)


def paragraph(out: Console, words: str) -> None:
    """Words under their label, folded to the screen; a name is never cut."""
    width = min(out.width, _WIDEST) - _LABEL
    for each in textwrap.wrap(
        printable(words), max(width, 20), break_long_words=False, break_on_hyphens=False
    ):
        out.print(" " * _LABEL + text.escape(each))


def github(out: Console, findings: Sequence[Finding], held: Compared | None) -> None:
    """An annotation for each rule: GitHub shows ten of a kind."""
    for group in together(findings):
        rule = RULES[group[0].rule]
        told = f"{'; '.join(_by_detail(group, _FEW))}; {rule.means}; {rule.remedy}"
        plain(out, annotation(_LEVELS[rule.severity], f"inspect {rule.id} {rule.name}", told))
    for label, told in _known(held, _FEW).items():
        plain(out, annotation("notice", f"inspect {label}", told))


def markdown(out: Console, findings: Sequence[Finding], held: Compared | None) -> None:
    """A table with a row for each rule."""
    for label, told in _known(held, _FEW).items():
        plain(out, f"\n{label}: {cell(told)}")
    if not findings:
        return
    plain(out, f"\n{summary(findings)}\n")
    plain(out, "| severity | finding | layers | what to do |")
    plain(out, "|---|---|---|---|")
    for group in together(findings):
        rule = RULES[group[0].rule]
        layers = "<br>".join(_by_detail(group, _FEW, name=code, words=cell))
        what = f"{rule.id} {rule.name}: {rule.means}"
        plain(out, f"| {rule.severity.value} | {cell(what)} | {layers} | {cell(rule.remedy)} |")


def mixtures(found: Sequence[Mixture]) -> list[tuple[str, ...]]:
    """A row for each SwitchableNorm, under their head: how much it normalises by what."""
    kinds = ("instance", "layer", "batch")
    head = ("SwitchableNorm", *(f"{what} {kind}" for what in ("mean", "var") for kind in kinds))
    rows = [
        (
            each.layer or "the model",
            *(f"{getattr(part, kind):.1%}" for part in (each.mean, each.var) for kind in kinds),
        )
        for each in found
    ]
    return [head, *rows]


def mixed(out: Console, found: Sequence[Mixture]) -> None:
    """The same as a table in Markdown."""
    if not found:
        return
    head, *rows = mixtures(found)
    plain(out, f"\n| {' | '.join(head)} |")
    plain(out, f"|---|{'---:|' * (len(head) - 1)}")
    for row in rows:
        plain(out, f"| {code(row[0])} | {' | '.join(row[1:])} |")


def summary(findings: Sequence[Finding]) -> str:
    """How many rules found something, by severity."""
    counts = Counter(group[0].severity for group in together(findings))
    told = [f"{n} {s.value}{'s' if n > 1 else ''}" for s in SEVERITIES if (n := counts[s])]
    return ", ".join(told) or "none"


def _layers(group: Sequence[Finding]) -> str:
    if group[0].layer is None:
        return "the model"
    return f"{len(group)} layer{'s' if len(group) > 1 else ''}"


def _by_detail(
    group: Sequence[Finding],
    few: int | None,
    *,
    name: Callable[[str], str] = str,
    words: Callable[[str], str] = str,
) -> list[str]:
    """The layers of which the same is to say together; the first few, and how many there are besides."""
    alike: dict[str, list[str]] = {}
    for finding in group:
        names = alike.setdefault(finding.detail, [])
        if finding.layer is not None:
            names.append(name(finding.layer or "the model"))
    lines = []
    for detail, names in list(alike.items())[:few]:
        more = f" and {len(names) - few} more" if few and len(names) > few else ""
        lines.append(f"{', '.join(names[:few])}{more}: {words(detail)}" if names else words(detail))
    left = sum(map(len, list(alike.values())[few:])) if few else 0
    return lines + [f"and {left} more layers"] * (left > 0)

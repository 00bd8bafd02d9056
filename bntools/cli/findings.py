"""How findings are shown: the worst rule first, once for all its layers."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from bntools.cli import text
from bntools.cli.facts import Failure
from bntools.cli.render import annotation
from bntools.cli.reports import cell, code, plain
from bntools.errors import PromiseError, listed
from bntools.findings import RULES, Finding, Severity, together
from bntools.findings.baseline import Compared
from bntools.findings.finding import SEVERITIES
from bntools.findings.mixtures import KINDS, Mixture
from bntools.printable import printable

_FEW = 3
_WIDEST = 120
"""Longer lines are hard to read on any screen."""
_LABEL = 12
_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}
_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}


def _known(held: Compared | None, few: int | None) -> dict[str, str]:
    """What a baseline hides and what is in it to no avail, by a label."""
    if held is None:
        return {}
    if held.written:
        return {"written": f"{held.path}: {_count(held.known)}, known from now on"}
    told = {"known": f"{_count(held.known)}, in {held.path} and not shown"}
    if held.gone:
        names = [e.rule if e.layer is None else f"{e.rule} in {e.layer or 'the model'}" for e in held.gone]
        entries = f"{len(names)} {'entry' if len(names) == 1 else 'entries'}"
        told["gone"] = f"{entries} of {held.path} no longer occur: {listed(names, few)}"
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
    head = ("SwitchableNorm", *(f"{what} {kind}" for what in ("mean", "var") for kind in KINDS))
    return [head, *((each.layer or "the model", *(f"{s:.1%}" for s in each.shares)) for each in found)]


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
        lines.append(f"{listed(names, few)}: {words(detail)}" if names else words(detail))
    left = sum(map(len, list(alike.values())[few:])) if few else 0
    return lines + [f"and {left} more layers"] * (left > 0)

"""The top of the page: where the trouble is, in words, in numbers and on a map of the network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby

from bntools.core.plan import Plan
from bntools.core.reasons import Reason
from bntools.findings.census import Census
from bntools.findings.finding import SEVERITIES, Severity, together
from bntools.report.charts import profile
from bntools.report.distributions import Axis, columns
from bntools.report.entries import Entry, Verdict, judged
from bntools.report.markup import Html, called, joined, tag

SIGNS = {"error": "×", "warning": "!", "note": "i", "clean": ""}
"""In Latin-1, which every font has; a colour alone says nothing to one man in twelve."""
_WRONG = {
    Severity.ERROR: ("What 1 layer computes is wrong", "What {} layers compute is wrong"),
    Severity.WARNING: (
        "No error; 1 layer does what hardly anybody means",
        "No error; {} layers do what hardly anybody means",
    ),
    Severity.NOTE: (
        "No error, no warning; 1 layer has something worth knowing",
        "No error, no warning; {} layers have something worth knowing",
    ),
}
_FEW, _MANY = 60, 300
"""The more sites, the smaller their cells."""
_PARTS = 48
"""So many names fit over a map."""


def sign(grade: str) -> Html:
    """The mark of a severity: a colour and a character."""
    return tag("span", SIGNS[grade], class_=f"sign {grade}", aria_hidden="true")


def headline(census: Census, entries: Sequence[Entry]) -> Html:
    """Two sentences: what is wrong and where it begins, and what folds."""
    told = [_wrong(census, entries)]
    refusals = census.plan.refusals if census.plan is not None else ()
    if any(refusal.reason is Reason.NOT_CAPTURED for refusal in refusals):
        lost = "The model does not run on this input."
        told = [tag("p", sign("error"), lost, class_="first error"), *(told if census.findings else ())]
    return tag("div", *told, tag("p", _folding(census.plan, entries)), class_="headline")


def _wrong(census: Census, entries: Sequence[Entry]) -> Html:
    worst = min((f.severity for f in census.findings), key=SEVERITIES.index, default=None)
    if worst is None:
        far = "" if judged(entries) else ", as far as its numbers tell"
        told = f"Nothing was found to be wrong{far}." if entries else "There is no BatchNorm."
        return tag("p", sign("clean"), told, class_="first clean")
    layers = {f.layer for f in census.findings if f.severity is worst}
    if layers == {None}:
        sentence = joined(f"One {worst.value}, about the model as a whole.")
    else:
        count = len(layers - {None})
        one, several = _WRONG[worst]
        what = one if count == 1 else several.format(count)
        first = next((e for e in entries if e.severity is worst), None)
        lead = (": ", tag("a", called(first.name), href=f"#{first.anchor}")) if first is not None else ()
        begins = (" is the first",) if first is not None and count > 1 else ()
        sentence = joined(what, *lead, *begins, ".")
    return tag("p", sign(worst.value), tag("span", sentence), class_=f"first {worst.value}")


def _folding(plan: Plan | None, entries: Sequence[Entry]) -> str:
    if not entries:
        return ""
    norms = f"{len(entries)} BatchNorm{'s' * (len(entries) > 1)}"
    if plan is None:
        return f"{norms} in a file of weights: their order, eps and whether they fold are unknown."
    if not judged(entries):
        return f"{norms}; whether they fold is unknown."
    if not plan.refusals:
        return f"All of {norms} fold." if len(entries) > 1 else "The BatchNorm folds."
    reasons = Counter(refusal.reason.value for refusal in plan.refusals)
    why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    stays, folds = len(plan.refusals), len(entries) - len(plan.refusals)
    taken = f"{folds or 'None'} of {norms} {'folds' if folds == 1 else 'fold'}"
    return f"{taken}; {stays} stay{'s' * (stays == 1)}: {why}."


def tiles(census: Census, entries: Sequence[Entry]) -> Html:
    """The counts: findings by severity, as many as there are rules that found something; verdicts."""
    rules = Counter(group[0].severity for group in together(census.findings))
    counts = [
        _tile(sign(each.value), rules[each], each.value, each.value if rules[each] else "zero", "#findings")
        for each in SEVERITIES
    ]
    verdicts = Counter(entry.told.verdict for entry in entries)
    for verdict in (Verdict.FOLDS, Verdict.STAYS) if judged(entries) else ():
        mark = tag("span", class_=f"cell {verdict.value} clean", aria_hidden="true")
        counts.append(_tile(mark, verdicts[verdict], verdict.value.rstrip("s"), "", "#sites", plural=False))
    return tag("ul", *counts, class_="tiles")


def _tile(mark: Html, count: int, what: str, kind: str, to: str, *, plural: bool = True) -> Html:
    name = f"{what}{'s' * (plural and count != 1)}" if plural else f"{what}{'s' * (count == 1)}"
    inside = (mark, tag("b", str(count)), " ", name)
    return tag("li", tag("a", *inside, href=to, class_=f"tile {kind}".rstrip()))


def strip(entries: Sequence[Entry]) -> Html:
    """A cell for each site in order of execution, under the names of the parts of the network."""
    size = "few" if len(entries) <= _FEW else "some" if len(entries) <= _MANY else "many"
    parts = []
    for label, found in _parts(entries):
        head = tag("span", label, class_="part") if label else Html("")
        parts.append(tag("li", head, tag("ol", *map(_cell, found))))
    return tag("ol", *parts, class_=f"strip {size}")


def _cell(entry: Entry) -> Html:
    """Its only words are its title: who hears the page is told that, as what is in it is not told."""
    verdict = f"{entry.told.verdict.value}, " if entry.told.verdict is not Verdict.UNKNOWN else ""
    told = f"{entry.number}. {entry.name}: {verdict}{_worst(entry)}"
    mark = (tag("i", SIGNS[entry.grade], aria_hidden="true"),) if entry.severity else ()
    kind = f"cell {entry.told.verdict.value} {entry.grade}"
    return tag("li", tag("a", *mark, href=f"#{entry.anchor}", class_=kind, title=told))


def _worst(entry: Entry) -> str:
    if entry.severity is None:
        return "no finding"
    rules = sorted({f.rule for f in entry.findings if f.severity is entry.severity})
    return f"{entry.severity.value} {', '.join(rules)}"


def _parts(entries: Sequence[Entry]) -> list[tuple[str, list[Entry]]]:
    """Runs of sites of one part of the network; all of them without a name where parts would be too many."""
    paths = [entry.site.name.split(".") for entry in entries]
    depth = 0
    while paths and all(len(path) > depth + 1 and path[:depth] == paths[0][:depth] for path in paths):
        if len({path[depth] for path in paths}) > 1:
            break
        depth += 1
    runs = groupby(zip(paths, entries, strict=True), key=lambda each: each[0][depth : depth + 1])
    parts = [(".".join(label), [entry for _, entry in run]) for label, run in runs]
    if len(parts) > min(_PARTS, max(len(entries) * 0.6, 1)) or len(parts) < 2:
        return [("", list(entries))]
    return parts


def profiles(entries: Sequence[Entry], axes: Mapping[str, Axis]) -> Html:
    """A band for each quantity, one under the other, over the same sites."""
    bands = []
    for each in columns(axes):
        axis = axes[each.key]
        ends = tag("span", tag("i", f"{axis.high:.2g}"), tag("i", f"{axis.low:.2g}"), class_="ends")
        title = tag("figcaption", tag("b", each.symbol), " ", each.name)
        bands.append(tag("figure", title, ends, profile(each, entries, axis)))
    return tag("div", *bands, class_="bands")

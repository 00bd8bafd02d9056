"""The findings on the page: a card for each rule, the worst first, with its layers as links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bntools.findings import RULES, Finding, together
from bntools.report.entries import Entry
from bntools.report.markup import Html, called, joined, listed, tag
from bntools.report.overview import sign

_SHOWN = 8
"""So many layers are named in the open; all others are behind a click."""


def cards(findings: Sequence[Finding], entries: Sequence[Entry]) -> Html:
    """All findings."""
    if not findings:
        return tag("p", "None.")
    first: dict[str, Entry] = {}
    for entry in entries:
        if entry.site.module is not None:
            first.setdefault(entry.site.module, entry)
    return tag("div", *(_card(group, first) for group in together(findings)), class_="cards")


def _card(group: Sequence[Finding], first: Mapping[str, Entry]) -> Html:
    rule = RULES[group[0].rule]
    layers = [finding for finding in group if finding.layer is not None]
    count = f"{len(layers)} layer{'s' * (len(layers) > 1)}" if layers else "the model"
    head = tag(
        "h3",
        sign(rule.severity.value),
        rule.name,
        " ",
        tag("small", f"{rule.severity.value} {rule.id}, {count}"),
    )
    return tag(
        "article",
        head,
        tag("p", _sentence(rule.means)),
        tag("p", tag("b", "What to do: "), rule.remedy, class_="remedy"),
        *_layers(group, first),
        tag("p", rule.source, class_="source"),
        id=rule.id,
        class_=f"card {rule.severity.value}",
    )


def _layers(group: Sequence[Finding], first: Mapping[str, Entry]) -> list[Html]:
    """Those of which the same is to say in one line."""
    alike: dict[str, list[str]] = {}
    for finding in group:
        names = alike.setdefault(finding.detail, [])
        if finding.layer is not None:
            names.append(finding.layer)
    lines = [_line(detail, names, first) for detail, names in alike.items()]
    shown, hidden = lines[:_SHOWN], lines[_SHOWN:]
    left = sum(map(len, list(alike.values())[_SHOWN:]))
    return [tag("ul", *shown), *([_behind(left, tag("ul", *hidden))] if hidden else [])]


def _line(detail: str, names: Sequence[str], first: Mapping[str, Entry]) -> Html:
    links = [_link(name, first) for name in names]
    head = joined(listed(links[:_SHOWN]), ": ") if links else Html("")
    more = (_behind(len(links) - _SHOWN, listed(links[_SHOWN:])),) if len(links) > _SHOWN else ()
    return tag("li", head, detail, *more)


def _behind(count: int, inside: Html) -> Html:
    return tag("details", tag("summary", f"and {count} more layer{'s' * (count > 1)}"), inside)


def _link(layer: str, first: Mapping[str, Entry]) -> Html:
    entry = first.get(layer)
    return tag("a", called(layer), href=f"#{entry.anchor}") if entry is not None else called(layer)


def about_site(entry: Entry) -> Html:
    """The findings of one site, in short: the card of the rule says more."""
    if not entry.findings:
        return Html("")
    items = (
        tag(
            "li",
            sign(each.severity.value),
            tag(
                "span",
                tag("a", f"{each.rule} {RULES[each.rule].name}", href=f"#{each.rule}"),
                f": {each.detail}",
            ),
        )
        for each in entry.findings
    )
    return tag("ul", *items, class_="own")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."

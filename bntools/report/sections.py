"""The page from top to bottom, in sections with a heading each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bntools.findings.census import Census
from bntools.findings.finding import SEVERITIES
from bntools.findings.mixtures import KINDS, Mixture
from bntools.report.charts import panels
from bntools.report.distributions import Axis
from bntools.report.entries import Entry, judged
from bntools.report.findinglist import cards
from bntools.report.markup import Html, called, tag
from bntools.report.overview import headline, profiles, sign, strip, tiles
from bntools.report.sitelist import filters, rows


def header(census: Census, entries: Sequence[Entry], *, model: str, what: str, known: int) -> Html:
    """What was looked at, what is wrong, what folds."""
    about = [what] if what else []
    if census.example is not None:
        about.append(f"run on {census.example} ({census.example.origin})")
    if census.passed is not None:
        about.append(f"{census.passed.samples} samples of data")
    notes = list(census.plan.notes) if census.plan is not None else []
    if known:
        notes.append(f"known findings, which the baseline has and this page leaves out: {known}")
    return tag(
        "header",
        tag("h1", "BatchNorms of ", called(model)),
        tag("p", "; ".join(about), class_="about") if about else Html(""),
        headline(census, entries),
        tiles(census, entries),
        tag("ul", *(tag("li", note) for note in notes), class_="notes") if notes else Html(""),
    )


def sections(census: Census, entries: Sequence[Entry], axes: Mapping[str, Axis]) -> list[Html]:
    """The map, the findings, the profile and the list of sites."""
    if not entries:
        return [_section("findings", "Findings", cards(census.findings, entries))]
    known = any(entry.spread for entry in entries)
    order = ", in order of execution" if judged(entries) else ""
    parts = [_section("map", f"All sites{order}", strip(entries), _legend(entries))]
    parts.append(_section("findings", "Findings", cards(census.findings, entries)))
    if known:
        told = tag(
            "p",
            "Of each site, in the same order: from the least to the most channel, thick the middle half, "
            "a dash the median. The axes are linear around 0 and logarithmic far from it; σ² is logarithmic"
            + (", and so is the drift." if "divergence" in axes else "."),
            class_="about",
        )
        parts.append(panels(axes))
        parts.append(_section("profile", "Along the network", told, profiles(entries, axes)))
    if census.mixtures:
        parts.append(_section("mixtures", "SwitchableNorm", _mixtures(census.mixtures)))
    told = tag(
        "p",
        "A row opens. The histograms are of the channels, on an axis that a column shares, over the median.",
        class_="about",
    )
    count = tag(
        "p", tag("span", "", id="count"), tag("button", "open all", type="button", id="all", hidden=True)
    )
    empty = tag("p", "No site is like that.", id="nothing", hidden=True)
    parts.append(_section("sites", "Sites", filters(entries), told, count, rows(entries, axes), empty))
    return parts


def _section(anchor: str, title: str, *inside: Html) -> Html:
    return tag(
        "section",
        tag("h2", title, id=f"{anchor}-title"),
        *inside,
        id=anchor,
        aria_labelledby=f"{anchor}-title",
    )


def _legend(entries: Sequence[Entry]) -> Html:
    """What the colours and the marks mean."""
    grades = [(sign(each.value), each.value) for each in SEVERITIES]
    grades.append((tag("span", class_="cell folds clean"), "nothing found"))
    if judged(entries):
        grades += [(tag("span", class_="cell folds note"), "filled: it folds")]
        grades += [(tag("span", class_="cell stays note"), "hollow: it stays")]
    return tag(
        "p", *(tag("span", mark, words) for mark, words in grades), class_="legend", aria_hidden="true"
    )


def _mixtures(found: Iterable[Mixture]) -> Html:
    """How much each normalises by what."""
    names = [f"{what} by {kind}" for what in ("mean", "variance") for kind in KINDS]
    head = tag("tr", tag("td"), *(tag("th", name, scope="col") for name in names))
    lines = []
    for each in found:
        shares = (tag("td", f"{share:.1%}") for share in each.shares)
        lines.append(tag("tr", tag("th", called(each.layer), scope="row"), *shares))
    table = tag("table", head, *lines)
    return tag("div", table, class_="wide", tabindex="0", role="group", aria_label="SwitchableNorm")


def footer(versions: Mapping[str, str]) -> Html:
    """What made the page."""
    made = ", ".join(f"{name} {version}" for name, version in versions.items())
    return tag("footer", tag("p", f"Made by {made}. This page loads nothing and sends nothing."))

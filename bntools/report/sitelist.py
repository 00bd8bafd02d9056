"""The list of all sites: a row each, which opens to all that is known of it. No torch here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from bntools.findings.finding import SEVERITIES
from bntools.report.charts import histograms
from bntools.report.distributions import QUANTITIES, Axis, Distribution, columns
from bntools.report.entries import Entry, Told, Verdict, judged
from bntools.report.findinglist import about_site
from bntools.report.markup import Html, called, joined, listed, tag, unseen
from bntools.report.overview import sign

_NAMED = 2
"""So many of the layers that take a site in stand in its row; all of them where it opens."""
_COLUMNS = {"least": 0, "5 %": 1, "median": 3, "95 %": 5, "most": 6}
"""Which of `bntools.report.distributions.QUANTILES` are written out."""


def filters(entries: Sequence[Entry]) -> Html:
    """What to show: by words, which needs the script of the page, by worst finding and by verdict, which does
    not.
    """
    words = tag(
        "label",
        "Search ",
        tag("input", type="search", id="search", placeholder="name, type, layer, rule…", autocomplete="off"),
        tag("kbd", "/", title="the key / leads here"),
        class_="search",
        hidden=True,
    )
    grades = Counter(entry.grade for entry in entries)
    worst = [(each.value, f"{each.value}s") for each in SEVERITIES] + [("clean", "no finding")]
    verdicts = Counter(entry.told.verdict.value for entry in entries)
    rows = [_choice("worst", "Worst finding", worst, grades, len(entries))]
    if judged(entries):
        both = [(each.value, each.value) for each in (Verdict.FOLDS, Verdict.STAYS)]
        rows.append(_choice("verdict", "Fold", both, verdicts, len(entries)))
    return tag("form", words, *rows, class_="filters", role="search", aria_label="Filter the sites")


def _choice(
    name: str, legend: str, values: Sequence[tuple[str, str]], counts: Counter[str], total: int
) -> Html:
    options = [
        tag(
            "label",
            tag("input", type="radio", name=name, id=f"{name}-{value}", checked=value == "all"),
            tag("span", f"{label} ", tag("small", str(total if value == "all" else counts[value]))),
        )
        for value, label in [("all", "all"), *values]
    ]
    return tag("fieldset", tag("legend", legend), *options)


def rows(entries: Sequence[Entry], axes: Mapping[str, Axis]) -> Html:
    """A row for each site, in order."""
    ends = {each.key: f"{axes[each.key].low:.2g} … {axes[each.key].high:.2g}" for each in columns(axes)}
    labels = (
        tag("span", tag("b", each.symbol), " ", each.name.removeprefix("running "), tag("i", ends[each.key]))
        for each in columns(axes)
    )
    head = tag(
        "div",
        tag("span", "#"),
        tag("span", "site"),
        tag("span", "folds into, or why not"),
        tag("span", *labels, class_="labels"),
        class_="head",
        aria_hidden="true",
    )
    return joined(head, tag("ol", *(_row(entry, axes) for entry in entries), class_="sites"))


def _row(entry: Entry, axes: Mapping[str, Axis]) -> Html:
    site = entry.site
    rules = sorted({finding.rule for finding in entry.findings})
    worst = (sign(entry.grade), unseen(f"{entry.grade}: ")) if entry.severity else ()
    told = (tag("b", " ".join(rules), class_=entry.grade),) if rules else ()
    summary = tag(
        "summary",
        tag("span", str(entry.number), class_="at"),
        tag(
            "span",
            tag("span", *worst, called(entry.name), class_="name"),
            tag("small", f"{site.kind}, {site.channels} channels ", *told),
        ),
        tag("span", *_short(entry.told), class_="verdict"),
        _sparks(entry, axes),
    )
    inside = tag("div", *_facts(entry), *_numbers(entry), id=entry.anchor, class_="inside", tabindex="-1")
    return tag("li", tag("details", summary, inside), class_=f"site {entry.grade} {entry.told.verdict.value}")


def _short(told: Told) -> list[Html]:
    if told.verdict is Verdict.UNKNOWN:
        return []
    mark = tag("i", class_=f"cell {told.verdict.value} clean")
    if told.verdict is Verdict.STAYS:
        return [mark, tag("span", "stays: ", told.how.partition(":")[0])]
    if not told.into:
        return [mark, tag("span", "folds: ", told.how)]
    more = len(told.into) - _NAMED
    rest = f" and {more} more" if more > 0 else ""
    return [mark, tag("span", "into ", _layers(told.into[:_NAMED]), rest)]


def _layers(into: Sequence[tuple[str, str]]) -> Html:
    return listed(joined(called(path), f" ({op})" if op else "") for path, op in into)


def _sparks(entry: Entry, axes: Mapping[str, Axis]) -> Html:
    """The histograms, and under each its median and what is wrong with numbers of it."""
    if not entry.spread:
        return tag("span", "numbers unknown", class_="sparks")
    labels = []
    for each in columns(axes):
        found = entry.spread.get(each.key)
        middle = "none" if found is None else f"{found.quantiles[3]:.3g}" if found.quantiles else "no number"
        bad = _bad(found) if found is not None else ""
        labels.append(tag("span", tag("b", each.symbol), f" {middle} ", *((tag("em", bad),) if bad else ())))
    return tag("span", histograms(entry.spread, axes), tag("span", *labels, class_="labels"), class_="sparks")


def _bad(found: Distribution) -> str:
    lost = f"{found.lost} not finite" if found.lost else ""
    below = f"{found.below} below 0" if found.below else ""
    return ", ".join(filter(None, (lost, below)))


def _facts(entry: Entry) -> list[Html]:
    """What the row has no room for."""
    site, told = entry.site, entry.told
    known = ["eps and momentum unknown"]
    if site.eps is not None:
        momentum = "no momentum" if site.momentum is None else f"momentum {site.momentum:g}"
        known = [f"eps {site.eps:g}", momentum]
    if site.batches is not None:
        known.append(f"{site.batches} batches counted")
    other = site.module is not None and site.module != site.name
    whose = joined("of ", called(site.module or ""), "; ") if other else Html("")
    facts = [tag("p", whose, ", ".join(known))]
    if told.remedy:
        remedy = (" ", tag("b", "What to do: "), told.remedy, ".")
        facts.append(
            tag(
                "p",
                tag("b", "Stays" if told.verdict is Verdict.STAYS else "Unknown"),
                ", ",
                told.how,
                ".",
                *remedy,
            )
        )
    elif told.into:
        facts.append(tag("p", tag("b", "Folds"), " into ", _layers(told.into), ", ", told.how, "."))
    return [*facts, about_site(entry)]


def _numbers(entry: Entry) -> list[Html]:
    """The numbers behind the histograms."""
    known = [(each, entry.spread[each.key]) for each in QUANTITIES if each.key in entry.spread]
    if not known:
        return []
    lines = []
    for each, found in known:
        cells = [f"{found.quantiles[at]:.3g}" if found.quantiles else "" for at in _COLUMNS.values()]
        name = tag("th", f"{each.symbol} {each.name}", scope="row")
        lines.append(tag("tr", name, *(tag("td", cell) for cell in cells)))
    head = tag("tr", tag("td"), *(tag("th", name) for name in _COLUMNS))
    return [tag("div", tag("table", head, *lines), class_="wide")]

"""Distributions as inline SVG: the histograms of a layer, and a profile along the network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from bntools.report.distributions import BINS, Axis, Distribution, Quantity, columns
from bntools.report.entries import Entry
from bntools.report.markup import Html, joined, tag

_HIGH = 20
"""Of a histogram, in units of its own; a bin is 2 wide."""
_BIN, _GAP = 2, 8
_PANEL = BINS * _BIN + _GAP
_TALL, _STEP = 64, 8
_EDGE = 2
"""A site whose numbers are all beyond the axis is drawn that far from its end."""
_FEWEST = 20
"""So many sites fill a profile; fewer would be drawn as wide as walls."""
_LEAST = 3
"""Half the height of a box whose numbers are all alike, so that its colour is seen around the median."""
_LINKED = 250
"""Up to so many sites each column of a profile is a link; beyond, they are thinner than a finger."""


def panels(axes: Mapping[str, Axis]) -> Html:
    """What stands behind all histograms, once: a panel for each quantity, with a line at 0, or at 1 where it
    is logarithmic.
    """
    drawn = []
    for at, each in enumerate(columns(axes)):
        x = at * _PANEL
        drawn.append(tag("rect", x=x, width=_PANEL - _GAP, height=_HIGH))
        drawn.append(tag("path", d=f"M{x + round(axes[each.key].origin * BINS * _BIN)} 0v{_HIGH}"))
    return tag("svg", tag("g", *drawn, id="panels"), class_="panels", aria_hidden="true")


def histograms(spread: Mapping[str, Distribution], axes: Mapping[str, Axis]) -> Html:
    """Those of one layer side by side. Heights are relative to its own fullest bin, and a single channel is
    seen beside a thousand.
    """
    d = "".join(
        _outline(spread[each.key].bins, at * _PANEL)
        for at, each in enumerate(columns(axes))
        if each.key in spread
    )
    box = f"0 0 {_PANEL * len(axes)} {_HIGH}"
    inside = (tag("use", href="#panels"), tag("path", d=d))
    return tag("svg", *inside, viewBox=box, preserveAspectRatio="none", aria_hidden="true")


def _outline(bins: Sequence[int], x: int) -> str:
    """Along the tops of the bins, from the lower left corner."""
    most = max(bins, default=0)
    if not most:
        return ""
    drawn, now, run = [f"M{x} {_HIGH}"], 0, 0
    for count in bins:
        height = max(2, round(count / most * _HIGH)) if count else 0
        if height != now:
            drawn.append((f"h{run}" if run else "") + f"v{now - height}")
            now, run = height, 0
        run += _BIN
    return "".join([*drawn, f"h{run}v{now}" if now else "", "z"])


def profile(quantity: Quantity, entries: Sequence[Entry], axis: Axis) -> Html:
    """One quantity of all sites side by side: from the least to the most, the middle half, the median."""
    boxes: dict[str, list[str]] = defaultdict(list)
    middles, lost, links = [], [], []
    for at, entry in enumerate(entries):
        x = at * _STEP
        found = entry.spread.get(quantity.key)
        if found is not None and found.quantiles:
            least, _, lower, middle, upper, _, most = _heights(found, axis)
            boxes[f"w {entry.grade}"].append(f"M{x + 4} {most}V{least}")
            upper, lower = min(upper, middle - _LEAST), max(lower, middle + _LEAST)
            boxes[f"b {entry.grade}"].append(f"M{x + 4} {upper:g}V{lower:g}")
            middles.append(f"M{x + 1} {middle}h6")
        if found is not None and (found.lost or found.below):
            lost.append(f"M{x + 1} 2h6")
        if len(entries) <= _LINKED:
            area = tag("rect", tag("title", entry.name), x=x, width=_STEP, height=_TALL)
            links.append(tag("a", area, href=f"#{entry.anchor}", tabindex="-1"))
    wide = max(len(entries), _FEWEST) * _STEP
    zero = round(_TALL * (1 - axis.origin), 1)
    drawn = {"z": [f"M0 {zero}h{wide}"], **boxes, "m": middles, "lost": lost}
    return tag(
        "svg",
        *(tag("path", class_=kind, d="".join(paths)) for kind, paths in drawn.items() if paths),
        joined(*links),
        viewBox=f"0 0 {wide} {_TALL}",
        preserveAspectRatio="none",
        class_="profile",
        role="img",
        aria_label=_told(quantity, entries),
    )


def _heights(found: Distribution, axis: Axis) -> list[float]:
    """From the top, as SVG counts."""
    places = axis.place(np.array(found.quantiles))
    return [round(h, 1) for h in np.clip(_TALL * (1 - places), _EDGE, _TALL - _EDGE).tolist()]


def _told(quantity: Quantity, entries: Sequence[Entry]) -> str:
    """The picture in words: the numbers of each site stand in the list."""
    spread = [entry.spread[quantity.key] for entry in entries if quantity.key in entry.spread]
    middles = [found.quantiles[3] for found in spread if found.quantiles]
    if not middles:
        return f"{quantity.name}: no numbers"
    ends = f"{min(middles):.3g} to {max(middles):.3g}"
    return f"{quantity.name} of {len(middles)} sites in order: medians from {ends}"

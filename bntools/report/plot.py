"""A picture of a recalibration: how far each layer had drifted, in order of execution."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bntools.core.atomic import check_place, replacing
from bntools.errors import UsageError

if TYPE_CHECKING:  # the first imports torch, the others are an extra
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bntools.core.drift import Drift, LayerDrift

# What a file of each ending would otherwise say of the hour, or of the version that drew it.
_SILENT: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
_STILL, _MOVED, _MARK = "#4477aa", "#cc6633", "#aa3377"
_NARROW, _WIDE = 6.4, 16.0
"""Inches, of a figure of few and of very many layers."""
_LABELS = 60
"""How many names stand side by side at most."""
_LONG = 10.0
"""From which value on an axis is compressed: a channel that never varied before moves by 1e19 σ."""
_BEYOND = 1e100
"""Where no axis leads, as to NaN and infinity: a cross stands for the bar."""


def check_plot(path: str | os.PathLike[str], *, force: bool) -> None:
    """An error now rather than after the work, if a figure could not be drawn or written.

    Args:
        path: where to; the ending is the format.
        force: replace a file that is there.

    Raises:
        UsageError: if the ending is none of .png, .svg and .pdf, the folder is not there, the path is taken,
            or matplotlib cannot be imported.
    """
    path = Path(path)
    if path.suffix not in _SILENT:
        raise UsageError(
            f"{path}: {path.suffix or 'no ending'} is no format of a figure",
            todo="name a .png, .svg or .pdf",
        )
    check_place(path, force)
    try:
        import_module("matplotlib")
        import_module("matplotlib.figure")
    except ImportError as error:
        raise UsageError(
            f"{path}: a figure needs matplotlib, which cannot be imported: {error}",
            todo="pip install 'bntools[plot]'",
        ) from error


def plot_drift(drift: Drift, path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Draw a drift into a file, which appears whole or not at all; equal drifts give equal bytes.

    Args:
        drift: the report of `bntools.recalibrate`.
        path: a .png, .svg or .pdf.
        force: replace a file that is there.

    Raises:
        UsageError: as `check_plot`.
        SourceError: if the file cannot be written.
    """
    check_plot(path, force=force)
    from matplotlib import style

    path = Path(path)
    buffer = io.BytesIO()
    # The style of whoever calls is left out: it may ask for TeX, which would run what is in a name.
    # Without the salt an SVG's ids are random; with fonttype none its names can be searched for.
    with style.context(["default", {"svg.hashsalt": "bntools", "svg.fonttype": "none"}]):
        draw(drift).savefig(buffer, format=path.suffix[1:], dpi=150, metadata=_SILENT[path.suffix])
    with replacing(path, force=force) as part:
        part.write_bytes(buffer.getvalue())


def draw(drift: Drift) -> Figure:
    """Three panels: the shift of means, that of variances, and the divergence with its threshold."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from bntools.core.drift import DRIFTED

    layers = drift.layers
    moved = [layer.drifted for layer in layers]
    first = moved.index(True) if any(moved) else None
    # Not by pyplot, which holds on to every figure and may open a window.
    figure = Figure((min(max(_NARROW, 1.5 + 0.2 * len(layers)), _WIDE), 8.0), layout="constrained")
    mean, var, divergence = figure.subplots(3, sharex=True)
    lost = [
        *_bars(mean, [layer.mean for layer in layers], moved, [layer.error_mean for layer in layers]),
        *_bars(var, [layer.var for layer in layers], moved, [layer.error_var for layer in layers]),
        *_bars(divergence, [layer.divergence for layer in layers], moved),
    ]
    mean.set_ylabel("largest |Δμ|/σ")
    var.set_ylabel("largest |Δlog σ²|")
    divergence.set_ylabel("divergence")
    figure.align_ylabels()
    _logarithmic(divergence, [DRIFTED, *(layer.divergence for layer in layers)])
    divergence.axhline(DRIFTED, color=_MARK, linewidth=1)
    legend = [Line2D([], [], color=_MARK, linewidth=1, label=f"a layer above {DRIFTED} has drifted")]
    if any(layer.error_mean is not None for layer in layers):
        legend.append(Line2D([], [], color="black", marker="|", linestyle="", label="standard error"))
    if lost:
        legend.append(Line2D([], [], color=_MARK, marker="x", linestyle="", label="no finite number"))
    if first is None:
        title = "no layer had drifted" if layers else "no BatchNorm was recalibrated"
    else:
        title = f"drifted from {_name(layers[first], 60)} on"
        for axes in (mean, var, divergence):
            axes.axvline(first, color=_MARK, linewidth=1, linestyle=":", zorder=0)
        legend.append(Line2D([], [], color=_MARK, linewidth=1, linestyle=":", label="the first one"))
    _ticks(divergence, layers)
    # A name comes from the model, and is no mathematics: one with a $ in it would be an error.
    figure.suptitle(title, parse_math=False)
    batches = "1 batch" if drift.batches == 1 else f"{drift.batches} batches"
    mean.set_title(f"{drift.samples} samples in {batches}", fontsize="small")
    figure.legend(handles=legend, loc="outside lower center", ncols=4, fontsize="small", frameon=False)
    return figure


def _bars(
    axes: Axes, heights: Sequence[float], moved: Sequence[bool], errors: Sequence[float | None] = ()
) -> list[int]:
    """A bar for each layer, or a cross where statistics were no numbers before; the places of the crosses."""
    places = range(len(heights))
    lost = [place for place in places if not heights[place] < _BEYOND]
    finite = [height if height < _BEYOND else 0.0 for height in heights]
    known = [e if e is not None and e < _BEYOND else math.nan for e in errors] or None
    whiskers = {"elinewidth": 0.8, "capsize": 1.5}
    axes.bar(places, finite, color=[_MOVED if m else _STILL for m in moved], yerr=known, error_kw=whiskers)
    axes.plot(lost, [0.05] * len(lost), "x", color=_MARK, transform=axes.get_xaxis_transform())
    axes.set_ylim(bottom=0)
    if max(finite, default=0.0) > _LONG:
        axes.set_yscale("symlog", linthresh=1)
        axes.locator_params("y", numticks=7)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    return lost


def _logarithmic(axes: Axes, heights: Sequence[float]) -> None:
    """A bar of 0 has no place on this axis, and is not drawn; the others start from the lower edge."""
    positive = [height for height in heights if 0 < height < _BEYOND]
    axes.set_yscale("log", nonpositive="clip")
    axes.set_ylim(max(min(positive) / 3, 1e-9), max(positive) * 3)


def _ticks(axes: Axes, layers: Sequence[LayerDrift]) -> None:
    """The names below the lowest panel, each at its layer; of many every second, third, …"""
    places = range(0, len(layers), -(-len(layers) // _LABELS) or 1)
    names = [_name(layers[place], 28) for place in places]
    axes.set_xticks(places, names, rotation=90, fontsize=7, parse_math=False)
    few = max(6 - len(layers), 0) / 2  # one bar alone is no wall
    axes.set_xlim(-0.7 - few, len(layers) - 0.3 + few)


def _name(layer: LayerDrift, most: int) -> str:
    """On one line, in characters that the font has, others written out; a long one without its middle."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    drawn = get_font(findfont(FontProperties())).get_charmap()
    text = "".join(
        c if c.isprintable() and ord(c) in drawn else c.encode("unicode_escape").decode("ascii")
        for c in layer.path
    )
    if len(text) > most:
        text = f"{text[: most // 2]}…{text[len(text) - (most - 1) // 2 :]}"
    return text or "the model"

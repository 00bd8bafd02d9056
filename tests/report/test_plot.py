"""The picture of a recalibration: it shows the numbers of the drift, whatever the names and however many."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from PIL import Image

from bntools.core.drift import DRIFTED, Drift, LayerDrift
from bntools.errors import SourceError, UsageError
from bntools.report import plot
from bntools.report.plot import check_plot, draw, plot_drift

ROOT = Path(__file__).parents[2]
ENDINGS = [".png", ".svg", ".pdf"]
SMALL = (
    LayerDrift("stem.bn", 0.05, 0.1, DRIFTED / 4, 1, 0.01, 0.03),
    LayerDrift("body.bn1", 0.4, 0.2, 2 * DRIFTED, 1, 0.02, 0.04),
    LayerDrift("body.bn2", 0.2, 0.7, DRIFTED / 2, 1, 0.03, 0.05),
    LayerDrift("body.bn3", 0.9, 0.3, 8 * DRIFTED, 1, 0.04, 0.06),
)


def drift(*layers: LayerDrift) -> Drift:
    return Drift(layers, samples=70, batches=5, groups=1, virtual_batch=70)


def many(count: int) -> Drift:
    return drift(*(LayerDrift(f"layer{k}.bn", k / 100, k / 200, k / 1e4, 1, 0.1, 0.1) for k in range(count)))


def heights(axes: Axes) -> list[float]:
    (bars,) = (each for each in axes.containers if isinstance(each, BarContainer))
    return [bar.get_height() for bar in bars]


def whiskers(axes: Axes) -> dict[float, float]:
    """Half the length of each, by its place."""
    (errors,) = (each for each in axes.containers if isinstance(each, ErrorbarContainer))
    (lines,) = errors.lines[2]
    drawn = [segment for segment in lines.get_segments() if len(segment)]
    return {float(segment[0, 0]): float(np.ptp(segment[:, 1])) / 2 for segment in drawn}


def crosses(axes: Axes) -> list[float]:
    return [
        x for line in axes.lines if line.get_marker() == "x" for x in np.asarray(line.get_xdata()).tolist()
    ]


def upright(axes: Axes) -> list[float]:
    """Where the vertical lines stand."""
    found = [np.asarray(line.get_xdata()).tolist() for line in axes.lines if line.get_linestyle() == ":"]
    return [x for xs in found for x in set(xs)]


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[-1].get_xticklabels()]


def title(figure: Figure) -> str:
    return figure.get_suptitle()


# What it shows


def test_the_bars_are_the_numbers_of_the_layers() -> None:
    mean, var, divergence = draw(drift(*SMALL)).axes
    assert heights(mean) == [layer.mean for layer in SMALL]
    assert heights(var) == [layer.var for layer in SMALL]
    assert heights(divergence) == [layer.divergence for layer in SMALL]
    assert divergence.get_yscale() == "log"
    assert all(
        low <= value <= high
        for axes in (mean, var, divergence)
        for low, high in [axes.get_ylim()]
        for value in heights(axes)
    )


def test_the_whiskers_are_the_standard_errors_where_they_are_known() -> None:
    unknown = LayerDrift("unknown", 0.3, 0.3, 0.001)
    mean, var, _ = draw(drift(*SMALL[:2], unknown, *SMALL[2:])).axes
    assert whiskers(mean) == pytest.approx({0: 0.01, 1: 0.02, 3: 0.03, 4: 0.04})
    assert whiskers(var) == pytest.approx({0: 0.03, 1: 0.04, 3: 0.05, 4: 0.06})


def test_the_first_that_drifted_is_named_and_marked() -> None:
    figure = draw(drift(*SMALL))
    assert "body.bn1" in title(figure)
    assert [upright(axes) for axes in figure.axes] == [[1], [1], [1]]
    assert "70 samples in 5 batches" in figure.axes[0].get_title()
    level = [line.get_ydata() for line in figure.axes[2].lines if line.get_linestyle() == "-"]
    assert list(level[0]) == [DRIFTED, DRIFTED]
    colours = [bar.get_facecolor() for bar in figure.axes[0].patches]
    assert colours[1] == colours[3] != colours[0] == colours[2]


def test_none_that_drifted_is_none_marked() -> None:
    figure = draw(drift(SMALL[0], SMALL[2]))
    assert title(figure) == "no layer had drifted"
    assert [upright(axes) for axes in figure.axes] == [[], [], []]


def test_a_batchnorm_that_is_the_whole_model_can_be_the_first() -> None:
    figure = draw(drift(LayerDrift("", 1, 1, 1)))
    assert title(figure) == "drifted from the model on"
    assert upright(figure.axes[0]) == [0]


@pytest.mark.parametrize("count", [1, 50, 300])
def test_names_stand_at_their_layers_and_do_not_run_into_one_another(count: int) -> None:
    figure = draw(many(count))
    places = figure.axes[-1].get_xticks().tolist()
    assert labels(figure) == [f"layer{place}.bn" for place in places]
    assert places == list(range(0, count, places[1] if len(places) > 1 else 1))
    assert len(heights(figure.axes[0])) == count
    figure.draw_without_rendering()
    assert figure.get_figwidth() <= 16
    boxes = [text.get_window_extent() for text in figure.axes[-1].get_xticklabels()]
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_a_drift_without_layers_is_a_figure_that_says_so() -> None:
    figure = draw(drift())
    assert title(figure) == "no BatchNorm was recalibrated"
    figure.draw_without_rendering()


# Numbers and names that a picture does not expect


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "name",
    ["$", "a$\\frac{$", "$x^2$", "模型", "a\nb\x00\x1b[2J\u202e\ud800", "x" * 999, "<&>\"'--", "%(n)s{}"],
)
def test_any_name_is_drawn_as_it_is_spelt(tmp_path: Path, name: str, ending: str) -> None:
    plot_drift(drift(LayerDrift(name, 1, 1, 1)), tmp_path / f"x{ending}")
    figure = draw(drift(LayerDrift(name, 1, 1, 1)))
    (label,) = labels(figure)
    assert label.isprintable()
    assert len(label) <= 28
    assert len(title(figure)) <= 80
    if name.isascii() and name.isprintable() and len(name) < 28:
        assert label == name
        if ending == ".svg":
            assert name in texts(tmp_path / "x.svg")


def test_a_long_name_loses_its_middle() -> None:
    (label,) = labels(draw(drift(LayerDrift("begin." + "middle." * 20 + "end", 1, 1, 1))))
    assert label.startswith("begin.")
    assert label.endswith(".end")


def test_what_was_no_number_is_marked() -> None:
    lost = LayerDrift("lost", math.nan, math.inf, math.inf, 1, math.nan, math.inf)
    figure = draw(drift(SMALL[0], lost, SMALL[1]))
    assert [crosses(axes) for axes in figure.axes] == [[1], [1], [1]]
    assert title(figure) == "drifted from lost on"
    figure.draw_without_rendering()


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_channel_that_never_varied_leaves_the_others_visible(tmp_path: Path, ending: str) -> None:
    dead = LayerDrift("dead", 4e18, 87.6, 3e37)
    plot_drift(drift(SMALL[1], dead, LayerDrift("same", 0, 0, 0)), tmp_path / f"x{ending}")
    figure = draw(drift(SMALL[1], dead))
    figure.draw_without_rendering()
    for axes in figure.axes:
        small = next(bar.get_window_extent() for bar in axes.patches)
        assert small.y1 - max(small.y0, axes.bbox.y0) > 2  # pixels


# The files


def texts(path: Path) -> list[str]:
    return [
        each.text for each in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text") if each.text
    ]


def is_whole(path: Path) -> bool:
    content = path.read_bytes()
    if path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
            return image.format == "PNG" and min(image.size) > 500
    if path.suffix == ".svg":
        return "body.bn1" in texts(path)
    return content.startswith(b"%PDF-") and content.rstrip().endswith(b"%%EOF")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_is_of_the_kind_of_its_ending(tmp_path: Path, ending: str) -> None:
    plot_drift(drift(*SMALL), tmp_path / f"x{ending}")
    assert is_whole(tmp_path / f"x{ending}")
    assert [each.name for each in tmp_path.iterdir()] == [f"x{ending}"]


@pytest.mark.zoo
def test_equal_drifts_give_equal_bytes(tmp_path: Path) -> None:
    """In another process, another second and another style too."""
    code = (
        "import sys, matplotlib; matplotlib.rcParams['font.size'] = 20\n"
        "from tests.report.test_plot import *; [plot_drift(drift(*SMALL), path) for path in sys.argv[1:]]"
    )
    there = [tmp_path / f"there{ending}" for ending in ENDINGS]
    subprocess.run([sys.executable, "-c", code, *map(str, there)], check=True, cwd=ROOT)
    for path in there:
        here, other = (path.with_stem(stem) for stem in ("here", "other"))
        plot_drift(drift(*SMALL), here)
        plot_drift(drift(*SMALL[1:]), other)
        assert here.read_bytes() == path.read_bytes() != other.read_bytes()


@pytest.mark.zoo
def test_nothing_of_matplotlib_is_left_changed(tmp_path: Path) -> None:
    before = matplotlib.rcParams.copy()
    plot_drift(drift(*SMALL), tmp_path / "x.svg")
    assert matplotlib.rcParams.copy() == before
    code = (
        "import sys; from tests.report.test_plot import *; plot_drift(drift(*SMALL), sys.argv[1])\n"
        "assert 'matplotlib.figure' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "y.png")], check=True, cwd=ROOT)


def test_a_style_that_asks_for_tex_is_left_aside(tmp_path: Path) -> None:
    with matplotlib.rc_context({"text.usetex": True}):
        plot_drift(drift(LayerDrift("\\input{secret}", 1, 1, 1)), tmp_path / "x.png")
    assert is_whole(tmp_path / "x.png")


# What is refused, before any work


def refused(path: Path, *, force: bool = False) -> str:
    messages = set()
    for ask in (check_plot, lambda path, force: plot_drift(drift(*SMALL), path, force=force)):
        with pytest.raises(UsageError) as caught:
            ask(path, force=force)
        messages.add(str(caught.value))
    (message,) = messages
    return message


@pytest.mark.parametrize("name", ["x", "x.jpg", "x.png.exe", ".png"])
def test_another_ending(tmp_path: Path, name: str) -> None:
    assert ".png, .svg or .pdf" in refused(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_no_folder(tmp_path: Path) -> None:
    assert "no folder" in refused(tmp_path / "missing" / "x.png")
    (tmp_path / "folder.png").mkdir()
    assert "a folder" in refused(tmp_path / "folder.png", force=True)
    assert "too long" in refused(tmp_path / f"{'x' * 300}.png")


def test_a_file_that_is_there_stays_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_text("mine")
    assert "--force" in refused(path)
    assert path.read_text() == "mine"
    check_plot(path, force=True)
    plot_drift(drift(*SMALL), path, force=True)
    assert is_whole(path)


def test_a_file_that_comes_in_the_meantime_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(drift: Drift) -> Figure:
        (tmp_path / "x.png").write_text("mine")
        return draw(drift)

    monkeypatch.setattr(plot, "draw", slow)
    with pytest.raises(UsageError, match="exists"):
        plot_drift(drift(*SMALL), tmp_path / "x.png")
    assert (tmp_path / "x.png").read_text() == "mine"


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_plot(tmp_path / "x.png", force=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'bntools[plot]'" in refused(tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("old", [None, "mine"])
def test_a_write_that_fails_leaves_what_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str | None
) -> None:
    path = tmp_path / "x.png"
    if old is not None:
        path.write_text(old)

    def full(handle: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SourceError, match="No space left"):
        plot_drift(drift(*SMALL), path, force=True)
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == ({"x.png": old} if old else {})

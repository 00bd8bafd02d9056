"""stdout is the result, stderr is the talk; what libraries and models say is neither."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bntools.cli.options import Format
from bntools.cli.render import Sink
from tests.cli import nets
from tests.cli.conftest import Run

Saved = Callable[..., Path]
ON = ("--input", nets.SHAPE)
FORMATS = ["text", "json", "github", "markdown"]


@pytest.mark.parametrize("verb", ["inspect", "fold"])
def test_the_result_alone_is_on_stdout(run: Run, saved: Saved, verb: str) -> None:
    ran = run(verb, saved(), *ON)
    assert ran.out
    assert ran.err == ""


def test_errors_are_on_stderr(run: Run) -> None:
    ran = run("fold", "gone.pt")
    assert ran.out == ""
    assert len(ran.err.splitlines()) == 2


def test_a_training_model_is_noted_on_stderr(run: Run, saved: Saved) -> None:
    saved(nets.net().train())
    ran = run("fold", "model.pt", *ON, "--dry-run")
    assert "--keep-mode" in ran.err
    assert "note" not in ran.out
    quiet = run("fold", "model.pt", *ON, "--dry-run", "--quiet")
    assert quiet.err == ""
    assert quiet.out == ran.out


def test_quiet_still_tells_errors(run: Run) -> None:
    assert "there is no such file" in run("fold", "gone.pt", "-q").err


@pytest.mark.parametrize("form", FORMATS)
def test_what_a_model_says_does_not_reach_stdout(run: Run, form: str) -> None:
    ran = run("fold", "tests.cli.nets:chatty", *ON, "--dry-run", "--format", form)
    assert ran.code == 0
    for text in ("said on stdout", "warned about it"):
        assert text not in ran.out
        assert text not in ran.err


@pytest.mark.parametrize("form", FORMATS)
def test_what_a_model_says_is_shown_on_demand(run: Run, form: str) -> None:
    ran = run("fold", "tests.cli.nets:chatty", *ON, "--dry-run", "-v", "--format", form)
    for text in ("said on stdout", "warned about it"):
        assert text in ran.err
        assert text not in ran.out


def test_what_a_model_says_is_shown_for_errors_too(run: Run) -> None:
    """That is when one asks for it."""
    ran = run("fold", "tests.cli.nets:chatty", "--input", "2x7x8x8", "-v")
    assert ran.code == 4
    assert "said on stdout" in ran.err


def test_names_from_a_file_cannot_steer_the_terminal(run: Run, saved: Saved) -> None:
    """A site's name is a stranger's text: no escape sequence of it may reach a screen."""
    for verb in ("inspect", "fold"):
        ran = run(verb, saved(nets.odd_names()), *ON)
        assert ran.code == 0
        assert "\x1b" not in ran.out + ran.err
        assert r"[bold]%0A\x1b[2J\nz|" in ran.out
    ran = run("fold", "gone\x1b[2J\n[bold].pt")
    assert "\x1b" not in ran.err
    assert r"gone\x1b[2J" in ran.err
    assert len(ran.err.splitlines()) == 2


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("term", ["dumb", "xterm-256color"])
def test_no_colour_where_it_is_not_wanted(
    run: Run, saved: Saved, monkeypatch: pytest.MonkeyPatch, form: str, term: str
) -> None:
    monkeypatch.setenv("TERM", term)
    model = saved(nets.partly())
    plain = run("fold", model, *ON, "--dry-run", "--format", form)
    assert "\x1b" not in plain.out + plain.err
    monkeypatch.setenv("FORCE_COLOR", "1")
    forced = run("fold", model, *ON, "--dry-run", "--format", form)
    # Only people look at colours: what programs read is the same, forced or not.
    assert ("\x1b" in forced.out) == (form == "text" and term != "dumb")
    if form != "text":
        assert forced.out == plain.out
    monkeypatch.setenv("NO_COLOR", "1")
    both = run("fold", model, *ON, "--dry-run", "--format", form)
    assert not any(f"\x1b[{colour}m" in both.out for colour in range(30, 38))


def test_forced_colour_is_no_terminal(run: Run, saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that moves, in the log of a CI run that forces colours, is a page of escape sequences."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    ran = run("fold", saved(), *ON, "--dry-run")
    assert ran.err == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("term", "quiet", "moves"), [("xterm", False, True), ("xterm", True, False), ("dumb", False, False)]
)
def test_a_moving_line_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, term: str, quiet: bool, moves: bool
) -> None:
    monkeypatch.setenv("TERM", term)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    sink = Sink("fold", Format.text, quiet=quiet, verbose=False)
    sink.step("measuring")
    sink.settle()
    assert ("measuring" in terminal.getvalue()) == moves
    if not moves:
        assert terminal.getvalue() == ""


def test_a_name_that_stdout_cannot_spell(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    """With LANG=C a model with an accent in its name is no bug."""
    from bntools.__main__ import main

    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(["inspect", str(saved(name="modèle.pt")), *ON]) == 0
    assert rb"mod\xe8le.pt" in raw.getvalue()


def test_long_work_has_bars_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        sink = Sink("recalibrate", Format.text, quiet=False, verbose=False)
        sink.step("loading")
        sink.advance("reading", 64, 256)
        sink.advance("recalibrating", 32.5, 256)
        sink.advance("guessing", 3, None)
        sink.settle()
        said = stream.getvalue()
        for text in ("64 of 256 samples", "recalibrating", "3 samples", "left"):
            assert (text in said) is shown

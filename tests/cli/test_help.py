"""What a terminal of 80 columns shows before anything is done."""

from __future__ import annotations

import re

import pytest

import bntools
from bntools.cli.app import EXIT_CODES
from tests.cli.conftest import Run


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]], ids=" ".join)
def test_the_front_page(run: Run, arguments: list[str]) -> None:
    shown = run(*arguments)
    text = shown.out + shown.err
    assert shown.code == (0 if arguments else 2)
    for verb in ("inspect", "fold", "freeze", "unfreeze", "replay"):
        assert re.search(rf"^│ {verb} ", text, re.MULTILINE)


def test_the_exit_codes_do_not_wrap(run: Run) -> None:
    """A row that wraps has its second half at the margin, where a code would stand."""
    lines = run("--help").out.splitlines()
    rows = [line.strip() for line in EXIT_CODES.splitlines() if re.match(r" +\d", line)]
    assert len(rows) == 8
    start = next(i for i, line in enumerate(lines) if line.strip() == "Exit codes")
    assert [line.strip() for line in lines[start + 1 : start + 9]] == rows


@pytest.mark.parametrize("verb", ["inspect", "fold", "freeze", "unfreeze", "replay"])
def test_each_verb_explains_itself(run: Run, verb: str) -> None:
    ran = run(verb, "--help")
    assert ran.code == 0
    assert f"bntools {verb}" in ran.out
    assert max(len(line) for line in ran.out.splitlines()) <= 80
    for option in ("--unsafe", "--json", "--quiet", "--traceback"):
        assert option in ran.out


def test_a_paragraph_is_not_broken_in_the_middle(run: Run) -> None:
    """Rich keeps the line ends of the source, and wraps what is too long besides."""
    text = run("fold", "--help").out
    assert re.search(r"^ Every BatchNorm .* why not\. *\n The result .* is written\. *$", text, re.MULTILINE)


def test_the_version(run: Run) -> None:
    ran = run("--version")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"bntools {bntools.__version__}\npython ")

"""The pages say what the code does, as far as a machine can tell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bntools.cli.app import EXIT_CODES
from bntools.core.reasons import REMEDIES, Reason
from bntools.errors import BntoolsError

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def test_every_reason_has_a_remedy_and_a_line() -> None:
    pages = [
        (ROOT / "docs" / name).read_text("utf-8")
        for name in ("fold.md", "recalibrate.md", "freeze.md", "swap.md")
    ]
    listed = {each for page in pages for each in re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)}
    assert listed == {reason.value for reason in Reason}
    assert set(REMEDIES) == set(Reason)


def test_the_menu_lists_every_page() -> None:
    menu = (ROOT / "mkdocs.yml").read_text("utf-8")
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert set(re.findall(r"(\S+\.md)", menu)) == pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


def test_every_exit_code_is_in_the_help() -> None:
    codes = {int(code) for code in re.findall(r"^ +(\d+) ", EXIT_CODES, re.MULTILINE)}
    used = {error.exit_code for error in _descendants(BntoolsError)}
    assert codes == used | {0, 5, 101, 130}


def _descendants(kind: type[BntoolsError]) -> list[type[BntoolsError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in _descendants(child))]

"""The pages say what the code does, as far as a machine can tell."""

from __future__ import annotations

import re
from pathlib import Path
from pkgutil import resolve_name

import pytest

import bntools
from bntools.cli.app import EXIT_CODES
from bntools.core.reasons import REMEDIES, Reason
from bntools.errors import BntoolsError
from tests import reference

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


def test_the_page_of_the_command_line_is_made_of_the_commands() -> None:
    assert reference.PAGE.read_text("utf-8") == reference.page(), "python -m tests.reference --write"


def test_it_has_each_option_where_it_belongs() -> None:
    """By what `[tool.bntools]` knows of the commands, and by the first lines of what they say."""
    sections = re.split(r"^## ", reference.PAGE.read_text("utf-8"), flags=re.MULTILINE)
    by_verb = {section.partition("\n")[0]: section for section in sections}
    for verb, options in reference.options_of(reference.COMMAND).items():
        told = re.findall(r"^\| (?:<code>|`)--([a-z0-9-]+)", by_verb[verb], re.MULTILINE)
        assert sorted(told) == sorted(options), verb
    assert "| `--fp16` | Weights of float16, each rounded once. |" in by_verb["export"]
    assert "| `--max-remaining N` |" in by_verb["fold"]
    assert "| `--force` |" not in by_verb["verify"]
    codes = re.findall(r"^\| `(\d+)`", by_verb["Exit codes"], re.MULTILINE)
    assert codes == ["0", "1", "2", "3", "4", "5", "101", "130"]
    assert "`--unsafe`, " in by_verb["In a file"]
    assert "`--strict`" not in by_verb["In a file"]


def test_every_name_of_the_package_is_on_the_page_of_python_once() -> None:
    text = (ROOT / "docs" / "reference" / "api.md").read_text("utf-8")
    told = re.findall(r"^::: bntools\.([\w.]+)$", text, re.MULTILINE)
    assert sorted(name for name in told if "." not in name) == bntools.__all__
    for name in told:
        assert resolve_name(f"bntools.{name}").__doc__, name


def test_every_schema_is_on_its_page_once() -> None:
    text = (ROOT / "docs" / "reference" / "schemas.md").read_text("utf-8")
    told = re.findall(r"\]\(\.\./schema/([\w.]+)\)", text)
    assert sorted(told) == sorted(path.name for path in (ROOT / "docs" / "schema").iterdir())


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

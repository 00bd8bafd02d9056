"""The site of `make docs`: what its build does not let pass, and that its pages fetch nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

import bntools

pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'bntools[docs]', or make docs")
ROOT = Path(__file__).parent.parent


def build(config: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        cwd=ROOT,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    ran = build(ROOT / "mkdocs.yml", folder)
    assert ran.returncode == 0, ran.stderr
    return folder


def small(folder: Path, pages: dict[str, str], menu: list[str]) -> subprocess.CompletedProcess[str]:
    """Build these pages with the settings of the site."""
    settings: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    settings |= {"nav": menu, "plugins": ["search"], "docs_dir": str(folder / "docs")}
    for name, text in pages.items():
        path = folder / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    config = folder / "mkdocs.yml"
    config.write_text(yaml.safe_dump(settings), "utf-8")
    return build(config, folder / "site")


SOUND = {"index.md": "# One\n\n[Two](two.md#here)\n", "two.md": "# Two\n\n## Here\n\n[One](index.md)\n"}


def test_a_sound_site_is_built(tmp_path: Path) -> None:
    ran = small(tmp_path, SOUND, ["index.md", "two.md"])
    assert (ran.returncode, "WARNING" in ran.stderr) == (0, False), ran.stderr
    assert (tmp_path / "site" / "two.html").is_file()


@pytest.mark.parametrize(
    ("pages", "menu", "said"),
    [
        ({"index.md": "[Two](too.md)\n"}, ["index.md", "two.md"], "too.md"),
        ({"index.md": "[Two](two.md#there)\n"}, ["index.md", "two.md"], "#there"),
        ({"index.md": "# One\n\n[here](#nowhere)\n"}, ["index.md", "two.md"], "#nowhere"),
        ({"index.md": "[Changes](../CHANGELOG.md)\n"}, ["index.md", "two.md"], "CHANGELOG.md"),
        ({"index.md": "[Two](two)\n"}, ["index.md", "two.md"], "two"),
        ({"index.md": "[Two](/two.md)\n"}, ["index.md", "two.md"], "two.md"),
        ({"index.md": "![A picture](two.png)\n"}, ["index.md", "two.md"], "two.png"),
        ({"more/three.md": "# Three\n"}, ["index.md", "two.md"], "three.md"),
        ({}, ["index.md", "two.md", "gone.md"], "gone.md"),
    ],
    ids=["page", "anchor", "own anchor", "outside", "no file", "absolute", "picture", "not in menu", "menu"],
)
def test_a_broken_one_is_not(tmp_path: Path, pages: dict[str, str], menu: list[str], said: str) -> None:
    ran = small(tmp_path, SOUND | pages, menu)
    assert ran.returncode != 0
    assert re.search(rf"WARNING[^*]*{re.escape(said)}", ran.stderr), ran.stderr


class Requests(HTMLParser):
    """What a browser fetches for a page: not what a reader may click on."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        about = dict(attrs)
        if tag == "link" and about.get("rel") not in ("canonical", "prev", "next"):
            self.found.append(about.get("href") or "")
        if tag in ("script", "img", "iframe", "source", "video", "object", "embed"):
            self.found.append(about.get("src") or about.get("data") or "")


def requests(html: str) -> list[str]:
    parser = Requests()
    parser.feed(html)
    return [each for each in parser.found if re.match(r"(\w+:)?//", each) and not each.startswith("data:")]


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    assert {page.name: found for page in pages if (found := requests(page.read_text("utf-8")))} == {}
    styles = [style.read_text("utf-8") for style in site.rglob("*.css")]
    assert styles
    assert [found for text in styles for found in re.findall(r"url\(\W?(?:https?:)?//[^)]*", text)] == []


def test_it_would_be_found() -> None:
    assert requests(
        '<link rel="stylesheet" href="https://fonts.example/a.css"><a href="https://b.example">'
    ) == ["https://fonts.example/a.css"]
    assert requests('<script src="//c.example/d.js"></script><img src="e.png">') == ["//c.example/d.js"]


def test_pages_are_plain_files_and_nothing_else_is_among_them(site: Path) -> None:
    """Without a server there is no index.html of a folder."""
    assert (site / "reference" / "cli.html").is_file()
    assert [path.name for path in site.rglob("*.py")] == []
    text = (site / "index.html").read_text("utf-8")
    assert 'href="fold.html"' in text


def test_every_name_has_its_place_and_its_parts(site: Path) -> None:
    """Arguments, returns, raises and examples are tables and code, not prose."""
    text = (site / "reference" / "api.html").read_text("utf-8")
    for name in bntools.__all__:
        assert text.count(f'id="bntools.{name}"') == 1, name
    _, _, after = text.partition('id="bntools.fold"')
    fold = after.partition('id="bntools.recalibrate"')[0]
    for part in ("Parameters:", "Returns:", "Raises:", "Examples:"):
        assert part in fold
    assert re.search(r"<code>inplace</code>|>\s*inplace\s*<", fold)
    assert "&gt;&gt;&gt;" in fold
    assert "<blockquote>" not in text  # what becomes of an example that is not known for one
    assert "``" not in text  # and of an equation
    assert ", </span>" not in text


def test_a_broken_docstring_stops_the_build(tmp_path: Path) -> None:
    """An argument that is described and does not exist, in a package of its own."""
    settings: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    python = next(each for each in settings["plugins"] if "mkdocstrings" in each)["mkdocstrings"]["handlers"][
        "python"
    ]
    python["paths"] = [str(tmp_path)]
    python["options"]["extensions"] = [str(ROOT / each) for each in python["options"]["extensions"]]
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# One\n\n::: odd.f\n", "utf-8")
    settings |= {"nav": ["index.md"], "docs_dir": str(tmp_path / "docs")}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(settings), "utf-8")
    for names, code in (("a, b", 0), ("a, c", 1)):
        source = (
            f'def f(a: int, b: int) -> None:\n    """Do it.\n\n    Args:\n        {names}: both.\n    """\n'
        )
        (tmp_path / "odd.py").write_text(source, "utf-8")
        ran = build(tmp_path / "mkdocs.yml", tmp_path / "site")
        assert (ran.returncode != 0) == bool(code), ran.stderr
        shutil.rmtree(tmp_path / "site", ignore_errors=True)

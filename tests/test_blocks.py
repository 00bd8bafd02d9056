"""Every block of code in the README and the documentation is run, or read, or held against what it names."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.blocks import LANGUAGES, ROOT, Block, Wrong, blocks_of, run
from tests.given import given, write_given

PAGES = {
    str(page.relative_to(ROOT)): blocks_of(page)
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
ELSEWHERE = {
    "docs/ci.md": "tests/ci/test_page.py",  # workflows in a repository of its own
    "docs/troubleshooting.md": "tests/test_troubleshooting.py",  # errors, on files that are damaged
}
"""Pages whose blocks other tests run, each with files of its own."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every page starts with, made once."""
    folder = tmp_path_factory.mktemp("given")
    write_given(folder)
    return folder


@pytest.fixture
def folder(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of one page."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in os.environ if name.startswith("BNTOOLS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


@pytest.mark.parametrize("page", [page for page, blocks in PAGES.items() if blocks])
def test_a_block_says_what_it_is(page: str) -> None:
    odd = [
        f"{page}:{block.line}: {block.language!r}" for block in PAGES[page] if block.language not in LANGUAGES
    ]
    assert odd == []


@pytest.mark.parametrize("page", ELSEWHERE)
def test_what_is_run_elsewhere_is_run(page: str) -> None:
    assert PAGES[page]
    assert Path(page).name in (ROOT / ELSEWHERE[page]).read_text("utf-8")


@pytest.mark.parametrize("page", [page for page, blocks in PAGES.items() if blocks and page not in ELSEWHERE])
def test_the_code_of_a_page_runs(page: str, folder: Path) -> None:
    run(PAGES[page], given())


def page(folder: Path, text: str) -> list[Block]:
    (folder / "page.md").write_text(text, "utf-8")
    return blocks_of(folder / "page.md", folder)


def fenced(*blocks: tuple[str, str]) -> str:
    return "\n".join(f"```{language}\n{text}\n```\n" for language, text in blocks)


LOOK = "bntools inspect model.pt"


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ([("sh", LOOK)], [("", LOOK)]),
        ([("sh", LOOK)], [("bash", LOOK)]),
        ([("sh", f"{LOOK} --all")], [("sh", f"{LOOK} --every")]),
        ([("sh", f"# first\n{LOOK} --input \\\n  2x3x64x64")], [("sh", f"{LOOK} --input \\\n  2x4x64x64")]),
        ([("sh", f"{LOOK} --fail-on warning  # exit code 1")], [("sh", f"{LOOK} --fail-on warning")]),
        ([("sh", f"{LOOK} --fail-on error")], [("sh", f"{LOOK} --fail-on error  # exit code 1")]),
        ([("sh", f"{LOOK} --json > a.json")], [("sh", f"{LOOK} --json | jq .")]),
        ([("sh", "python -m bntools --version")], [("sh", "python -m bntool --version")]),
        (
            [("sh", f"torchrun --nproc-per-node 2 -m {LOOK}")],
            [("sh", f"torchrun --processes 2 -m {LOOK}")],
        ),
        ([("sh", "make test")], [("sh", "make tests")]),
        ([("sh", "pip install 'bntools[images]'")], [("sh", "pip install 'bntools[pictures]'")]),
        ([("sh", "python examples/transfer.py")], [("sh", "python examples/transfers.py")]),
        ([("sh", "python -m tests.schemas --write")], [("sh", "python -m tests.scheme --write")]),
        ([("sh", "pip install .")], [("sh", "rm -rf .")]),
        (
            [("sh", LOOK), ("text", "layer1.1  BatchNorm2d  …")],
            [("sh", LOOK), ("text", "layer1.1  GroupNorm  …")],
        ),
        (
            [("sh", LOOK), ("text", "folds  7 of 9 BatchNorms: …")],
            [("sh", LOOK), ("text", "goes  7 of 9 BatchNorms: …")],
        ),
        ([("python", "bn.inspect(model, inputs).sites")], [("python", "bn.inspect(model, inputs).calls")]),
        ([("python", "a = 1"), ("python", "a")], [("python", "a"), ("python", "a = 1")]),
        ([("python", "print(1 + 1)  # 2")], [("python", "print(1 + 1)  # 3")]),
        ([("python", ">>> 1 + 1\n2")], [("python", ">>> 1 + 1\n3")]),
        ([("python", "assert inputs.ndim == 4")], [("python", "assert inputs.ndim = 4")]),
        ([("json", '{"a": [1]}')], [("json", '{"a": [1}')]),
        ([("yaml", "a: [1]")], [("yaml", "a: [1")]),
        ([("toml", "[tool.odd]\nstrict = 1")], [("toml", "[tool.odd]\nstrict")]),
        ([("toml", "[tool.bntools]\nstrict = true")], [("toml", "[tool.bntools]\nstrict = 1")]),
        ([("text", "y = s·x + t")], [("text", "$ make test")]),
    ],
)
def test_what_is_wrong_on_a_page_is_found(
    folder: Path, right: list[tuple[str, str]], wrong: list[tuple[str, str]]
) -> None:
    run(page(folder, fenced(*right)), given())
    with pytest.raises(Wrong, match=r"^page\.md:\d+"):
        run(page(folder, fenced(*wrong)), given())


def test_it_is_told_by_page_and_line(folder: Path) -> None:
    with pytest.raises(Wrong, match=r"^page\.md:7: ZeroDivisionError"):
        run(page(folder, "# A page\n\n1. one\n\n   ```python\n   a = 0\n   1 / a\n   ```\n"), {})


def test_a_block_has_an_end(folder: Path) -> None:
    with pytest.raises(AssertionError, match=r"page\.md:3"):
        page(folder, "# A page\n\n```sh\nbntools\n")

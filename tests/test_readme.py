"""The README shows what the commands print, and pictures and figures that are those of this repository."""

from __future__ import annotations

import contextlib
import io
import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bntools.__main__ import main
from tests import picture
from tests.blocks import ROOT, blocks_of
from tests.given import write_given

README = (ROOT / "README.md").read_text("utf-8")
# A command, and what stands straight behind it.
SHOWN = [
    (one.text.strip(), other.text)
    for one, other in zip(blocks_of(ROOT / "README.md")[:-1], blocks_of(ROOT / "README.md")[1:], strict=True)
    if one.language == "sh" and other.language == "text" and other.behind
]


def masked(text: str) -> str:
    """Without what depends on the processor, or on what is installed: rounding errors, bytes, versions."""
    text = re.sub(r"\b\d\.\de-\d\d\b", "~", text)
    text = re.sub(r"\b\d+\.\d [kM]B\b|\bRuntime [\d.]+", "~", text)
    return re.sub(r"^bytes .*$", "bytes ~", text, flags=re.MULTILINE)


def shows(page: str, printed: str) -> bool:
    """Whether a block is what was printed, from first to last, but for what each ``…`` stands for."""
    parts = [re.escape(part) for part in masked(page).split("…")]
    return re.fullmatch(".*?".join(parts), masked(printed), re.DOTALL) is not None


def test_five_commands_print_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the page: what one writes the next may read."""
    write_given(tmp_path)
    (tmp_path / "model.onnx").unlink()
    for name in [name for name in os.environ if name.startswith("BNTOOLS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "100")
    assert [command.split()[1] for command, _ in SHOWN] == [
        "inspect",
        "fold",
        "recalibrate",
        "export",
        "verify",
    ]
    for command, page in SHOWN:
        printed = io.StringIO()
        streams = contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed)
        with contextlib.chdir(tmp_path), streams[0], streams[1]:
            assert main(command.split()[1:]) == 0, printed.getvalue()
        assert shows(page, printed.getvalue()), f"{command}\n{printed.getvalue()}"


@pytest.mark.parametrize(
    ("page", "right"),
    [
        ("a  3 of 3\nb\n", True),
        ("a  3 of 3\n…\n", True),
        ("…\nb\n", True),
        ("a  2 of 3\nb\n", False),
        ("a  3 of 3\n", False),  # what is left out is marked
        ("b\n", False),
        ("…\nb\na  3 of 3\n", False),
    ],
)
def test_what_is_left_out_is_marked(page: str, right: bool) -> None:
    assert shows(page, "a  3 of 3\nb\n") is right


def test_only_what_may_vary_is_masked() -> None:
    told = "off by 4.5e-16, 3 of 3, 12.2%, 86.5 kB\nbytes   92595   82379\n1.930  8x3x32x32 1e-08\n"
    assert masked(told) == "off by ~, 3 of 3, 12.2%, ~\nbytes ~\n1.930  8x3x32x32 1e-08\n"


@pytest.fixture(scope="module")
def drawn() -> str:
    return picture.picture(picture.said(*picture.COMMANDS))


def test_the_picture_is_that_of_a_run(drawn: str) -> None:
    assert picture.words(picture.PICTURE.read_text("utf-8")) == picture.words(drawn), (
        "python -m tests.picture --write"
    )
    seen = " ".join(picture.words(drawn))
    assert "folded 0 of 0 BatchNorms: 0 into conv0d, 0 into linear" in seen
    assert "proof passed" in seen


def test_equal_runs_give_equal_bytes(drawn: str) -> None:
    assert picture.picture(picture.said(*picture.COMMANDS)) == drawn


def test_the_picture_is_sound_and_asks_nobody_for_anything(drawn: str) -> None:
    for text in (drawn, picture.PICTURE.read_text("utf-8")):
        tree = ET.fromstring(text)
        assert tree.tag == "{http://www.w3.org/2000/svg}svg"
        assert {each.tag.rpartition("}")[2] for each in tree.iter()} <= {
            *("svg", "title", "style", "defs", "clipPath", "rect", "g", "text", "circle"),
        }
        inside = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert re.findall(r"https?:|@import|@font-face|href|url\((?!#)", inside) == []
        assert re.findall(r"/(?:tmp|home|root|work|Users)\b|[A-Z]:\\", inside) == []


def test_colours_are_in_the_picture(drawn: str) -> None:
    """Those of a sound line and of one that stays, besides white."""
    assert len(set(re.findall(r"fill: (#[0-9a-f]{6})", drawn))) >= 3
    assert "docs/images/fold.svg" in README


CLAIMS = {
    "docs/coverage.md": [
        "Of the 11362 calls of BatchNorm in the 174 models",
        "takes out 10778 (94.9%)",
        "on each model 10399 (91.5%). Another takes more out of: none.",
        "of the 137 models that both export: 700 by torch alone, in 26 models; 455 through bntools",
    ],
    "docs/recalibrate.md": [
        "| resnet18 | bntools | 4.4e-14 | 4.4e-14 | 4.4e-14 |",
        "| resnet18 | torch `update_bn` | 5.4e-01 | 2.1e-01 | 1.5e-01 |",
        "| resnet18 | fvcore `update_bn_stats` | 3.4e-01 | 1.5e-01 | 1.3e-01 |",
        "| resnet18 | 8 | 1.26 | 1.21 | 1.11 |",
        "| resnet18 | 32 | 1.24 | 1.23 | 1.16 |",
        "| resnet50 | 32 | 1.44 | 1.31 | 1.38 |",
        "| mobilenet_v3_large | 32 | 1.76 | 1.50 | 1.29 |",
    ],
    "docs/verify.md": [
        "| all | 200 | 198 | 198 | 191 | 198 | 198 | 0 |",
        "| none: false alarms | 8 | 0 |",
    ],
    "docs/swap.md": ["| auto | 99.6% | 99.6% | 99.6% | 22.4% |", "has 99.6 % with its BatchNorms"],
    "docs/transfer.md": ["| plain | 70 ± 5 |", "| frozen | 96 ± 1 |"],
}
FIGURES = {
    *("174", "11362", "91.5", "94.9"),
    *("137", "700", "455"),
    *("0.15", "0.13", "4.4e-14"),
    *("200", "198"),
    *("99.6", "22.4"),
    *("70", "96"),
    *("1.21", "1.76", "1.11", "1.38"),
}


@pytest.mark.parametrize("page", CLAIMS)
def test_what_is_claimed_stands_on_its_page(page: str) -> None:
    """Who measures anew changes the page, and then the README."""
    text = " ".join((ROOT / page).read_text("utf-8").split())
    assert [claim for claim in CLAIMS[page] if claim not in text] == []
    assert f"({page}" in README


def test_the_figures_of_the_claims_are_those_of_the_pages() -> None:
    section = README.partition("## What others do not do")[2].partition("\n## ")[0]
    told = set(re.findall(r"(?<![\w.-])\d+(?:\.\d+)?(?:e-\d+)?(?![\w]|\.\d)", section))
    assert told - {"18", "8", "0"} == FIGURES

"""The page about the sweep adds up by level, and names the models that another tool takes more out of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests import coverage, exported, zoo_rows
from tests.coverage import page
from tests.zoo_rows import Row


def found(sites: int, folded: int, refused: Mapping[str, int], error: float = 1e-14) -> Row:
    return {"sites": sites, "folded": folded, "refused": refused, "error": error, "site_error": 2e-14}


def peer(calls: int, left: int, wrong: bool = False) -> Row:
    return {"original": {"calls": calls}, "peers": {"torch.fx": {"left": left, "wrong": wrong}}}


def row(name: str, module: Row, program: Row) -> dict[str, Any]:
    return {"name": name, "module": module, "program": program}


ROWS = [
    row(
        "timm:one",
        found(10, 7, {"sibling": 3}),
        found(10, 10, {}) | {"seconds": {"capture": 2.0, "find": 1.0}},
    ),
    row(
        "timm:two",
        found(4, 1, {"blocked": 2, "sibling": 1}, 3e-12),
        {"not_exported": "no", "seconds": {"capture": 2.0, "find": 3.0}},
    ),
]


def test_it_adds_up_by_level() -> None:
    text = page(ROWS, {})
    assert "2 architectures: 2 of timm." in text
    assert "As a module, 2 models: 8 of 14 sites fold (57.1%)." in text
    assert "As a program, 1 models: 10 of 10 sites fold (100.0%)." in text
    assert "Refused: 4 sibling, 2 blocked." in text
    assert "The worst error in float64 is 3.0e-12 of its scale." in text
    assert "less than the capture on 1 of 2 models; most on timm:two, 1.50 of it." in text
    assert "another tool takes" not in text.lower()
    assert "| timm:two | 4 | 1 | not exported |" in text


def test_another_tool_that_takes_more_is_named() -> None:
    text = page(ROWS, {"timm:one": peer(10, 2), "timm:two": peer(4, 1)})
    assert "takes out 11 (78.6%), the best of torch.fx on each model 11 (78.6%)" in text
    assert "Another takes more out of: timm:two." in text


def test_what_the_exporter_leaves_stands_beside_what_stays_in_the_program() -> None:
    other = peer(10, 2)
    other["peers"]["onnx.export"] = {"left": 6, "wrong": False}
    text = page(ROWS, {"timm:one": other, "timm:two": other})
    assert "leaves 6 BatchNorms in the ONNX files of 1 of 1 models of timm" in text
    assert "in the programs of the same models 0 stay." in text


def test_what_is_wrong_does_not_count() -> None:
    text = page(ROWS, {"timm:one": peer(10, 2), "timm:two": peer(4, 0, wrong=True)})
    assert "the best of torch.fx on each model 8" in text
    assert "Another takes more out of: none." in text


def test_the_section_of_the_onnx_files_is_taken_over_as_it_is() -> None:
    old = exported.placed("# Coverage\n\nthe old one\n", "## ONNX files\n\n3 classifiers.\n")
    text = page(ROWS, {}, old)
    assert text == f"{page(ROWS, {})}\n{exported.taken(old)}\n"
    assert "3 classifiers." in text
    assert "the old one" not in text
    assert page(ROWS, {}, text) == text
    assert page(ROWS, {}, "# Coverage\n\nthe old one\n") == page(ROWS, {})  # a page that has none


def test_writing_keeps_the_section(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "coverage.md"
    file.write_text(exported.placed("# Coverage\n\nthe old one\n", "## ONNX files\n\n3 classifiers.\n"))
    monkeypatch.setattr(coverage, "PAGE", file)
    monkeypatch.setattr(coverage, "PEERS", tmp_path)
    monkeypatch.setattr(coverage, "ENTRIES", [])
    monkeypatch.setattr(zoo_rows, "read", lambda: ROWS)
    monkeypatch.setattr("sys.argv", ["coverage", "--write"])
    assert coverage.main() == 0
    assert "2 architectures: 2 of timm." in file.read_text()
    assert "3 classifiers." in file.read_text()

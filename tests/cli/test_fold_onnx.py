"""``bntools fold`` and ``inspect`` on an ONNX file, as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bntools.__main__ import main
from tests.onnx_by_hand import Draw, model, norm, types, written


@pytest.fixture
def path(tmp_path: Path) -> Path:
    draw = Draw(3)
    lines = [
        ("Conv", ["x", "w"], ["h"], {"name": "conv 1"}),
        norm("h", "i", "bn"),
        ("Relu", ["i"], ["j"], {}),
        norm("j", "y", "stays"),
    ]
    weights = {"w": draw.weight(8, 4, 3, 3), **draw.norm("bn", 8), **draw.norm("stays", 8)}
    return written(model(lines, weights, {"x": ["N", 4, 9, 8]}), tmp_path, "a model.onnx")


def call(*words: str | Path) -> int:
    return main([str(word) for word in words])


def test_it_is_folded_beside_itself(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = path.read_bytes()
    assert call("fold", path) == 0
    out = path.with_name("a model.folded.onnx")
    assert types(out) == ["Conv", "Relu", "BatchNormalization"]
    assert path.read_bytes() == before
    text = capsys.readouterr().out
    assert "an ONNX model of opset 17" in text
    assert "passed, by ONNX Runtime" in text
    assert call("fold", path) == 2
    assert "exists" in capsys.readouterr().err


def test_it_is_inspected_by_the_names_of_its_nodes(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("inspect", path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [site["name"] for site in found["sites"]] == ["bn", "stays"]
    assert found["plan"]["edits"][0]["into"] == ["conv_1"]
    assert found["input"] == "2x4x9x8 float32 (guessed)"


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["fold", "--dry-run"], 0, ""),
        (["fold", "--max-remaining", "0"], 1, "1 of 2 BatchNorms stay"),
        (["fold", "-o", "x.pt"], 2, "name a .onnx"),
        (["fold", "--arch", "timm:resnet18"], 2, "needs no --arch"),
        (["fold", "--bake-parametrizations"], 2, "a program has none"),
        (["fold", "--input", "2x5x9x8"], 4, "does not run on 2x5x9x8"),
        (["fold", "--inputs", "none.npz"], 2, "none.npz"),
        (["freeze"], 2, "cannot be changed by this verb"),
        (["swap", "--to", "group"], 2, "cannot be changed by this verb"),
        (["export"], 2, "ONNX"),
    ],
)
def test_what_is_asked_for_wrongly(
    words: list[str],
    code: int,
    told: str,
    path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(path.parent)
    assert call(words[0], path, *words[1:]) == code
    streams = capsys.readouterr()
    assert told in streams.err
    assert "Traceback" not in streams.err
    assert [each.name for each in path.parent.iterdir()] == ["a model.onnx"]


def test_verify_takes_both(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("fold", path, "-o", path.with_name("b.onnx"), "--quiet") == 0
    assert call("verify", path, path.with_name("b.onnx")) == 0
    assert "passed" in capsys.readouterr().out

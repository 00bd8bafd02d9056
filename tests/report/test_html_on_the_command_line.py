"""``bntools inspect --html``: a file beside the usual output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bntools.__main__ import main
from tests.season import season

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """In the file model.pt of the working directory, with an error in its second BatchNorm."""
    monkeypatch.chdir(tmp_path)
    layers = (nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Sigmoid(), nn.BatchNorm2d(4))
    model = season(nn.Sequential(*layers)).eval()
    model[3].running_var[0] = -1
    torch.save(model, "model.pt")
    return model


def call(*arguments: str) -> int:
    return main(["inspect", *arguments, *(("--input", "1x3x8x8") if "model.pt" in arguments else ())])


def test_it_is_written_beside_the_output_and_said_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("model.pt") == 0
    usual = capsys.readouterr()
    assert call("model.pt", "--html", "report.html") == 0
    ran = capsys.readouterr()
    assert ran.out == usual.out
    assert usual.err == ""
    assert "report.html: the page, " in ran.err
    told = Path("report.html").read_text("utf-8")
    assert "model.pt: BatchNorms" in told
    assert "What 1 layer computes is wrong" in told
    assert "a pickled module" in told
    assert call("model.pt", "--html", "quiet.html", "--quiet", "--json") == 0
    assert Path("quiet.html").read_text("utf-8") == told
    assert json.loads(capsys.readouterr().out)["schema"] == 1


def test_it_is_written_whatever_the_exit_code_is() -> None:
    """Who has a failure wants to look."""
    assert call("model.pt", "--html", "failed.html", "--fail-on", "error") == 1
    assert "negative-variance" in Path("failed.html").read_text("utf-8")
    assert main(["inspect", "model.pt", "--input", "1x7x8x8", "--html", "lost.html"]) == 4
    assert "does not run" in Path("lost.html").read_text("utf-8")


def test_a_file_that_is_there_stays_unless_forced(capsys: pytest.CaptureFixture[str]) -> None:
    Path("report.html").write_text("mine")
    assert call("model.pt", "--html", "report.html") == 2
    ran = capsys.readouterr()
    assert ran.out == ""
    assert "--force" in ran.err
    assert Path("report.html").read_text() == "mine"
    assert call("model.pt", "--html", "report.html", "--force") == 0
    assert Path("report.html").read_text("utf-8").startswith("<!doctype html>")
    assert {each.name for each in Path().iterdir()} == {"model.pt", "report.html"}


def test_no_model_is_written_over() -> None:
    before = Path("model.pt").read_bytes()
    assert call("model.pt", "--html", "model.pt", "--force") == 2
    assert Path("model.pt").read_bytes() == before


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_a_file_of_weights(model: nn.Module, kind: str) -> None:
    if kind == "torch":
        torch.save(model.state_dict(), "weights")
    else:
        save_file(model.state_dict(), "weights")
    assert call("weights", "--html", "report.html") == 0
    told = Path("report.html").read_text("utf-8")
    assert told.count('class="site ') == 2
    assert told.count('<th scope="row">σ² running variance</th>') == 2
    assert "whether they fold are unknown" in told


def test_what_a_baseline_knows_is_left_out_but_not_while_it_is_written() -> None:
    assert call("model.pt", "--write-baseline", "known.json", "--html", "first.html") == 0
    assert 'id="BN002"' in Path("first.html").read_text("utf-8")
    assert call("model.pt", "--baseline", "known.json", "--html", "second.html") == 0
    told = Path("second.html").read_text("utf-8")
    assert 'id="BN002"' not in told
    assert "this page leaves out: 1" in told


def test_a_safetensors_file_needs_no_torch_for_it(model: nn.Module) -> None:
    save_file(model.state_dict(), "w.safetensors")
    code = (
        "import sys; from bntools.__main__ import main;"
        "code = main(['inspect', 'w.safetensors', '--html', 'w.html', '--quiet']);"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True).returncode == 0
    assert "σ² running variance" in Path("w.html").read_text("utf-8")

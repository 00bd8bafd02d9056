"""`bntools swap`: what it writes, what it says, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bntools as bn
from tests.cli.conftest import Run, digests
from tests.season import season

Saved = Callable[..., Path]
ON = ("--input", "2x3x12x12")
X = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 64, 3)
        return season(nn.Sequential(first, nn.BatchNorm2d(32), nn.ReLU(), second, nn.BatchNorm2d(64)))


def test_it_writes_what_the_api_gives(run: Run, saved: Saved) -> None:
    saved(net(), "my model.pt")
    ran = run("swap", "my model.pt", *ON)
    assert ran.code == 0, ran.err
    assert "2 of 2 BatchNorms; the outputs differ by" in ran.out
    assert "verified" not in ran.out
    found = bn.load("my model.swapped.pt")
    assert [type(found[at]).__name__ for at in (1, 4)] == ["GroupNorm", "GroupNorm"]
    assert torch.equal(found.eval()(X), bn.swap(net(), inputs=X).model.eval()(X))


def test_weights_replay_into_the_swapped_model(run: Run, saved: Saved) -> None:
    saved({"state_dict": net().state_dict(), "epoch": 7}, "weights.pt")
    Path("swap_arch.py").write_text("from tests.cli.test_swap import net\n")
    ran = run("swap", "weights.pt", "--arch", "swap_arch:net", "--to", "layer", *ON)
    assert ran.code == 0, ran.err
    again = bn.replay("weights.swapped.pt", net())
    assert (again[1].num_groups, again[4].num_groups) == (1, 1)
    assert torch.equal(again.eval()(X), bn.swap(net(), "layer", inputs=X).model.eval()(X))


def test_json_is_one_object(run: Run, saved: Saved) -> None:
    saved(net())
    ran = run("swap", "model.pt", *ON, "--json", "--dry-run", "--only", "4", "--groups", "8")
    told: dict[str, Any] = json.loads(ran.out)
    assert told["command"] == "swap"
    assert told["plan"]["promise"] == "new"
    assert [(swap["paths"], swap["groups"]) for swap in told["plan"]["swaps"]] == [(["4"], 8)]
    assert [refusal["reason"] for refusal in told["plan"]["refusals"]] == ["not-selected"]
    assert told["change"]["output"] > 0
    assert told["output"] is None
    assert not Path("model.swapped.pt").exists()


@pytest.mark.parametrize(("form", "words"), [("github", "::notice"), ("markdown", "| `1` |")])
def test_the_other_formats(run: Run, saved: Saved, form: str, words: str) -> None:
    saved(net())
    ran = run("swap", "model.pt", *ON, "--format", form, "--dry-run")
    assert ran.code == 0
    assert words in ran.out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--to", "weight"], 2, "to: 'weight' is none"),
        (["--groups", "many"], 2, "--groups: 'many' is none"),
        (["--only", "9"], 2, "only: '9' matches no BatchNorm"),
        (["-o", "model.onnx"], 2, ".onnx is not written"),
        (["-o", "model.pt"], 2, "exists"),
        (["--input", "2x7"], 4, "does not run on 2x7"),
        (["--groups", "64", "--strict", *ON], 1, "1 of 2 BatchNorms stay"),
    ],
)
def test_what_goes_wrong_writes_nothing(
    run: Run, saved: Saved, folder: Path, arguments: list[str], code: int, message: str
) -> None:
    saved(net())
    before = digests(folder)
    ran = run("swap", "model.pt", *arguments)
    assert ran.code == code, ran.err
    assert message in ran.err
    assert digests(folder) == before


def test_what_is_refused_stays_and_is_told(run: Run, saved: Saved) -> None:
    saved(net())
    ran = run("swap", "model.pt", "--groups", "64", *ON)
    assert ran.code == 0
    assert "64 groups do not divide 32 channels" in ran.out
    found = bn.load("model.swapped.pt")
    assert [type(found[at]).__name__ for at in (1, 4)] == ["BatchNorm2d", "GroupNorm"]

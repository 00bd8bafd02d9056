"""`bntools recalibrate`: what it writes, what it says, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bntools as bn
from tests.cli.conftest import Run, digests
from tests.season import season

Saved = Callable[..., Path]


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3, 2)
        return season(nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(), second, nn.BatchNorm2d(5)))


@pytest.fixture
def data(folder: Path) -> np.ndarray:
    array = np.random.default_rng(0).normal(1, 2, (70, 3, 9, 9)).astype(np.float32)
    np.save(folder / "x.npy", array)
    return array


def test_it_writes_what_the_api_gives(run: Run, saved: Saved, data: np.ndarray) -> None:
    saved(net(), "my model.pt")
    ran = run("recalibrate", "my model.pt", "--data", "x.npy", "--batch-size", "16")
    assert ran.code == 0, ran.err
    assert "2 of 2 BatchNorms recalibrated" in ran.out
    assert "70 samples in 5 batches, all in lock-step: exact" in ran.out
    found = bn.load("my model.recalibrated.pt").state_dict()
    expected = bn.recalibrate(net(), [torch.from_numpy(data)]).model.state_dict()
    for key, value in expected.items():
        if "num_batches" not in key:
            torch.testing.assert_close(found[key], value)
    assert found["1.num_batches_tracked"] == 5


def test_the_same_file_twice_is_the_same_bytes(run: Run, saved: Saved, data: np.ndarray) -> None:
    saved(net())
    for name in ("a.pt", "b.pt"):
        assert run("recalibrate", "model.pt", "--data", "x.npy", "-o", name).code == 0
    assert Path("a.pt").read_bytes() == Path("b.pt").read_bytes()


def test_weights_keep_their_other_entries_and_replay(run: Run, saved: Saved, data: np.ndarray) -> None:
    saved({"state_dict": net().state_dict(), "epoch": 7}, "weights.pt")
    Path("arch.py").write_text("from tests.cli.test_recalibrate import net\n")
    ran = run("recalibrate", "weights.pt", "--arch", "arch:net", "--data", "x.npy")
    assert ran.code == 0, ran.err
    held = torch.load("weights.recalibrated.pt", weights_only=True)
    assert held["epoch"] == 7
    again = bn.replay("weights.recalibrated.pt", net()).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in held["state_dict"].items())
    net().load_state_dict(held["state_dict"])  # the architecture is what it was


def test_json_is_one_object(run: Run, saved: Saved, data: np.ndarray) -> None:
    saved(net())
    ran = run("recalibrate", "model.pt", "--data", "x.npy", "--json", "--dry-run", "--only", "4")
    told: dict[str, Any] = json.loads(ran.out)
    assert told["command"] == "recalibrate"
    assert [edit["site"]["name"] for edit in told["plan"]["edits"]] == ["4"]
    assert [refusal["reason"] for refusal in told["plan"]["refusals"]] == ["not-selected"]
    assert [layer["path"] for layer in told["drift"]["layers"]] == ["4"]
    assert told["drift"]["samples"] == 70
    assert told["output"] is None
    assert not Path("model.recalibrated.pt").exists()


@pytest.mark.parametrize(("form", "words"), [("github", "::notice"), ("markdown", "| `1` |")])
def test_the_other_formats(run: Run, saved: Saved, data: np.ndarray, form: str, words: str) -> None:
    saved(net())
    ran = run("recalibrate", "model.pt", "--data", "x.npy", "--format", form, "--dry-run")
    assert ran.code == 0
    assert words in ran.out


def test_groups_and_what_they_are_bounded_by(run: Run, saved: Saved, data: np.ndarray) -> None:
    saved(net())
    how = ("--virtual-batch", "16", "--no-stop", "--dry-run")
    ran = run("recalibrate", "model.pt", "--data", "x.npy", *how)
    assert "70 samples in 5 batches, 5 groups of at most 16" in ran.out
    ran = run("recalibrate", "model.pt", "--data", "x.npy", "--moving-average", "--dry-run")
    assert "3 groups of at most 32" in ran.out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data", "y.npy"], 2, "y.npy: there is no such file"),
        (["--data", "x.npy", "--only", "9"], 2, "only: '9' matches no BatchNorm"),
        (["--data", "x.npy", "--virtual-batch", "some"], 2, "--virtual-batch: 'some' is none"),
        (["--data", "x.npy", "-o", "model.onnx"], 2, ".onnx is not written"),
        (["--data", "x.npy", "-o", "model.pt"], 2, "exists"),
        (["--data", "bad.npy"], 2, "batch 1: it holds NaN or infinity"),
        (["--data", "flat.npy"], 4, "batch 0: the model does not run on it"),
        (["--data", "x.npy", "--only", "1", "--strict"], 1, "1 of 2 BatchNorms keep their statistics"),
        ([], 2, "--data"),
    ],
)
def test_what_goes_wrong_writes_nothing(
    run: Run, saved: Saved, data: np.ndarray, folder: Path, arguments: list[str], code: int, message: str
) -> None:
    saved(net())
    bad = data.copy()
    bad[40, 0, 0, 0] = np.nan
    np.save("bad.npy", bad)
    np.save("flat.npy", data.reshape(70, -1))
    before = digests(folder)
    ran = run("recalibrate", "model.pt", *arguments)
    assert ran.code == code, ran.err
    assert message in ran.err
    assert digests(folder) == before


def test_bad_batches_are_left_out_and_named(run: Run, saved: Saved, data: np.ndarray) -> None:
    saved(net())
    data[40, 0, 0, 0] = np.inf
    np.save("bad.npy", data)
    ran = run("recalibrate", "model.pt", "--data", "bad.npy", "--skip-bad")
    assert ran.code == 0
    assert "38 samples in 2 batches" in ran.out
    assert "left out with NaN or infinity: 1" in ran.out

"""`bntools swap`: what it writes, what it says, and how it ends."""

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
from bntools.core.data import open_data
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


def test_with_data_it_writes_what_the_api_gives(run: Run, saved: Saved) -> None:
    model = nn.Sequential(*net(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))
    saved(model, "my model.pt")
    data = torch.randn(20, 3, 12, 12)
    np.save("data.npy", data.numpy())
    flags = (
        "--data",
        "data.npy",
        "--batch-size",
        "6",
        "--max-samples",
        "14",
        "--tune",
        "40",
        "--groups",
        "4",
    )
    ran = run("swap", "my model.pt", *flags)
    assert ran.code == 0, ran.err
    assert "2 of 2 BatchNorms, fitted to 14 samples, tuned for 40 steps, which took it from" in " ".join(
        ran.out.split()
    )
    found, parts = bn.load("my model.swapped.pt"), open_data("data.npy", model, 6, max_samples=14).batches
    want = bn.swap(model, groups=4, data=parts, tune=40).model
    torch.testing.assert_close(found.eval()(X), want.eval()(X), rtol=1e-5, atol=1e-5)
    twin = bn.swap(model, groups=4, data=data.split(6), tune=40).model
    assert (found.eval()(X) - twin.eval()(X)).abs().max() > 1e-4


def test_rows_that_hold_nan_are_left_out(run: Run, saved: Saved) -> None:
    saved(net())
    data = torch.randn(9, 3, 12, 12)
    data[4, 0, 0, 0] = torch.nan
    np.save("data.npy", data.numpy())
    ran = run("swap", "model.pt", "--data", "data.npy", "--skip-bad")
    assert ran.code == 0, ran.err
    assert "fitted to 8 samples" in " ".join(ran.out.split())
    assert "row 4" in ran.out


def test_a_groupnorm_becomes_a_batchnorm_by_data(run: Run, saved: Saved) -> None:
    saved(bn.swap(net(), groups=4, inputs=X).model)
    np.save("data.npy", X.numpy())
    ran = run("swap", "model.pt", "--to", "batch", *ON)
    assert ran.code == 0, ran.err
    assert "no-data" in ran.out
    assert not Path("model.swapped.pt").exists()
    ran = run("swap", "model.pt", "--to", "batch", "--data", "data.npy")
    assert ran.code == 0, ran.err
    assert [type(bn.load("model.swapped.pt")[at]).__name__ for at in (1, 4)] == ["BatchNorm2d"] * 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--tune", "3"), "--tune: there is no data to train on"),
        (("--data", "missing.npy"), "missing.npy"),
        (("--data", "data.npy", "--to", "sync"), "data: nothing is fitted for to='sync'"),
        (("--data", "data.npy", "--crop", "64"), "--crop: is for a folder of images"),
        (("--data", "wrong.npy"), "batch 0: the model does not run on it"),
        (("--data", "nan.npy"), "row 0 holds NaN"),
    ],
)
def test_data_that_is_wrong_is_told(run: Run, saved: Saved, flags: tuple[str, ...], message: str) -> None:
    saved(net())
    np.save("data.npy", X.numpy())
    np.save("wrong.npy", X.numpy()[:, :2])
    np.save("nan.npy", X.numpy() * np.nan)
    before = digests(Path())
    ran = run("swap", "model.pt", *flags)
    assert ran.code in (2, 4), ran.out
    assert message in " ".join(ran.err.split())
    assert "Traceback" not in ran.err
    assert digests(Path()) == before


def test_as_many_groups_as_channels_are_pointed_out(run: Run, saved: Saved) -> None:
    saved(net())
    assert "as many groups as channels" in " ".join(
        run("swap", "model.pt", *ON, "--groups", "32").out.split()
    )
    assert "as many groups as" not in run("swap", "model.pt", *ON, "--groups", "16", "--force").out


def test_weight_standardization(run: Run, saved: Saved) -> None:
    saved(net())
    ran = run("swap", "model.pt", *ON, "--weight-standardization", "--json")
    assert ran.code == 0, ran.err
    assert [conv["path"] for conv in json.loads(ran.out)["plan"]["standardized"]] == ["0", "3"]
    found = bn.load("model.swapped.pt")
    assert [type(found[at]).__name__ for at in (0, 3)] == ["StandardizedConv2d"] * 2
    want = bn.swap(net(), inputs=X).model
    torch.testing.assert_close(found.eval()(X), want.eval()(X), rtol=1e-4, atol=1e-4)

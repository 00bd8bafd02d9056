"""What `inspect` lists, and from which kinds of file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.cli import nets
from tests.cli.conftest import Run, digests

Saved = Callable[..., Path]
ON = ("--input", nets.SHAPE)


def rows(text: str) -> list[list[str]]:
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("site "))
    return [line.split() for line in lines[start + 1 :] if line.split()[1].startswith("BatchNorm")]


def test_a_module(run: Run, saved: Saved, folder: Path) -> None:
    saved(nets.partly())
    before = digests(folder)
    ran = run("inspect", "model.pt", *ON)
    assert ran.code == 0
    first, second, *_ = rows(ran.out)
    assert first == ["1", "BatchNorm2d", "4", "1e-05", "0.1", "77", "0", "(conv2d)"]
    assert second[:7] == ["3", "BatchNorm2d", "4", "1e-05", "0.1", "77", "blocked:"]
    assert "1 of 2 BatchNorms: 1 into conv2d" in ran.out
    assert digests(folder) == before


@pytest.mark.parametrize("kind", ["state dict", "checkpoint", "wrapped", "safetensors"])
def test_bare_weights_need_no_architecture(run: Run, saved: Saved, folder: Path, kind: str) -> None:
    """Names and channels are there; eps, momentum and a verdict are not, and are not made up."""
    weights = nets.net().state_dict()
    path = folder / "model.pt"
    if kind == "safetensors":
        path = folder / "model.safetensors"
        save_file(weights, path)
    elif kind == "checkpoint":
        saved({"model": weights, "epoch": 1})
    elif kind == "wrapped":
        saved({f"module.{key}": value for key, value in weights.items()})
    else:
        saved(weights)
    ran = run("inspect", path)
    assert ran.code == 0, ran.err
    assert rows(ran.out) == [
        ["1", "BatchNorm", "4", "-", "-", "77"],
        ["4", "BatchNorm", "5", "-", "-", "77"],
    ]
    assert "folds" not in ran.out
    whole = run("inspect", path, "--arch", nets.SPEC, *ON)
    assert "2 of 2 BatchNorms" in whole.out


def test_a_folded_file_has_none_left(run: Run, saved: Saved) -> None:
    assert run("fold", saved(), *ON).code == 0
    ran = run("inspect", "model.folded.pt", *ON)
    assert ran.code == 0
    assert "no BatchNorm" in ran.out


@pytest.mark.parametrize("weights", [False, True])
def test_without_a_batchnorm(run: Run, saved: Saved, weights: bool) -> None:
    model = nets.plain()
    ran = run("inspect", saved(model.state_dict() if weights else model), *ON)
    assert ran.code == 0
    assert "no BatchNorm" in ran.out


def test_a_model_that_does_not_run_is_listed_all_the_same(run: Run, saved: Saved) -> None:
    ran = run("inspect", saved(), "--input", "2x7x8x8")
    assert ran.code == 4
    assert [row[0] for row in rows(ran.out)] == ["1", "4"]
    assert "give inputs that the model runs on" in ran.err


def test_safetensors_are_listed_in_the_order_of_the_layers(run: Run, folder: Path) -> None:
    """The library hands its tensors out in another order each time; and 10 comes after 9."""
    names = [f"layers.{i}.bn" for i in range(12)]
    statistics = ("running_mean", "running_var")
    save_file(
        {f"{n}.{s}": torch.full((3,), 0.5) for n in names for s in statistics}, folder / "w.safetensors"
    )
    assert [row[0] for row in rows(run("inspect", "w.safetensors").out)] == names


@pytest.mark.parametrize("count", [float("nan"), float("inf"), 2.5])
def test_a_count_that_is_no_whole_number_is_left_out(run: Run, saved: Saved, count: float) -> None:
    state = nets.net().state_dict()
    state["1.num_batches_tracked"] = torch.tensor(count)
    ran = run("inspect", saved(state), "--json")
    assert ran.code == 0
    assert [site["batches"] for site in json.loads(ran.out)["sites"]] == [None, 77]

"""``bntools inspect --data``, and checkpoints with an optimizer in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bntools as bn
from tests.cli import nets
from tests.cli.conftest import Run, digests
from tests.report.test_html import Tree

Saved = Callable[..., Path]
DATA = ("--data", "images.npy")


@pytest.fixture
def data(folder: Path) -> np.ndarray:
    images = np.random.default_rng(0).normal(0.5, 2, (200, 3, 8, 8)).astype("float32")
    np.save("images.npy", images)
    return images


def fitted(images: np.ndarray) -> nn.Module:
    return bn.recalibrate(nets.net(), torch.tensor(images).split(50)).model


def rules(out: str) -> list[tuple[str, str | None]]:
    return [(each["rule"], each["layer"]) for each in json.loads(out)["findings"]]


def test_statistics_of_other_data_are_found(run: Run, saved: Saved, data: np.ndarray) -> None:
    model = fitted(data)
    saved(model)
    assert [rule for rule, _ in rules(run("inspect", "model.pt", *DATA, "--json").out)] == ["BN013"]
    model[1].running_mean += model[1].running_var.sqrt()
    saved(model)
    before = digests(Path.cwd())
    ran = run("inspect", "model.pt", *DATA, "--json", "--fail-on", "BN028")
    assert ran.code == 1
    assert ("BN028", "1") in rules(ran.out)
    assert ("BN028", "4") not in rules(ran.out)
    drift = json.loads(ran.out)["drift"]
    assert (drift["samples"], [layer["path"] for layer in drift["layers"]]) == (200, ["1", "4"])
    assert drift["layers"][0]["mean"] == pytest.approx(1, rel=1e-3)
    assert digests(Path.cwd()) == before
    assert json.loads(ran.out)["input"] == "4x3x8x8 float32 (of the data)"


def test_people_are_told_how_much_and_where_it_begins(run: Run, saved: Saved, data: np.ndarray) -> None:
    model = fitted(data)
    model[1].running_mean += model[1].running_var.sqrt()
    saved(model)
    ran = run("inspect", "model.pt", *DATA)
    assert "data        200 samples in 7 batches, all in lock-step: exact" in ran.out
    assert "drift       from 1 on" in ran.out
    assert "BN028 drifted: 1 layer" in ran.out
    saved(fitted(data))
    assert "drift       none has drifted" in run("inspect", "model.pt", *DATA).out


def test_what_chance_makes_is_not_said_to_have_drifted(run: Run, saved: Saved, data: np.ndarray) -> None:
    """Of 4 samples, other ones of the same kind are off by more than 0.01, and no rule speaks."""
    saved(fitted(data))
    np.save("images.npy", np.random.default_rng(5).normal(0.5, 2, (4, 3, 8, 8)).astype("float32"))
    ran = run("inspect", "model.pt", *DATA, "--json")
    assert max(layer["divergence"] for layer in json.loads(ran.out)["drift"]["layers"]) > 0.01
    assert "BN028" not in ran.out
    assert "drift       none has drifted" in run("inspect", "model.pt", *DATA).out


def test_rows_of_nan_are_a_finding(run: Run, saved: Saved, data: np.ndarray) -> None:
    saved(fitted(data))
    data[[3, 7], 0, 0, 0] = np.nan
    np.save("images.npy", data)
    ran = run("inspect", "model.pt", *DATA, "--json")
    assert ("BN030", None) in rules(ran.out)
    told = json.loads(ran.out)
    assert (told["left_out"], told["drift"]["samples"]) == (["row 3", "row 7"], 198)


def test_max_samples_is_how_many_are_drawn(run: Run, saved: Saved, data: np.ndarray) -> None:
    saved(fitted(data))
    ran = run("inspect", "model.pt", *DATA, "--max-samples", "40", "--json")
    assert json.loads(ran.out)["drift"]["samples"] == 40


@pytest.mark.parametrize(
    ("held", "told"),
    [("weights", "holds weights, which run on nothing"), ("program", "which no pass can stop at")],
)
def test_what_has_no_layers(run: Run, saved: Saved, data: np.ndarray, held: str, told: str) -> None:
    model = fitted(data)
    if held == "weights":
        name = str(saved(model.state_dict()))
    else:
        name = "model.pt2"
        torch.export.save(torch.export.export(model, (torch.randn(2, 3, 8, 8),), strict=False), name)
    ran = run("inspect", name, *DATA)
    assert ran.code == 2
    assert told in ran.err
    assert "Traceback" not in ran.err


def test_data_that_is_not_there(run: Run, saved: Saved) -> None:
    ran = run("inspect", saved(), "--data", "gone.npy")
    assert ran.code == 2
    assert "gone.npy" in ran.err


def test_data_that_does_not_fit(run: Run, saved: Saved) -> None:
    np.save("images.npy", np.zeros((4, 7, 8, 8), "float32"))
    ran = run("inspect", saved(), *DATA)
    assert ran.code == 4
    assert "the model does not run on it" in ran.err


def test_a_checkpoint_tells_what_decays(run: Run, saved: Saved) -> None:
    model = nets.net()
    for decay, expected in ((0.01, [("BN036", "1"), ("BN036", "4")]), (0.0, [])):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=decay)
        saved({"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()})
        for how in ((), ("--arch", nets.SPEC, "--input", nets.SHAPE)):
            out = run("inspect", "model.pt", *how, "--json").out
            assert [each for each in rules(out) if each[0] == "BN036"] == expected, how


def test_the_page_has_a_column_of_drift(run: Run, saved: Saved, data: np.ndarray) -> None:
    model = fitted(data)
    model[4].running_var *= 3
    saved(model)
    assert run("inspect", "model.pt", *DATA, "--html", "with.html").code == 0
    assert run("inspect", "model.pt", "--html", "without.html").code == 0
    told = {name: Tree(Path(f"{name}.html").read_text("utf-8")).root for name in ("with", "without")}
    titles = {name: [each.text for each in page.all("figcaption")] for name, page in told.items()}
    assert titles["without"] == ["γ scale", "β shift", "μ running mean", "σ² running variance"]
    assert titles["with"] == [*titles["without"], "Δ drift"]
    row = next(each for each in told["with"].all("tr") if each.text.startswith("Δ drift"))
    assert len(row.all("td")) == 5
    assert "200 samples of data" in told["with"].text
    panels = {name: len(page.all("rect")) for name, page in told.items()}
    assert panels["with"] > panels["without"]

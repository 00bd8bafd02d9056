"""What `replay` makes of a file is what `fold` made, bit for bit."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import bntools as bn
from tests.cli import nets
from tests.cli.conftest import Run, digests, same

Saved = Callable[..., Path]
ON = ("--input", nets.SHAPE)


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("fresh", ["spec", "file"])
def test_the_round_trip_is_bitwise(run: Run, saved: Saved, ending: str, fresh: str) -> None:
    saved(nets.net().state_dict(), "weights.pt")
    assert run("fold", "weights.pt", "--arch", nets.SPEC, *ON, "-o", f"a.{ending}").code == 0
    expected = bn.replay(f"a.{ending}", nets.net()).state_dict()
    saved(nets.net(), "fresh.pt")
    ran = run("replay", f"a.{ending}", nets.SPEC if fresh == "spec" else "fresh.pt")
    assert ran.code == 0, ran.err
    assert "2 of 2 BatchNorms" in ran.out
    model = bn.load("a.replayed.pt")
    assert same(model.state_dict(), expected)
    assert not model.training
    x = bn.fold(nets.net(), None).example
    assert x is not None


def test_the_name_of_the_output(run: Run, saved: Saved, folder: Path) -> None:
    """`model.v2.folded.safetensors` belongs to `model.v2`, not to `model`."""
    saved(name="model.v2.pt")
    assert run("fold", "model.v2.pt", *ON, "-o", "model.v2.folded.safetensors").code == 0
    assert run("replay", "model.v2.folded.safetensors", nets.SPEC).code == 0
    assert (folder / "model.v2.replayed.pt").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["-o", "there.pt"], "--force"),
        (["-o", "out.safetensors"], "name a .pt"),
        (["-o", "no/out.pt"], "there is no folder"),
        (["-o", "."], "a folder"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_wrong_output(run: Run, saved: Saved, folder: Path, more: list[str], says: str) -> None:
    assert run("fold", saved(), *ON, "-o", "a.safetensors").code == 0
    (folder / "there.pt").write_text("mine")
    before = digests(folder)
    ran = run("replay", "a.safetensors", nets.SPEC, *more)
    assert ran.code == 2
    assert says in ran.err
    assert digests(folder) == before


def test_another_model_is_refused(run: Run, saved: Saved, folder: Path) -> None:
    assert run("fold", saved(), *ON, "-o", "a.safetensors").code == 0
    before = digests(folder)
    ran = run("replay", "a.safetensors", nets.SPEC, "--arch-kwargs", '{"width": 6}')
    assert ran.code == 2
    assert "plan" in ran.err
    assert digests(folder) == before


def test_a_training_model_is_put_in_eval_mode(run: Run, saved: Saved) -> None:
    """As the fold did; --keep-mode leaves it."""
    saved(nets.net().train())
    assert run("fold", "model.pt", *ON, "-o", "a.safetensors").code == 0
    assert "eval mode" in run("replay", "a.safetensors", "model.pt", "-o", "b.pt").err
    assert not bn.load("b.pt").training
    assert run("replay", "a.safetensors", "model.pt", "-o", "c.pt", "--keep-mode").err == ""
    assert bn.load("c.pt").training


def test_a_replayed_model_has_nothing_left_to_fold(run: Run, saved: Saved) -> None:
    assert run("fold", saved(), *ON, "-o", "a.safetensors").code == 0
    assert run("replay", "a.safetensors", nets.SPEC, "-o", "b.pt").code == 0
    assert "no BatchNorm" in run("inspect", "b.pt", *ON).out


def test_a_checkpoint_that_needs_unsafe_is_replayed_with_it(run: Run, folder: Path) -> None:
    """What a fold wrote, a replay reads."""
    state = nets.net().state_dict()
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=0.1)}, folder / "ck.pt")
    arch = ("--arch", "tests.cli.nets:net")
    assert run("fold", "ck.pt", *arch, *ON, "--unsafe", "-o", "f.pt").code == 0
    assert run("replay", "f.pt", "tests.cli.nets:net", "-o", "r.pt").code == 3
    assert run("replay", "f.pt", "tests.cli.nets:net", "-o", "r.pt", "--unsafe").code == 0

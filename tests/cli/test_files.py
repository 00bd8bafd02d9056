"""Which file is written, what is in it, and that nothing else changes."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import bntools as bn
from tests.cli import nets
from tests.cli.conftest import Run, digests, same

Saved = Callable[..., Path]
ON = ("--input", nets.SHAPE)
ARCH = ("--arch", nets.SPEC)


def folded() -> dict[str, torch.Tensor]:
    """What any way of writing the folded network must hold."""
    return bn.fold(nets.net(), torch.ones(2, 3, 8, 8)).model.state_dict()


def own_entries(checkpoint: dict[str, Any]) -> set[str]:
    """The entries besides those with the plan."""
    assert "bntools" in checkpoint
    return {key for key in checkpoint if not key.startswith("bntools")}


def test_a_module_becomes_a_module(run: Run, saved: Saved, folder: Path) -> None:
    saved()
    before = digests(folder)
    assert run("fold", "model.pt", *ON).code == 0
    assert set(digests(folder)) == {"model.pt", "model.folded.pt"}
    assert digests(folder)["model.pt"] == before["model.pt"], "the input changed"
    assert same(bn.load("model.folded.pt").state_dict(), folded())


def test_a_module_in_a_checkpoint_stays_in_it(run: Run, saved: Saved) -> None:
    saved({"model": nets.net(), "epoch": 3})
    assert run("fold", "model.pt", *ON).code == 0
    written = torch.load("model.folded.pt", weights_only=False)
    assert written["epoch"] == 3
    assert same(written["model"].state_dict(), folded())
    assert same(bn.load("model.folded.pt").state_dict(), folded())


def test_weights_become_a_checkpoint_with_the_plan(run: Run, saved: Saved) -> None:
    saved(nets.net().state_dict())
    assert run("fold", "model.pt", *ARCH, *ON).code == 0
    written = torch.load("model.folded.pt", weights_only=True)  # no code in it
    assert not own_entries(written) ^ {"state_dict"}
    assert same(written["state_dict"], folded())
    assert same(bn.replay("model.folded.pt", nets.net()).state_dict(), folded())


def test_a_checkpoint_keeps_its_other_entries(run: Run, saved: Saved) -> None:
    others = {"epoch": 3, "optimizer": {"lr": torch.tensor(0.5)}, "name": "é"}
    saved({"model_state_dict": nets.net().state_dict(), **others})
    assert run("fold", "model.pt", *ARCH, *ON).code == 0
    written = torch.load("model.folded.pt", weights_only=True)
    assert not own_entries(written) ^ {"model_state_dict", *others}
    assert {key: written[key] for key in others} == others
    assert same(bn.replay("model.folded.pt", nets.net()).state_dict(), folded())


def test_safetensors_become_safetensors(run: Run, folder: Path) -> None:
    save_file(nets.net().state_dict(), folder / "model.safetensors")
    assert run("fold", "model.safetensors", *ARCH, *ON).code == 0
    assert same(load_file("model.folded.safetensors"), folded())
    assert same(bn.replay("model.folded.safetensors", nets.net()).state_dict(), folded())


def test_the_kind_of_a_file_is_its_content(run: Run, saved: Saved, folder: Path) -> None:
    """A pickle that calls itself safetensors is written as a pickle, and the other way round."""
    saved(name="liar.safetensors")
    save_file(nets.net().state_dict(), folder / "weights.bin")
    assert run("fold", "liar.safetensors", *ON).code == 0
    assert run("fold", "weights.bin", *ARCH, *ON).code == 0
    assert same(bn.load("liar.folded.pt").state_dict(), folded())
    assert same(load_file("weights.folded.safetensors"), folded())


@pytest.mark.parametrize("ending", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("kind", ["module", "weights"])
def test_another_ending_asks_for_another_kind(run: Run, saved: Saved, kind: str, ending: str) -> None:
    saved(nets.net() if kind == "module" else nets.net().state_dict())
    name = f"out{ending}"
    assert run("fold", "model.pt", *ON, "-o", name, *(ARCH if kind == "weights" else ())).code == 0
    if ending == ".safetensors" or kind == "weights":
        assert same(bn.replay(name, nets.net()).state_dict(), folded())
    else:
        assert same(bn.load(name).state_dict(), folded())


def test_what_safetensors_cannot_hold_is_told(run: Run, saved: Saved) -> None:
    saved({"state_dict": nets.net().state_dict(), "epoch": 3})
    assert "without the entries epoch" in run("fold", "model.pt", *ARCH, *ON, "-o", "a.safetensors").out


def test_an_architecture_alone_is_written_to_the_working_folder(run: Run, folder: Path) -> None:
    assert run("fold", nets.SPEC, *ON).code == 0
    assert same(bn.load(folder / "net.folded.pt").state_dict(), folded())


@pytest.mark.parametrize(
    "name", ["my model.pt", "modèle-模型.pth", "a.b.c.pt", "no_ending", "[red].pt", "-x.pt"]
)
def test_odd_names(run: Run, saved: Saved, folder: Path, name: str) -> None:
    saved(name=name)
    ran = run("fold", *ON, "--", name)
    assert ran.code == 0, ran.err
    (made,) = (path for path in folder.iterdir() if path.name != name)
    assert made.name == f"{Path(name).stem}.folded{Path(name).suffix or '.pt'}"
    assert made.name in ran.out
    assert same(bn.load(made).state_dict(), folded())


def test_odd_folders(run: Run, saved: Saved, folder: Path) -> None:
    (folder / "mein Ordner ü").mkdir()
    saved()
    assert run("fold", "model.pt", *ON, "-o", "mein Ordner ü/neu.safetensors").code == 0
    assert (folder / "mein Ordner ü/neu.safetensors").exists()


def test_an_existing_file_only_with_force(run: Run, saved: Saved, folder: Path) -> None:
    saved()
    target = folder / "model.folded.pt"
    target.write_text("mine")
    target.chmod(0o640)
    ran = run("fold", "model.pt", *ON)
    assert ran.code == 2
    assert "--force" in ran.err
    assert target.read_text() == "mine"
    assert run("fold", "model.pt", *ON, "--force").code == 0
    assert same(bn.load(target).state_dict(), folded())
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_dry_run_writes_nothing_and_says_what_it_would_do(run: Run, saved: Saved, folder: Path) -> None:
    saved(nets.partly())
    (folder / "model.folded.pt").write_text("mine")
    before = digests(folder)
    ran = run("fold", "model.pt", *ON, "--dry-run")
    assert ran.code == 0
    assert "would fold  1 of 2 BatchNorms: 1 into conv2d" in ran.out
    assert "3: relu in 2" in ran.out
    assert "written" not in ran.out
    assert run("fold", "model.pt", *ON, "--dry-run", "-o", "new.pt").code == 0
    assert digests(folder) == before


def test_nothing_folds_and_a_file_was_asked_for(run: Run, saved: Saved, folder: Path) -> None:
    """A script that goes on with -o must find it there."""
    saved(nets.plain())
    assert run("fold", "model.pt", *ON, "-o", "out.pt").code == 0
    assert same(bn.load("out.pt").state_dict(), nets.plain().state_dict())


@pytest.mark.parametrize("kind", ["module", "checkpoint", "safetensors", "architecture"])
def test_equal_inputs_give_equal_bytes(
    run: Run, saved: Saved, folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the time nor the name, folder or random state of a run may get into the file."""
    content: dict[str, Any] = {"module": nets.net(), "checkpoint": {"net": nets.net().state_dict(), "n": 1}}
    made = []
    for index, name in enumerate(("one", "another")):
        place = folder / name
        place.mkdir()
        monkeypatch.chdir(place)
        torch.manual_seed(index)
        given, more = f"given{index}.pt", list(ARCH)
        if kind == "safetensors":
            given = "given.safetensors"
            save_file(nets.net().state_dict(), place / given)
        elif kind == "architecture":
            given, more = nets.SPEC, []
        else:
            saved(content[kind], f"{name}/{given}")
            more = list(ARCH) if kind == "checkpoint" else []
        out = f"out{index}.{'safetensors' if kind == 'safetensors' else 'pt'}"
        assert run("fold", given, *more, *ON, "-o", out).code == 0
        made.append((place / out).read_bytes())
    assert made[0] == made[1]


def test_training_mode(run: Run, saved: Saved, folder: Path) -> None:
    saved(nets.net().train())
    ran = run("fold", "model.pt", *ON)
    assert ran.code == 0
    assert "put in eval mode" in ran.err
    assert not bn.load("model.folded.pt").training


def test_keep_mode(run: Run, saved: Saved, folder: Path) -> None:
    """In training mode nothing folds; each says so, and nothing is written."""
    saved(nets.net().train())
    before = digests(folder)
    ran = run("fold", "model.pt", *ON, "--keep-mode")
    assert ran.code == 0
    assert ran.err == ""
    assert re.search(r"folded +0 of 2 BatchNorms\n", ran.out)
    assert "training" in ran.out
    assert digests(folder) == before


def test_no_verify_says_so(run: Run, saved: Saved) -> None:
    ran = run("fold", saved(), *ON, "--no-verify")
    assert ran.code == 0
    assert "skipped: verification was switched off" in ran.out
    assert same(bn.load("model.folded.pt").state_dict(), folded())


def test_baking_is_asked_for(run: Run) -> None:
    spec = "tests.cli.nets:normed"
    assert "--bake-parametrizations" in run("fold", spec, *ON, "--dry-run").out
    assert run("fold", spec, *ON, "--bake-parametrizations", "--strict", "-o", "b.safetensors").code == 0
    assert set(load_file("b.safetensors")) == set(folded())


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(run: Run, saved: Saved, folder: Path) -> None:
    saved()
    (folder / "closed").mkdir(mode=0o500)
    ran = run("fold", "model.pt", *ON, "-o", "closed/out.pt")
    assert ran.code == 2
    assert "cannot be written" in ran.err


def test_the_input_itself_only_with_force(run: Run, saved: Saved) -> None:
    path = saved()
    before = path.read_bytes()
    assert run("fold", "model.pt", *ON, "-o", "model.pt").code == 2
    assert path.read_bytes() == before
    assert run("fold", "model.pt", *ON, "-o", "model.pt", "--force").code == 0
    assert same(bn.load(path).state_dict(), folded())

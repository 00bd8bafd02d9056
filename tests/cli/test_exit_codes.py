"""Each documented exit code, and that nothing is left behind where it is not 0."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bntools as bn
from bntools.core.graft import graft_
from tests.cli import nets
from tests.cli.conftest import Run, digests

Saved = Callable[..., Path]
ON = ("--input", nets.SHAPE)


def break_graft(monkeypatch: pytest.MonkeyPatch, factor: float = 1.001) -> None:
    """Plant a fault behind the knife: the check in float64 must find it."""

    def wrong(model: nn.Module, *args: Any) -> Any:
        undo: Any = graft_(model, *args)
        with torch.no_grad():
            model.get_parameter("0.weight").mul_(factor)
        return undo

    monkeypatch.setattr("bntools.core.surgery.graft_", wrong)


def test_0_and_a_file(run: Run, saved: Saved) -> None:
    ran = run("fold", saved(), *ON)
    assert ran.code == 0, ran.err
    assert "passed" in ran.out
    assert type(bn.load("model.folded.pt").get_submodule("1")) is nn.Identity


def test_0_without_anything_to_do(run: Run, saved: Saved, folder: Path) -> None:
    saved(nets.plain())
    before = digests(folder)
    assert run("fold", "model.pt", *ON).code == 0
    assert digests(folder) == before


def test_1_if_the_promise_is_not_kept(
    run: Run, saved: Saved, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved()
    before = digests(folder)
    break_graft(monkeypatch)
    ran = run("fold", "model.pt", *ON)
    assert (ran.code, ran.out) == (1, "")
    assert "does not compute" in ran.err
    assert digests(folder) == before


def test_a_broken_promise_leaves_the_file_to_be_replaced(
    run: Run, saved: Saved, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved()
    (folder / "model.folded.pt").write_text("mine")
    break_graft(monkeypatch)
    assert run("fold", "model.pt", "--force", *ON).code == 1
    assert (folder / "model.folded.pt").read_text() == "mine"


@pytest.mark.parametrize(
    "flags", [["--strict"], ["--max-remaining", "0"], ["--strict", "--max-remaining", "0"]]
)
def test_1_if_too_many_stay(run: Run, saved: Saved, folder: Path, flags: list[str]) -> None:
    saved(nets.partly())
    before = digests(folder)
    for more in ([], ["-o", "elsewhere.pt"], ["--quiet"], ["--dry-run"]):
        ran = run("fold", "model.pt", *ON, *flags, *more)
        assert ran.code == 1
        # --quiet must not hide why a command failed
        assert "1 of 2 BatchNorms stay, at most 0 may" in ran.err
        assert digests(folder) == before


@pytest.mark.parametrize("flags", [["--max-remaining", "1"], ["--strict", "--max-remaining", "1"]])
def test_0_if_as_many_stay_as_may(run: Run, saved: Saved, folder: Path, flags: list[str]) -> None:
    assert run("fold", saved(nets.partly()), *ON, *flags).code == 0
    assert (folder / "model.folded.pt").exists()


def test_5_if_inconclusive_and_strict(run: Run, saved: Saved, folder: Path) -> None:
    saved(nets.weak())
    before = digests(folder)
    ran = run("fold", "model.pt", *ON, "--strict")
    assert ran.code == 5
    assert "inconclusive" in ran.err
    assert digests(folder) == before
    ran = run("fold", "model.pt", *ON)  # the twin: without --strict it is only told
    assert ran.code == 0
    assert "inconclusive" in ran.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fold", "gone.pt"], "there is no such file"),
        (["fold", "page.html"], "an HTML page"),
        (["fold", "."], "a directory"),
        (["fold", ""], "no file was named"),
        (["fold", "model.pt", "-o", "there.pt"], "exists"),
        (["fold", "model.pt", "-o", "no/such/folder.pt"], "there is no folder"),
        (["fold", "model.pt", "-o", "model.tflite"], ".tflite"),
        (["fold", "model.pt", "-o", "model"], "no ending"),
        (["fold", "model.pt", "-o", ".", "--force"], "a folder"),
        (["fold", "model.pt", "--arch-kwargs", "{"], "--arch-kwargs"),
        (["fold", "model.pt", "--arch", nets.SPEC], "leave out --arch"),
        (["fold", "state.pt"], "--arch"),
        (["fold", "state.pt", "--arch", "no.such.package:net"], "no.such.package"),
        (["fold", "model.pt", "--no-such-option"], "--no-such-option"),
        (["fold"], "MODEL"),
        (["fuse", "model.pt"], "fuse"),
        (["fold", "model.pt", "--max-remaining", "-1"], "--max-remaining"),
        (["fold", "model.pt", "--format", "yaml"], "yaml"),
        (["replay", "model.pt", "model.pt"], "without a plan"),
        (["replay", "gone.safetensors", "model.pt"], "there is no such file"),
    ],
    ids=" ".join,
)
def test_2_for_wrong_usage(run: Run, saved: Saved, folder: Path, arguments: list[str], says: str) -> None:
    model = saved()
    saved(nets.net().state_dict(), "state.pt")
    (folder / "page.html").write_text("<!doctype html><html><body>log in</body></html>")
    (folder / "there.pt").write_bytes(model.read_bytes())
    before = digests(folder)
    ran = run(*arguments, *(ON if arguments[:2] == ["fold", "model.pt"] else ()))
    assert ran.code == 2
    assert ran.out == ""
    assert says in ran.err
    assert "Traceback" not in ran.err
    assert digests(folder) == before


def evil() -> nn.Module:
    """A model that runs a command when an ordinary unpickler opens it."""
    model = nets.net()
    object.__setattr__(model, "evil", Evil())
    return model


def too_late(*_: Any, **__: Any) -> Any:
    raise AssertionError("the work was done first")


@pytest.mark.parametrize("output", ["there.pt", "no/out.pt", "out.tflite"])
def test_a_wrong_output_is_told_before_the_work(
    run: Run, saved: Saved, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    saved()
    saved(name="there.pt")
    assert run("fold", "model.pt", *ON, "-o", "a.safetensors").code == 0
    monkeypatch.setattr("bntools.verbs.fold.fold", too_late)
    monkeypatch.setattr("bntools.core.store.apply", too_late)
    assert run("fold", "model.pt", *ON, "-o", output).code == 2
    assert run("replay", "a.safetensors", "model.pt", "-o", output).code == 2


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch owned",)


@pytest.mark.parametrize("verb", ["inspect", "fold"])
def test_3_if_opening_would_run_code(run: Run, saved: Saved, folder: Path, verb: str) -> None:
    saved(evil(), "evil.pt")
    ran = run(verb, "evil.pt", *ON)
    assert ran.code == 3
    assert "system" in ran.err
    assert not (folder / "owned").exists()
    assert not (folder / "evil.folded.pt").exists()


@pytest.mark.parametrize("more", [[], ["-o", "out.pt"], ["--strict"], ["--dry-run"]], ids=" ".join)
def test_4_if_the_model_does_not_run(run: Run, saved: Saved, folder: Path, more: list[str]) -> None:
    saved()
    before = digests(folder)
    ran = run("fold", "model.pt", "--input", "2x7x8x8", *more)
    assert ran.code == 4
    assert "2x7x8x8" in ran.err
    assert digests(folder) == before, "a model that could not be looked into was written"


def test_what_holds_of_all_sites_is_told_once(run: Run, saved: Saved) -> None:
    saved()
    lines = run("fold", "model.pt", "--input", "2x4x8x8").out.splitlines()
    told = [line for line in lines if "the model does not run on 2x4x8x8" in line]
    assert len(told) == 1
    assert told[0].strip().startswith("1, 4: the model does not run on")


def test_4_if_the_model_ends_the_program(run: Run) -> None:
    """sys.exit(0) in somebody's forward must not pass for our success."""
    ran = run("fold", "tests.cli.nets:quits", *ON)
    assert ran.code == 4
    assert "sys.exit" in ran.err


def test_101_for_a_bug_of_ours(run: Run, saved: Saved, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("a\nb [bold]c")

    saved()
    before = digests(folder)
    monkeypatch.setattr("bntools.core.planning.find_folds", bug)
    ran = run("fold", "model.pt", *ON)
    assert (ran.code, ran.out) == (101, "")
    assert len(ran.err.splitlines()) == 2
    assert "ZeroDivisionError: a b [bold]c" in ran.err
    ran = run("fold", "model.pt", *ON, "--traceback")
    assert ran.code == 101
    assert "Traceback (most recent call last)" in ran.err
    assert "find_folds" in ran.err
    assert digests(folder) == before


@pytest.mark.parametrize("output", ["out.pt", "out.safetensors"])
def test_130_and_no_half_of_a_file(
    run: Run, saved: Saved, folder: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    def half(_: Any, file: Any, *__: Any, **___: Any) -> None:
        if isinstance(file, Path):
            file.write_bytes(b"half")
        else:
            file.write(b"half")
        raise KeyboardInterrupt

    saved()
    (folder / output).write_text("mine")
    before = digests(folder)
    monkeypatch.setattr("torch.save", half)
    monkeypatch.setattr("bntools.core.store.save_file", half)
    ran = run("fold", "model.pt", *ON, "-o", output, "--force")
    assert (ran.code, ran.out) == (130, "")
    assert "interrupted" in ran.err
    assert "Traceback" not in ran.err
    assert digests(folder) == before


def test_130_wherever_it_comes(run: Run, saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    saved()
    for place in ("bntools.cli.app.defaults", "bntools.core.planning.capture", "bntools.core.source.sniff"):
        with monkeypatch.context() as patch:
            patch.setattr(place, stop)
            assert run("fold", "model.pt", *ON).code == 130, place

"""`bntools freeze` and `bntools unfreeze`: what they write, what they say, and how they end."""

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
from tests.cli import nets
from tests.cli.conftest import Run, digests, same

Saved = Callable[..., Path]


def training(path: str | Path) -> list[bool]:
    """The modes of all modules of a file, once a training loop has told them to train."""
    return [module.training for module in bn.load(path).train().modules()]


def attributes(path: str | Path) -> list[dict[str, Any]]:
    """What each module of a file is, without its tensors and children."""
    held = ("_parameters", "_buffers", "_modules")
    model = bn.load(path)
    found: list[dict[str, Any]] = []
    for module in model.modules():
        own = {name: value for name, value in vars(module).items() if name not in held}
        grads = {name: p.requires_grad for name, p in module.named_parameters(recurse=False)}
        found.append({"class": type(module), **own, **grads})
    return found


@pytest.mark.parametrize("mode", [True, False])
def test_a_freeze_and_back(run: Run, saved: Saved, folder: Path, mode: bool) -> None:
    """In either mode: that of a file is about what it is for, and a freeze is about training."""
    saved(nets.net().train(mode), "my model.pt")
    ran = run("freeze", "my model.pt")
    assert (ran.code, ran.err) == (0, "")
    assert "2 of 2 BatchNorms frozen; frozen now: the statistics of 2, γ and β of 2" in ran.out
    frozen = bn.load("my model.frozen.pt")
    assert frozen.training is mode
    assert training("my model.frozen.pt") == [True, True, False, True, True, False]
    assert not frozen.get_parameter("1.weight").requires_grad
    assert frozen.get_parameter("0.weight").requires_grad
    assert same(frozen.state_dict(), bn.load("my model.pt").state_dict())

    ran = run("unfreeze", "my model.frozen.pt")
    assert (ran.code, ran.err) == (0, "")
    assert "2 of 2 BatchNorms unfrozen; frozen now: nothing" in ran.out
    assert attributes("my model.unfrozen.pt") == attributes("my model.pt")
    assert attributes("my model.frozen.pt") != attributes("my model.pt")
    assert same(bn.load("my model.unfrozen.pt").state_dict(), bn.load("my model.pt").state_dict())


def test_equal_inputs_give_equal_bytes(run: Run, saved: Saved) -> None:
    saved()
    for name in ("a.pt", "b.pt"):
        assert run("freeze", "model.pt", "-o", name).code == 0
    assert Path("a.pt").read_bytes() == Path("b.pt").read_bytes()
    assert Path("a.pt").read_bytes() != Path("model.pt").read_bytes()


@pytest.mark.parametrize(
    ("flags", "statistics", "parameters"),
    [
        ([], ["1", "4"], ["1.weight", "1.bias", "4.weight", "4.bias"]),
        (["--stats-only"], ["1", "4"], []),
        (["--affine-only"], [], ["1.weight", "1.bias", "4.weight", "4.bias"]),
        (["--only", "4"], ["4"], ["4.weight", "4.bias"]),
        (["--only", "*", "--only", "!4"], ["1"], ["1.weight", "1.bias"]),
        (["--first", "1"], ["1"], ["1.weight", "1.bias"]),
        (["--until", "3", "--input", nets.SHAPE, "--stats-only"], ["1"], []),
        (["--until", "4", "--inputs", "x.npz", "--affine-only", "--only", "!1"], [], ["4.weight", "4.bias"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_is_frozen(
    run: Run, saved: Saved, flags: list[str], statistics: list[str], parameters: list[str]
) -> None:
    np.savez("x.npz", x=np.zeros((2, 3, 8, 8), np.float32))
    saved(nets.net().train())
    ran = run("freeze", "model.pt", *flags, "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told["frozen"] == {"statistics": statistics, "parameters": parameters, "held": [], "decayed": []}
    model = bn.load("model.frozen.pt").train()
    assert [p for p, m in model.named_modules() if not m.training] == statistics
    assert [key for key, p in model.named_parameters() if not p.requires_grad] == parameters


def test_json_is_one_object(run: Run, saved: Saved, folder: Path) -> None:
    saved()
    before = digests(folder)
    told = json.loads(run("freeze", "model.pt", "--json", "--dry-run", "--only", "4").out)
    assert set(told) == {"schema", "command", "model", "dry_run", "plan", "frozen", "output"}
    assert (told["command"], told["plan"]["verb"], told["dry_run"]) == ("freeze", "freeze", True)
    assert [switch["path"] for switch in told["plan"]["switches"]] == ["4"]
    assert [refusal["reason"] for refusal in told["plan"]["refusals"]] == ["not-selected"]
    assert told["output"] is None
    assert digests(folder) == before
    told = json.loads(run("unfreeze", "model.pt", "--json").out)
    assert (told["command"], told["output"]) == ("unfreeze", None)
    assert [refusal["reason"] for refusal in told["plan"]["refusals"]] == ["not-frozen", "not-frozen"]


def test_the_other_formats(run: Run, saved: Saved) -> None:
    saved()
    how = ("freeze", "model.pt", "--only", "4", "--stats-only", "--dry-run")
    ran = run(*how, "--format", "github")
    notice, warning = ran.out.splitlines()
    assert "1 of 2 BatchNorms frozen; frozen now: the statistics of 1" in notice
    assert notice.startswith("::notice")
    assert warning.startswith("::warning")
    assert "1: not-selected" in warning
    rows = run(*how, "--format", "markdown").out.splitlines()
    assert "| `4` | frozen | free |" in rows
    assert not any("`1`" in row for row in rows)


@pytest.mark.parametrize("form", ["text", "github", "markdown", "json"])
def test_odd_names(run: Run, saved: Saved, form: str) -> None:
    """Names that mean something to GitHub, to Markdown, to Rich and to a terminal."""
    saved(nets.odd_names())
    ran = run("freeze", "model.pt", "--format", form, "--only", "!a*")
    assert ran.code == 0, ran.err
    assert "\x1b" not in ran.out
    assert "\nz" not in ran.out
    assert training("model.frozen.pt").count(False) == 1


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize("flags", [[], ["--stats-only"]], ids=["all", "statistics"])
def test_weights_carry_the_plan(run: Run, saved: Saved, ending: str, flags: list[str]) -> None:
    saved({"state_dict": nets.net().state_dict(), "epoch": 7}, "weights.pt")
    ran = run("freeze", "weights.pt", "--arch", nets.SPEC, "-o", f"weights.frozen.{ending}", *flags)
    assert ran.code == 0, ran.err
    if ending == "pt":
        held = torch.load("weights.frozen.pt", weights_only=True)
        assert held["epoch"] == 7
        nets.net().load_state_dict(held["state_dict"])  # the architecture is what it was
    ran = run("replay", f"weights.frozen.{ending}", nets.SPEC, "-o", "again.pt")
    assert ran.code == 0, ran.err
    assert f"2 of 2 BatchNorms frozen, from weights.frozen.{ending}" in ran.out
    assert training("again.pt") == [True, True, False, True, True, False]
    assert bn.load("again.pt").get_parameter("1.weight").requires_grad is bool(flags)
    assert same(bn.load("again.pt").state_dict(), nets.net().state_dict())
    assert run("unfreeze", "again.pt", "-o", "free.pt").code == 0
    assert training("free.pt") == [True] * 6


@pytest.mark.parametrize(
    ("form", "words"), [("github", "2 of 2 BatchNorms frozen"), ("markdown", "| frozen |")]
)
def test_a_replay_says_what_it_did(run: Run, saved: Saved, form: str, words: str) -> None:
    saved()
    assert run("freeze", "model.pt", "-o", "a.safetensors").code == 0
    ran = run("replay", "a.safetensors", "model.pt", "--format", form)
    assert words in ran.out
    assert "fold" not in ran.out
    assert "nobody" not in ran.out
    assert run("fold", "model.pt", "--input", nets.SHAPE, "-o", "b.safetensors").code == 0
    assert "fold" in run("replay", "b.safetensors", "model.pt", "--format", form).out


def test_a_built_model(run: Run, folder: Path) -> None:
    assert run("freeze", nets.SPEC, "--input", nets.SHAPE).code == 0
    assert training("net.frozen.pt").count(False) == 2


def test_frozen_weights_know_nothing_of_it(run: Run, saved: Saved, folder: Path) -> None:
    saved()
    assert run("freeze", "model.pt").code == 0
    torch.save(bn.load("model.frozen.pt").state_dict(), "weights.pt")
    before = digests(folder)
    ran = run("unfreeze", "weights.pt", "--arch", nets.SPEC)
    assert ran.code == 0
    assert "not-frozen" in ran.out
    assert digests(folder) == before


def test_a_part_is_unfrozen(run: Run, saved: Saved) -> None:
    saved()
    assert run("freeze", "model.pt").code == 0
    ran = run("unfreeze", "model.frozen.pt", "--only", "1", "-o", "part.pt")
    assert "1 of 2 BatchNorms unfrozen; frozen now: the statistics of 1, γ and β of 1" in ran.out
    assert training("part.pt") == [True] * 5 + [False]


def test_nothing_to_do_writes_nothing(run: Run, saved: Saved, folder: Path) -> None:
    saved(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)))
    before = digests(folder)
    for verb in ("freeze", "unfreeze"):
        ran = run(verb, "model.pt")
        assert ran.code == 0
        assert "0 of 1 BatchNorm " in ran.out
        assert "no-statistics" in ran.out
    assert digests(folder) == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["freeze", "gone.pt"], 2, "gone.pt"),
        (["freeze", "plain.pt"], 2, "matches no BatchNorm"),
        (["freeze", "model.pt", "--only", "9"], 2, "only: '9' matches no BatchNorm"),
        (["unfreeze", "model.pt", "--only", "9"], 2, "only: '9' matches no BatchNorm"),
        (["freeze", "model.pt", "--stats-only", "--affine-only"], 2, "exclude each other"),
        (["freeze", "model.pt", "--first", "0"], 2, "--first"),
        (["freeze", "model.pt", "--until", "layer9"], 2, "until: 'layer9' is not called"),
        (["freeze", "model.pt", "--first", "1", "--input", "2x7x8x8"], 4, "does not run"),
        (["freeze", "model.pt", "--first", "1", "--input", nets.SHAPE, "--inputs", "x.npz"], 2, "--inputs"),
        (["freeze", "model.pt", "-o", "model.pt"], 2, "exists"),
        (["freeze", "model.pt", "-o", "out.onnx"], 2, ".onnx is not written"),
        (["freeze", "model.pt", "--only", "1", "--strict"], 1, "1 of 2 BatchNorms stay as they are"),
        (["unfreeze", "model.pt", "--strict"], 1, "2 of 2 BatchNorms stay as they are"),
        (["unfreeze", "model.pt", "--first", "1"], 2, "--first"),
        (["freeze", "own.pt"], 3, "test_freeze"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_goes_wrong_writes_nothing(
    run: Run, saved: Saved, folder: Path, arguments: list[str], code: int, message: str
) -> None:
    saved()
    saved(nn.Sequential(Own(4)), "own.pt")
    saved(nets.plain(), "plain.pt")
    before = digests(folder)
    ran = run(*arguments)
    assert ran.code == code, ran.err
    assert message in ran.err
    assert digests(folder) == before


class Own(nn.BatchNorm2d):
    """A layer of a package that nobody trusts."""


def test_a_layer_of_ones_own(run: Run, saved: Saved) -> None:
    saved(nn.Sequential(Own(4)))
    assert run("freeze", "model.pt", "--trust", "tests").code == 0
    model = bn.load("model.frozen.pt", trust=["tests"]).train()
    assert [module.training for module in model.modules()] == [True, False]


def test_an_existing_file_is_replaced_only_if_asked(run: Run, saved: Saved, folder: Path) -> None:
    saved()
    (folder / "model.frozen.pt").write_text("mine")
    assert run("freeze", "model.pt").code == 2
    assert (folder / "model.frozen.pt").read_text() == "mine"
    assert run("freeze", "model.pt", "--dry-run").code == 0
    assert (folder / "model.frozen.pt").read_text() == "mine"
    assert run("freeze", "model.pt", "--force").code == 0
    assert training("model.frozen.pt").count(False) == 2


def test_a_flag_goes_before_the_other_in_a_file(run: Run, saved: Saved, folder: Path) -> None:
    """As a habit one freezes the statistics only, this time γ and β."""
    saved()
    (folder / "pyproject.toml").write_text("[tool.bntools.freeze]\nstats-only = true")
    for flags, told in (((), "the statistics of 2\n"), (("--affine-only",), "frozen now: γ and β of 2\n")):
        assert told in run("freeze", "model.pt", "--dry-run", *flags).out

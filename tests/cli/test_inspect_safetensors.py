"""Weights in safetensors are looked at without torch, and what is told is what torch would tell."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bntools.core import arrays
from bntools.core.arrays import read_state
from bntools.norms import SwitchableNorm2d
from tests.cli import nets
from tests.cli.conftest import Ran, Run
from tests.findings.cases import CASES
from tests.season import season

State = dict[str, Tensor]
NAME = "w.safetensors"


def one(**tensors: Tensor) -> State:
    """A seasoned BatchNorm of 8 channels, some of its tensors other ones."""
    model = season(nn.Sequential(nn.BatchNorm2d(8)))
    state = {f"a.{key}": value for key, value in model[0].state_dict().items()}
    return state | {f"a.{key}": value.clone() for key, value in tensors.items()}


def ill() -> State:
    """Something for each rule that needs no more than tensors."""
    state = {
        f"{case.make.__name__}.{k}": v for case in CASES for k, v in case.make(True)[0].state_dict().items()
    }
    return {key: value.contiguous().clone() for key, value in state.items()}


def mixed() -> State:
    model = season(nn.Sequential(SwitchableNorm2d(4), nn.Conv2d(4, 4, 1), SwitchableNorm2d(4)))
    torch.nn.init.normal_(model[0].mean_weight)
    torch.nn.init.normal_(model[2].var_weight)
    return model.state_dict()


def wrapped(*prefixes: str, count: bool = False) -> State:
    state = {"".join(prefixes) + key: value for key, value in nets.net().state_dict().items()}
    return state | ({"n_averaged": torch.tensor(3)} if count else {})


def many() -> State:
    """Ten comes after nine, though the library hands tensors out in an order of its own."""
    return {f"l.{i}.{key[2:]}": value for i in range(12) for key, value in one().items()}


STATES: dict[str, Callable[[], State]] = {
    "plain": lambda: nets.net().state_dict(),
    "ill": ill,
    "mixed": mixed,
    "many": many,
    "half": lambda: nets.net().half().state_dict(),
    "bfloat16": lambda: nets.net().bfloat16().state_dict(),
    "double": lambda: nets.net().double().state_dict(),
    "bfloat16 with NaN": lambda: one(running_var=torch.tensor([0.5, float("nan"), -2, *[1] * 5]).bfloat16()),
    "half with an infinity": lambda: one(weight=torch.full((8,), float("inf")).half()),
    "whole numbers": lambda: one(weight=torch.arange(8), running_mean=torch.zeros(8, dtype=torch.uint8)),
    "truths": lambda: one(weight=torch.arange(8) % 2 == 0),
    "a count of half": lambda: one(num_batches_tracked=torch.tensor(0.5)),
    "a count in int32": lambda: one(num_batches_tracked=torch.tensor(7, dtype=torch.int32)),
    "a count of true": lambda: one(num_batches_tracked=torch.tensor(True)),
    "two counts": lambda: one(num_batches_tracked=torch.tensor([7, 8])),
    "a kernel": lambda: one(weight=torch.randn(8, 3, 3, 3)),
    "a small weight": lambda: one(weight=torch.randn(2)),
    "a weight of 2 by 4": lambda: one(weight=torch.randn(2, 4)),
    "no channel": lambda: one(**dict.fromkeys(("running_mean", "running_var", "weight"), torch.zeros(0))),
    "float8": lambda: one() | {"c.weight": torch.zeros(4).to(torch.float8_e4m3fn)},
    "statistics in float8": lambda: one(running_var=torch.ones(8).to(torch.float8_e5m2)),
    "complex": lambda: one(weight=torch.ones(8, dtype=torch.complex64)),
    "half a pair": lambda: {k: v for k, v in one().items() if not k.endswith("var")},
    "no BatchNorm": lambda: nets.plain().state_dict(),
    "the root": lambda: season(nn.Sequential(nn.BatchNorm1d(3)))[0].state_dict(),
    "parallel": lambda: wrapped("module."),
    "averaged": lambda: wrapped("module.", "_orig_mod.", count=True),
    "a prefix of some": lambda: wrapped("module.") | one(),
    "a count and no prefix": lambda: wrapped(count=True),
    "a dot too many": lambda: {f"a.{key}": value for key, value in one().items()} | one(),
}  # fmt: skip


def both(run: Run, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[Ran, Ran]:
    """What is told without torch and with it."""
    without = run("inspect", NAME, *arguments)
    with monkeypatch.context() as patch:
        patch.setattr(arrays, "read_state", lambda _: None)
        return without, run("inspect", NAME, *arguments)


@pytest.mark.parametrize("name", STATES)
def test_both_ways_tell_the_same(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    save_file(STATES[name](), folder / NAME)
    for arguments in (["--json"], ["--json", "--batch-size", "4", "--set", "BN011=0.4"], ["--all"]):
        without, with_torch = both(run, monkeypatch, *arguments)
        assert without == with_torch
        assert without.code == 0
    assert (read_state(folder / NAME) is None) == (name in ("statistics in float8", "complex"))


def test_each_rule_of_tensors_speaks_on_this_way(run: Run, folder: Path) -> None:
    """Else the comparison compares nothing with nothing."""
    save_file(ill(), folder / NAME)
    told = json.loads(run("inspect", NAME, "--json", "--batch-size", "4").out)
    rules = {"BN001", "BN002", "BN003", "BN011", "BN012", "BN020", "BN026"}
    assert {finding["rule"] for finding in told["findings"]} == rules


def test_the_numbers_are_right(folder: Path) -> None:
    """By hand: 1.5 in bfloat16 is 0x3FC0, in float16 0x3E00."""
    about = {
        "a.running_mean": ("BF16", [2], b"\xc0\x3f\xc0\xbf"),
        "a.running_var": ("F16", [2], b"\x00\x3e\x01\x00"),
        "a.num_batches_tracked": ("I64", [], struct.pack("<q", 2**60 + 1)),
        "conv.weight": ("F32", [1], struct.pack("<f", 3)),
    }
    write(folder / NAME, about)
    read = read_state(folder / NAME)
    assert read is not None
    tensors, prefix = read
    assert (list(tensors), prefix) == (
        ["a.num_batches_tracked", "a.running_mean", "a.running_var", "conv.weight"],
        "",
    )
    mean, var = tensors["a.running_mean"], tensors["a.running_var"]
    assert (mean.dtype, var.dtype) == ("bfloat16", "float16")
    assert mean.values is not None
    assert var.values is not None
    assert mean.values.tolist() == [1.5, -1.5]
    assert var.values.tolist() == [1.5, 2.0**-24]
    assert tensors["a.num_batches_tracked"].count == 2**60 + 1
    assert tensors["conv.weight"].values is None


def write(path: Path, about: dict[str, tuple[str, list[int], bytes]], **other: Any) -> None:
    """A safetensors file, byte for byte."""
    header, data = dict(other), b""
    for key, (dtype, shape, raw) in about.items():
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


GOOD = {"a.running_mean": ("F32", [1], bytes(4)), "a.running_var": ("F32", [1], struct.pack("<f", 2))}


@pytest.mark.parametrize(
    ("about", "other"),
    [
        ({**GOOD, "b": ("F32", [2], bytes(4))}, {}),
        ({**GOOD, "b": ("F99", [1], bytes(4))}, {}),
        ({**GOOD, "b": ("F32", [-1], bytes(4))}, {}),
        ({**GOOD, "b": ("F32", [True], bytes(4))}, {}),
        (GOOD, {"b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}),
        (GOOD, {"b": {"dtype": "F32", "shape": [0], "data_offsets": [2, 2]}}),
        (GOOD, {"b": {"dtype": "F32", "shape": [0], "data_offsets": [8, 8, 8]}}),
        (GOOD, {"b": {"dtype": "F32", "shape": {}, "data_offsets": [8, 8]}}),
        (GOOD, {"b": {"dtype": "F32", "shape": [2] * 300_000, "data_offsets": [8, 8]}}),
        (GOOD, {"__metadata__": {"a": 1}}),
        ({}, {}),
    ],
    ids=[
        "short",
        "type",
        "negative",
        "truth",
        "shared",
        "inside",
        "three",
        "shape",
        "axes",
        "metadata",
        "empty",
    ],
)
def test_what_is_out_of_order_is_left_to_the_library(
    run: Run, folder: Path, about: dict[str, Any], other: dict[str, Any]
) -> None:
    write(folder / NAME, GOOD, __metadata__={"format": "pt"})
    assert read_state(folder / NAME) is not None
    write(folder / NAME, about, **other)
    assert read_state(folder / NAME) is None
    ran = run("inspect", NAME)
    assert (ran.code, len(ran.err.splitlines())) == (2, 2) if ran.code else True


@pytest.mark.parametrize("cut", [-1, 1])
def test_a_file_of_another_length(run: Run, folder: Path, cut: int) -> None:
    write(folder / NAME, GOOD)
    raw = (folder / NAME).read_bytes()
    (folder / NAME).write_bytes(raw[:cut] if cut < 0 else raw + bytes(cut))
    assert read_state(folder / NAME) is None
    assert run("inspect", NAME).code == 2
    assert read_state(folder / "gone.safetensors") is None


def test_an_option_that_needs_more_gets_it(run: Run, folder: Path) -> None:
    save_file(nets.net().state_dict(), folder / NAME)
    assert "2 of 2 BatchNorms" in run("inspect", NAME, "--arch", nets.SPEC, "--input", nets.SHAPE).out
    for flags in (["--key", "model"], ["--ema"]):
        ran = run("inspect", NAME, *flags)
        assert ran.code == 2
        assert "no entries to choose from" in ran.err


def test_unsafe_is_told(run: Run, folder: Path) -> None:
    save_file(nets.net().state_dict(), folder / NAME)
    assert json.loads(run("inspect", NAME, "--json", "--unsafe").out)["model"]["unsafe"] is True


@pytest.mark.parametrize("form", ["text", "json", "github", "markdown", "junit"])
def test_torch_is_not_imported(folder: Path, form: str) -> None:
    save_file(wrapped("module.") | {"module.a.weight": torch.ones(2)}, folder / NAME)
    code = (
        "import sys; from bntools.__main__ import main; code = main(sys.argv[1:]); "
        "print('torch' in sys.modules, 'safetensors' in sys.modules, file=sys.stderr); sys.exit(code)"
    )
    arguments = ["inspect", NAME, "--format", form, "--fail-on", "error", "--batch-size", "2"]
    arguments += ["--write-baseline", "known.json"]
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert run.stderr.splitlines()[-1] == "False False"
    assert "BN026" in run.stdout
    assert "BN026" in (folder / "known.json").read_text("utf-8")

"""The example input, and the latency that is measured on it."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.cli import nets
from tests.cli.conftest import Run, digests

Saved = Callable[..., Path]


def test_it_is_given_or_guessed_and_says_which(run: Run, saved: Saved) -> None:
    model = saved()
    assert "2x3x8x8 float32 (given)" in run("inspect", model, "--input", nets.SHAPE).out
    assert "(guessed)" in run("inspect", model).out


def test_a_numpy_file(run: Run, saved: Saved, folder: Path) -> None:
    np.savez(folder / "x.npz", np.random.default_rng(0).normal(size=(4, 3, 9, 7)))
    assert "4x3x9x7 float32 (given)" in run("fold", saved(), "--inputs", "x.npz").out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--input", "3xx"], "write it as"),
        (["--input", ""], "write it as"),
        (["--input", "0x3x8x8"], "no elements"),
        (["--input", "2x3x8x8:float33"], "no known type"),
        (["--input", "2x3x8x8:int4"], "no known type"),
        (["--input", "2x3x8x8:quint8"], "no known type"),
        (["--input", "y=2x3x8x8"], "takes no argument 'y'"),
        (["--inputs", "gone.npz"], "there is no such file"),
        (["--inputs", "model.pt"], "numpy"),
        (["--inputs", "pipe.npz"], "no ordinary file"),
        (["--inputs", "bomb.npz"], "2 at most are read"),
        (["--arch-kwargs", "[" * 100_000], "no JSON"),
        (["--input", nets.SHAPE, "--inputs", "x.npz"], "exclude each other"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("verb", ["inspect", "fold"])
def test_a_wrong_one(
    run: Run, saved: Saved, folder: Path, verb: str, arguments: list[str], says: str
) -> None:
    np.savez(folder / "x.npz", np.ones((2, 3, 8, 8)))
    os.mkfifo(folder / "pipe.npz")
    _bomb(folder / "bomb.npz")
    saved()
    before = digests(folder)
    ran = run(verb, "model.pt", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err
    assert len(ran.err.splitlines()) == 2
    assert digests(folder) == before


def _bomb(path: Path) -> None:
    """A megabyte of zeros that says it is three thousand."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(2**20))
    data = path.read_bytes()
    size = (2**20).to_bytes(4, "little")
    at = data.rindex(size)
    path.write_bytes(data[:at] + (3 * 2**30).to_bytes(4, "little") + data[at + 4 :])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_input_that_is_no_number_proves_nothing(
    run: Run, saved: Saved, folder: Path, value: float
) -> None:
    np.savez(folder / "x.npz", np.full((2, 3, 8, 8), value))
    ran = run("fold", saved(), "--inputs", "x.npz")
    assert "inconclusive: on these inputs no output is a finite number" in ran.out
    assert "argmax" not in ran.out


def test_the_latency_is_measured_on_demand(run: Run, saved: Saved) -> None:
    model = saved()
    ran = run("fold", model, "--input", nets.SHAPE, "--benchmark")
    assert re.search(r"latency +\d+\.\d\d ms before, \d+\.\d\d ms after: \d+\.\d\d times as fast", ran.out)
    about = json.loads(run("fold", model, "--input", nets.SHAPE, "--benchmark", "--json", "--force").out)[
        "latency"
    ]
    assert about["before"] > 0
    assert about["after"] > 0
    assert about["runs"] >= 10
    assert "ms before" not in run("fold", model, "--input", nets.SHAPE, "--force").out

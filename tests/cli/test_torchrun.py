"""`torchrun -m bntools recalibrate` does what `bntools recalibrate` does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.conftest import Run, digests
from tests.cli.test_recalibrate import net

Saved = Callable[..., Path]
CODE = """
import os
import torch

def loader():
    for number in range(4):
        if os.environ["RANK"] == "1":
            raise OSError("the disk is gone")
        yield torch.randn(8, 3, 9, 9)
"""


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    command = [*start, "-m", "bntools", "recalibrate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


@pytest.fixture
def data(folder: Path) -> np.ndarray:
    array = np.random.default_rng(0).normal(1, 2, (70, 3, 9, 9)).astype(np.float32)
    np.save(folder / "x.npy", array)
    return array


def test_three_processes_write_what_one_writes(run: Run, saved: Saved, data: np.ndarray) -> None:
    """Five batches: two have two of them, one has one. With two batches, one has none."""
    saved(net(), "my model.pt")
    arguments = ("my model.pt", "--data", "x.npy", "--batch-size")
    assert run("recalibrate", *arguments, "16", "-o", "one.pt").code == 0
    expected = torch.load("one.pt", weights_only=False).state_dict()
    for size, count in (("16", 5), ("40", 2)):
        ran = torchrun(*arguments, size, "-o", f"three {size}.pt", "--json")
        assert ran.returncode == 0, ran.stderr
        told = json.loads(ran.stdout)  # one object, not three
        assert (told["drift"]["samples"], told["drift"]["batches"]) == (70, count)
        assert told["drift"]["processes"] == 3
        assert told["drift"]["layers"][0]["error_mean"] is not None
        found = torch.load(f"three {size}.pt", weights_only=False).state_dict()
        for key, value in expected.items():
            if "num_batches" not in key:
                torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-7)


@pytest.mark.zoo  # tests/verbs/test_distributed.py asks the same without torchrun
def test_an_error_in_one_ends_all_and_writes_nothing(saved: Saved, folder: Path) -> None:
    saved(net())
    Path("their.py").write_text(CODE)
    before = digests(folder)
    ran = torchrun("model.pt", "--data", "their:loader")
    assert ran.returncode != 0
    assert "process 1: data: giving batch 0 failed with OSError: the disk is gone" in ran.stderr
    assert "bug in bntools" not in ran.stderr
    assert {k: v for k, v in digests(folder).items() if "__pycache__" not in k} == before

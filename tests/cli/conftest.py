"""A folder of its own for each test, and a way to run a command line in it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from torch import nn

from bntools.__main__ import main
from tests.cli import nets

ROOT = Path(__file__).parents[2]
COLOURS = ("NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS", "TTY_COMPATIBLE", "GITHUB_ACTIONS", "PY_COLORS")


@dataclass(frozen=True)
class Ran:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str


class Run(Protocol):
    def __call__(self, *arguments: str | Path) -> Ran: ...


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory without defaults from the environment."""
    monkeypatch.chdir(tmp_path)
    for name in [n for n in os.environ if n.startswith("BNTOOLS_") or n in COLOURS]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process."""

    def call(*arguments: str | Path) -> Ran:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        return Ran(code, *capsys.readouterr())

    return call


@pytest.fixture
def saved(folder: Path) -> Callable[..., Path]:
    """Save something with torch.save, by default the network whose BatchNorms all fold."""

    def save(content: Any = None, name: str = "model.pt") -> Path:
        path = folder / name
        torch.save(nets.net() if content is None else content, path)
        return path

    return save


def digests(folder: Path) -> dict[str, str]:
    """Every file below *folder* with a hash of its bytes: equal before and after means nothing happened."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file that the command line wrote as a module."""
    model = torch.load(path, weights_only=False)
    assert isinstance(model, nn.Module)
    return model.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)

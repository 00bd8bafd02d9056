"""The page on errors quotes what is printed: each of its commands is run, and the output compared with it."""

from __future__ import annotations

import copy
import importlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import bntools as bn
from bntools.__main__ import main
from bntools.cli.app import EXIT_CODES
from tests.cli.conftest import COLOURS
from tests.onnx_by_hand import Draw, Line, model, norm
from tests.season import season

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")
PAGE = (Path(__file__).parent.parent / "docs" / "troubleshooting.md").read_text("utf-8")
COMMAND = re.compile(r"\$ (?:cd (?P<folder>\S+) && )?bntools (?P<line>.*?)(?:  # exit code (?P<code>\d+))?")
LOGGED = re.compile(r"^[EW]\d{4} .*\n", re.MULTILINE)
"""What torch itself logs while shapes are tried."""
MYLIB = '''
"""A package of somebody's own."""

from torch import nn


class Net(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        return self.head(self.bn(self.conv(x)).relu().mean((2, 3)))


class Branch(Net):
    def forward(self, x):
        x = self.bn(self.conv(x))
        return x.relu() if x.mean() > 0 else x.abs()


class Tall(Net):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8 * 20 * 50, 4)

    def forward(self, x):
        return self.head(self.bn(self.conv(x)).relu().flatten(1))


class Asks(Net):
    def forward(self, x):
        return self.bn(self.conv(x)) * len(self.bn.running_mean)


class Words(Net):
    def forward(self, x):
        return {"word": "cat", "scores": super().forward(x)}
'''


def _sections() -> dict[str, list[str]]:
    """The blocks of output below each heading."""
    parts = re.split(r"^#+ (.*)$", PAGE, flags=re.MULTILINE)[1:]
    found = {
        heading: re.findall(r"^```text\n(.*?)^```$", body, re.MULTILINE | re.DOTALL)
        for heading, body in zip(parts[::2], parts[1::2], strict=True)
    }
    return {heading: blocks for heading, blocks in found.items() if blocks}


def _runs(block: str) -> Iterator[tuple[re.Match[str], list[str]]]:
    """Each command of a block, with the lines that it is said to print."""
    runs: list[tuple[re.Match[str], list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found = COMMAND.fullmatch(line)
            assert found is not None, f"no command: {line}"
            runs.append((found, []))
        else:
            runs[-1][1].append(line)
    return iter(runs)


def _pattern(lines: list[str]) -> re.Pattern[str]:
    """Lines as an expression: ``…`` alone stands for any lines, inside one for any text."""
    told = [r"(?:.*\n)*?" if line == "…" else re.escape(line).replace("…", ".*") + r"\n" for line in lines]
    return re.compile("".join(told))


def _own(name: str, *arguments: Any) -> nn.Module:
    made: nn.Module = getattr(importlib.import_module("mylib"), name)(*arguments)
    return season(made.eval())


class _Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch owned",)


class _Inner(nn.Module):
    """A program of it has a graph inside its graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            out: torch.Tensor = self.bn(self.conv(x))
        return out


def _plain(seed: int = 0) -> nn.Module:
    """A BatchNorm that folds, one that stays, one that folds."""
    layers = [
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ]
    return season(nn.Sequential(*layers).eval(), seed)


def _wild() -> nn.Module:
    """Two BatchNorms that undo one another by way of values of 1e5: of small inputs little is left."""
    wild = nn.Sequential(nn.BatchNorm2d(3, eps=0.0), nn.BatchNorm2d(3, eps=0.0), nn.Conv2d(3, 4, 3)).eval()
    for path, mean in (("0", 1e5), ("1", -1e5)):
        wild.get_buffer(f"{path}.running_mean").fill_(mean)
    return wild


def _torch_files(folder: Path) -> None:
    plain, own = _plain(), _own("Net")
    torch.save(plain, folder / "model.pt")
    torch.save(plain, folder / "there.pt")
    torch.save(season(copy.deepcopy(plain), seed=1), folder / "other.pt")
    for name in ("Net", "Branch", "Tall", "Asks", "Words"):
        torch.save(_own(name), folder / f"{name.lower()}.pt")
    torch.save(own.state_dict(), folder / "weights.pt")
    several = {"epoch": 3, "generator": own.state_dict(), "critic": own.state_dict()}
    torch.save(several, folder / "checkpoint.pt")
    object.__setattr__(own, "evil", _Evil())
    torch.save(own, folder / "evil.pt")
    torch.save(torch.ones(3), folder / "tensor.pt")
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-12)).eval(), folder / "weak.pt")
    torch.save(_wild(), folder / "wild.pt")
    fresh = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2)).eval()
    nn.init.zeros_(fresh[3].weight)
    torch.save(fresh, folder / "fresh.pt")
    torch.jit.script(plain).save(str(folder / "scripted.pt"))
    x = torch.randn(2, 3, 8, 8)
    torch.export.save(torch.export.export(plain, (x,)), folder / "program.pt2")
    torch.export.save(torch.export.export(season(_Inner().eval()), (x,)), folder / "inner.pt2")
    content = (folder / "model.pt").read_bytes()
    (folder / "cut.pt").write_bytes(content[: len(content) // 2])


def _lost(folder: Path) -> None:
    """A model of a class whose module is gone."""
    (folder / "elsewhere.py").write_text("from torch import nn\n\n\nclass Net(nn.Sequential):\n    pass\n")
    made = importlib.import_module("elsewhere").Net(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    torch.save(made.eval(), folder / "lost.pt")
    (folder / "elsewhere.py").unlink()
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    del sys.modules["elsewhere"]


def _other_files(folder: Path) -> None:
    (folder / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")
    (folder / "page.pt").write_text("<!doctype html><html><body>Sign in</body></html>")
    (folder / "empty.pt").touch()
    draw = np.random.default_rng(0)
    images = draw.normal(size=(16, 3, 8, 8)).astype(np.float32)
    np.save(folder / "images.npy", images)
    np.save(folder / "far.npy", 1e5 * images)
    images[5, 0, 0, 0] = np.nan
    np.save(folder / "holes.npy", images)
    for name, line in {"typo": 'formt = "json"', "bold": "unsafe = true"}.items():
        (folder / name).mkdir()
        (folder / name / "pyproject.toml").write_text(f"[tool.bntools]\n{line}\n")


def _onnx_files(folder: Path) -> None:
    draw = Draw()
    weights = {"w": draw.weight(4, 3, 3, 3), **draw.norm("n", 4)}
    conv: Line = ("Conv", ["x", "w"], ["c"], {})

    def made() -> onnx.ModelProto:
        return model([conv, norm("c", "b", "n"), ("Relu", ["b"], ["y"], {})], weights, {"x": ["N", 3, 8, 8]})

    onnx.save(made(), folder / "good.onnx")
    old = made()
    old.opset_import[0].version = 6
    onnx.save(old, folder / "old.onnx")
    custom = made()
    custom.graph.node[2].op_type, custom.graph.node[2].domain = "Mine", "com.mine"
    custom.opset_import.append(onnx.helper.make_opsetid("com.mine", 1))
    onnx.save(custom, folder / "custom.onnx")
    for name in ("apart", "up"):
        path = folder / f"{name}.onnx"
        onnx.save(made(), path, save_as_external_data=True, location=f"{name}.data", size_threshold=0)
    (folder / "apart.data").unlink()
    up = onnx.load(folder / "up.onnx", load_external_data=False)
    for entry in (entry for tensor in up.graph.initializer for entry in tensor.external_data):
        entry.value = "../up.data" if entry.key == "location" else entry.value
    (folder / "up.onnx").write_bytes(up.SerializeToString())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files that the page speaks of."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "mylib.py").write_text(MYLIB)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.syspath_prepend(folder)
        importlib.invalidate_caches()
        _torch_files(folder)
        _lost(folder)
        _other_files(folder)
        _onnx_files(folder)
    yield folder
    sys.modules.pop("mylib", None)


@pytest.fixture
def folder(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them, to work in."""
    shutil.copytree(files, tmp_path / "work")
    for name in [n for n in os.environ if n.startswith("BNTOOLS_") or n in COLOURS]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.parametrize("heading", _sections())
def test_what_is_quoted_is_printed(
    heading: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, lines in (run for block in _sections()[heading] for run in _runs(block)):
        monkeypatch.chdir(folder / (command["folder"] or "."))
        capsys.readouterr()
        code = main(shlex.split(command["line"]))
        printed = LOGGED.sub("", "".join(capsys.readouterr()))
        assert _pattern(lines).fullmatch(printed), f"{command[0]}\n{printed}"
        assert code == int(command["code"] or 0), f"{command[0]}\n{printed}"
    assert not (folder / "owned").exists()


def test_every_exit_code_is_told_and_shown() -> None:
    known = {int(code) for code in re.findall(r"^ +(\d+) ", EXIT_CODES, re.MULTILINE)}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)} == known
    shown = {int(run[0]["code"] or 0) for blocks in _sections().values() for b in blocks for run in _runs(b)}
    assert shown == known - {101, 130}  # tests/cli/test_exit_codes.py has those: nobody can ask for them


def test_a_message_that_is_not_printed_is_found() -> None:
    printed = "error  a.pt: gone\n       check\n"
    assert _pattern(["error  …: gone", "       check"]).fullmatch(printed)
    assert _pattern(["…", "       check"]).fullmatch(printed)
    assert not _pattern(["error  …: gone"]).fullmatch(printed)
    assert not _pattern(["error  …: going", "       check"]).fullmatch(printed)
    assert not _pattern(["…", "       look"]).fullmatch(printed)


X = torch.zeros(2, 3, 8, 8)
IN_PYTHON: dict[str, Callable[[nn.Module], Any]] = {
    "training": lambda net: bn.export(net.train(), X, "out.onnx"),
    "compiled": lambda net: bn.fold(torch.compile(net), X),  # type: ignore[arg-type]
    "scripted": lambda net: bn.fold(torch.jit.script(net), X),
    "lazy": lambda net: bn.fold(nn.LazyConv2d(3, 3), X),
    "no data": lambda net: bn.recalibrate(net, []),
}


def test_the_errors_of_python_are_raised(folder: Path) -> None:
    rows = re.findall(r"^\| `(\w+: .*?)` \|", PAGE, re.MULTILINE)
    left = dict.fromkeys(rows)
    for name, call in IN_PYTHON.items():
        with pytest.raises(bn.BntoolsError) as raised:
            call(_plain())
        said = f"{raised.type.__name__}: {raised.value.message}"
        known = [row for row in rows if _pattern([row]).fullmatch(said + "\n")]
        assert len(known) == 1, f"{name}: {said}"
        left.pop(known[0])
    assert not left, "no longer raised"

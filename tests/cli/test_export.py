"""``bntools export``: what it prints and writes, and how it ends."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from torch import nn

from bntools.core import external as beside
from bntools.core import programfile
from tests.cli import nets
from tests.cli.conftest import ROOT, Run, digests

Saved = Callable[..., Path]
ON = ("--input", nets.SHAPE)

pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")  # torch's, on copying


def test_the_file_and_what_is_told_of_it(run: Run, saved: Saved) -> None:
    saved(nets.partly())
    ran = run("export", "model.pt", *ON)
    assert ran.code == 0, ran.err
    assert ran.err == ""
    proto = onnx.load("model.onnx")
    (norms,) = [line.split()[1:] for line in ran.out.splitlines() if line.startswith("BatchNormalization")]
    assert norms == ["1", "1"]
    assert sum(node.op_type == "BatchNormalization" for node in proto.graph.node) == 1
    for text in ("folded      1 of 2", "file        passed, by ONNX Runtime", "written     model.onnx"):
        assert text in ran.out
    assert "on top" not in ran.out


class Levit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(6, 8), nn.BatchNorm1d(8)

    def forward(self, v: Any) -> Any:
        y = self.linear(v)
        return self.bn(y.flatten(0, 1)).reshape_as(y)


def test_what_the_exporter_would_have_left_is_told(run: Run, saved: Saved) -> None:
    saved(nets._made(Levit()))
    ran = run("export", "model.pt", "--input", "2x5x6", "--trust", "tests")
    assert ran.code == 0, ran.err
    assert "on top      1 of the 1 BatchNorms that torch's exporter alone would have left" in ran.out


def test_json_is_one_object_with_all_of_it(run: Run, saved: Saved) -> None:
    saved()
    ran = run(
        "export", "model.pt", *ON, "--json", "-o", "out.onnx", "--opset", "19", "--dynamic", "2=height",
        "--dynamic", "input:3=width", "--input-names", "picture", "--output-names", "features",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told["graph"]["opset"] == 19
    assert told["graph"]["inputs"] == ["picture: batch×3×height×width float"]
    assert told["graph"]["outputs"][0].startswith("features: batch×5×")
    assert told["graph"]["nodes"] == {"Conv": 2, "Relu": 1}
    assert told["check"]["verdict"] == "passed"
    assert any("16x16" in text for text in told["check"]["inputs"])
    assert told["output"]["path"] == "out.onnx"


@pytest.mark.parametrize("form", ["github", "markdown"])
def test_other_formats(run: Run, saved: Saved, form: str) -> None:
    saved(nets.partly())
    ran = run("export", "model.pt", *ON, "--format", form, "--no-compare")
    assert ran.code == 0, ran.err
    assert "the file passed" in ran.out
    assert ("::notice" in ran.out) == (form == "github")
    assert ("| `Conv` | 1 |" in ran.out) == (form == "markdown")


def test_a_model_in_training_mode_is_put_in_eval_or_refused(run: Run, saved: Saved, folder: Path) -> None:
    saved(nets.net().train())
    before = digests(folder)
    ran = run("export", "model.pt", *ON, "--keep-mode")
    assert ran.code == 2
    assert "training mode" in ran.err
    assert digests(folder) == before
    ran = run("export", "model.pt", *ON, "--no-compare")
    assert ran.code == 0
    assert "was put in eval mode" in ran.err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--opset", "12"), 4, "torch's exporter gives 18"),
        (("--dynamic", "height"), 2, "is no axis"),
        (("--dynamic", "9=height"), 2, "no axis 9"),
        (("--input-names", "a,b"), 2, "2 names are given"),
        (("-o", "out.pt"), 2, "name a .onnx"),
        (("-o", "no/such/out.onnx"), 2, "there is no folder"),
        (("-o", "there.onnx"), 2, "exists"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_is_wrong_is_told_in_two_lines_and_nothing_is_written(
    run: Run, saved: Saved, folder: Path, options: tuple[str, ...], code: int, words: str
) -> None:
    saved()
    Path("there.onnx").write_text("mine")
    before = digests(folder)
    ran = run("export", "model.pt", *ON, *options)
    assert ran.code == code, ran.err
    assert words in ran.err
    assert len(ran.err.splitlines()) <= 2
    assert digests(folder) == before


def test_a_wrong_file_is_not_written_and_its_place_told(
    run: Run, saved: Saved, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved()
    Path("model.onnx").write_text("mine")
    before = digests(folder)
    polish = programfile.polish_

    def wrong(proto: Any, *args: Any) -> None:
        polish(proto, *args)
        bias = next(each for each in proto.graph.initializer if each.name == "3.bias")
        values = onnx.numpy_helper.to_array(bias) + np.float32(1e-3)
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))

    monkeypatch.setattr(programfile, "polish_", wrong)
    ran = run("export", "model.pt", *ON, "--force", "--json")
    assert ran.code == 1
    assert "from 3 on" in ran.err
    assert json.loads(ran.out)["report"]["place"]["module"] == "3"
    assert digests(folder) == before


def test_strict(run: Run, saved: Saved, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bntools as bn

    saved(nets.partly())
    assert run("export", "model.pt", *ON, "--strict").code == 1
    saved()
    doubt = bn.Report(bn.Verdict.UNVERIFIED, runtime="ONNX Runtime", why="it has no kernels for that")
    monkeypatch.setattr(programfile, "check", lambda *args: doubt)
    ran = run("export", "model.pt", *ON, "--strict", "--no-compare")
    assert ran.code == 5
    assert "unverified: it has no kernels" in ran.err
    assert not (folder / "model.onnx").exists()
    ran = run("export", "model.pt", *ON, "--no-compare")
    assert ran.code == 0
    assert "file        unverified" in ran.out


def command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "bntools", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        check=False,
    )


@pytest.mark.zoo
def test_an_ascii_terminal_and_a_read_only_working_folder(saved: Saved, folder: Path) -> None:
    saved(nets.partly())
    (folder / "out").mkdir()
    (folder / "work").mkdir(mode=0o500)
    ran = command(
        folder / "work", "export", "../model.pt", *ON, "-o", "../out/m.onnx", PYTHONIOENCODING="ascii"
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.isascii()
    assert ran.stderr == b""
    assert [path.name for path in (folder / "out").iterdir()] == ["m.onnx"]
    assert list((folder / "work").iterdir()) == []


def test_a_full_disk_leaves_the_old_file(
    run: Run, saved: Saved, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of files stands in for the disk: writes fail half-way, as they do there."""
    saved(nets.net(width=400))
    Path("model.onnx").write_text("mine")
    before = digests(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for external in ((), ("--external-data",)):
        lay_out = beside.lay_out

        def limited(*args: Any, lay_out: Any = lay_out) -> Any:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
            try:
                return lay_out(*args)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

        with monkeypatch.context() as patch:
            patch.setattr(beside, "lay_out", limited)
            ran = run("export", "model.pt", *ON, "--force", "--no-compare", *external)
        assert ran.code == 2, ran.err
        assert "cannot be written" in ran.err
        assert digests(folder) == before


def test_no_fold_and_no_verify(run: Run, saved: Saved) -> None:
    saved()
    ran = run("export", "model.pt", *ON, "--no-fold", "--no-verify")
    assert ran.code == 0
    assert "file        skipped" in ran.out
    assert "folded" not in ran.out
    assert not any(entry.key == "bntools" for entry in onnx.load("model.onnx").metadata_props)

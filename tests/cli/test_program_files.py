"""``-o model.pt2`` and ``-o model.onnx``: what the files hold, compute and say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import bntools as bn
from bntools.core import programfile
from tests.cli import nets
from tests.cli.conftest import Run, digests

Saved = Callable[..., Path]
ON = ("--input", nets.SHAPE)

pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")  # torch's, on copying


def given(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def test_an_onnx_file_computes_what_the_model_computes(run: Run, saved: Saved) -> None:
    saved()
    ran = run("fold", "model.pt", *ON, "-o", "model.onnx", "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told["output"]["check"]["verdict"] == "passed"
    assert told["output"]["check"]["error"] < 1e-5
    file = onnx.load("model.onnx")
    assert "BatchNormalization" not in {node.op_type for node in file.graph.node}
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    (name,) = [each.name for each in session.get_inputs()]
    for batch in (1, 2, 5):
        with torch.no_grad():
            reference = nets.net()(given(batch)).numpy()
        (ours,) = session.run(None, {name: given(batch).numpy()})
        assert np.abs(ours - reference).max() <= 1e-5 * np.abs(reference).max()
    (plan,) = [entry.value for entry in file.metadata_props if entry.key == "bntools"]
    assert len(bn.Plan.from_json(plan).edits) == told["plan"]["edits"].__len__() > 0


def test_a_pt2_file_computes_what_the_model_computes(run: Run, saved: Saved) -> None:
    saved()
    assert run("fold", "model.pt", *ON, "-o", "model.pt2").code == 0
    extra = {"bntools": ""}
    program = torch.export.load("model.pt2", extra_files=extra)
    assert "batch_norm" not in str(program.graph)
    with torch.no_grad():
        reference, ours = nets.net()(given(5)), program.module()(given(5))
    assert (ours - reference).abs().max() <= 1e-5 * reference.abs().max()
    assert bn.Plan.from_json(extra["bntools"]).edits


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_equal_models_give_equal_bytes_and_no_path_stands_in_them(
    run: Run, saved: Saved, folder: Path, ending: str
) -> None:
    saved()
    for name in ("a", "b"):
        assert run("fold", "model.pt", *ON, "-o", f"{name}.{ending}").code == 0
    one, two = (Path(f"{name}.{ending}").read_bytes() for name in ("a", "b"))
    assert one == two
    assert str(Path(bn.__file__).parent).encode() not in one
    assert str(folder).encode() not in one


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_nothing_is_lost(run: Run, saved: Saved, folder: Path, ending: str) -> None:
    saved()
    Path(f"model.{ending}").write_text("mine")
    before = digests(folder)
    ran = run("fold", "model.pt", *ON, "-o", f"model.{ending}")
    assert ran.code == 2
    assert "exists" in ran.err
    assert run("fold", "model.pt", *ON, "-o", f"new.{ending}", "--dry-run").code == 0
    assert digests(folder) == before
    assert run("fold", "model.pt", *ON, "-o", f"model.{ending}", "--force").code == 0
    assert Path(f"model.{ending}").read_bytes() != b"mine"


class Branching(nn.Module):
    """Asks a value, which no program can."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nets.net()

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(v)
        return out if out.sum() > 0 else -out


def test_a_model_that_cannot_be_exported_is_an_error_that_says_what_to_do(
    run: Run, saved: Saved, folder: Path
) -> None:
    saved(Branching().eval())
    before = digests(folder)
    ran = run("fold", "model.pt", *ON, "--unsafe", "-o", "model.onnx")
    assert ran.code == 4
    assert "torch.export refuses the model" in ran.err
    assert "-o model.pt" in ran.err
    assert digests(folder) == before


def test_a_file_that_computes_something_else_is_not_written(
    run: Run, saved: Saved, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved()
    before = digests(folder)
    polish = programfile.polish_

    def wrong(proto: Any, *args: Any) -> None:
        polish(proto, *args)
        bias = next(each for each in proto.graph.initializer if len(each.dims) == 1)
        values = onnx.numpy_helper.to_array(bias) + np.float32(1e-3)
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))

    monkeypatch.setattr(programfile, "polish_", wrong)
    ran = run("fold", "model.pt", *ON, "-o", "model.onnx")
    assert ran.code == 1
    assert "ONNX Runtime computes something else" in ran.err
    assert digests(folder) == before


def test_strict_wants_the_file_to_have_been_run(
    run: Run, saved: Saved, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved()
    check = bn.Report(bn.Verdict.UNVERIFIED, runtime="ONNX Runtime", why="it has no kernels for that")
    monkeypatch.setattr(programfile, "check", lambda *args: check)
    ran = run("fold", "model.pt", *ON, "-o", "model.onnx", "--strict")
    assert ran.code == 5, ran.err
    assert "no kernels" in ran.err
    assert not (folder / "model.onnx").exists()
    assert run("fold", "model.pt", *ON, "-o", "model.onnx").code == 0


def test_what_is_about_modules_is_refused(run: Run, saved: Saved) -> None:
    saved()
    ran = run("fold", "model.pt", *ON, "-o", "model.onnx", "--bake-parametrizations")
    assert ran.code == 2
    assert "modules" in ran.err


def test_half_precision_is_checked_by_its_own_rounding(tmp_path: Path) -> None:
    surgery = bn.fold(nets.net().half(), given().half(), level="program")
    bn.save(surgery, tmp_path / "half.pt2")
    program = torch.export.load(tmp_path / "half.pt2").module()
    assert program(given().half()).dtype is torch.float16


@pytest.mark.parametrize("ending", ["pt", "safetensors", "txt"])
def test_a_program_is_no_module(tmp_path: Path, ending: str) -> None:
    surgery = bn.fold(nets.net(), given(), level="program")
    with pytest.raises(bn.UsageError, match="pt2"):
        bn.save(surgery, tmp_path / f"model.{ending}")


@pytest.mark.parametrize("ending", ["pt2", "onnx"])
def test_a_module_is_no_program(tmp_path: Path, ending: str) -> None:
    with pytest.raises(bn.UsageError, match="level='program'"):
        bn.save(bn.fold(nets.net(), given()), tmp_path / f"model.{ending}")


@pytest.mark.parametrize("ending", ["pt2", "onnx"])
def test_a_program_whose_layers_all_lie_deeper_is_one(tmp_path: Path, ending: str) -> None:
    surgery = bn.fold(nn.Sequential(nets.net()).eval(), given(), level="program")
    assert bn.save(surgery, tmp_path / f"model.{ending}").is_file()

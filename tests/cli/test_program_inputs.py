"""A ``.pt2`` as MODEL: what each command makes of it, and what it says where it makes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import bntools as bn
from tests.cli import nets
from tests.cli.conftest import Run, digests
from tests.hostile import program_files as hostile

Saved = Callable[..., Path]
AUTO = torch.export.Dim.AUTO

pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")  # torch's, on copying


def given(*shape: int) -> torch.Tensor:
    return torch.randn(shape or (2, 3, 8, 8), generator=torch.Generator().manual_seed(3))


def exported(model: nn.Module, axes: Any = None, name: str = "model.pt2") -> nn.Module:
    """Write it as torch does; the model comes back."""
    torch.export.save(torch.export.export(model, (given(),), dynamic_shapes=axes), name)
    return model


def test_a_program_is_folded_into_a_program(run: Run, folder: Path) -> None:
    model = exported(nets.net(), ({0: AUTO},))
    ran = run("fold", "model.pt2")
    assert ran.code == 0, ran.err
    assert "input       2x3x8x8 float32 (from the file)" in ran.out
    assert "folded      2 of 2 BatchNorms" in ran.out
    assert "proof       passed" in ran.out
    extra = {"bntools": ""}
    program = torch.export.load("model.folded.pt2", extra_files=extra)
    assert "batch_norm" not in str(program.graph)
    assert [edit.site.name for edit in bn.Plan.from_json(extra["bntools"]).edits] == ["1", "4"]
    with torch.no_grad():
        for batch in (1, 2, 5):
            reference, ours = model(given(batch, 3, 8, 8)), program.module()(given(batch, 3, 8, 8))
            assert (ours - reference).abs().max() <= 1e-5 * reference.abs().max()
    assert run("verify", "model.pt2", "model.folded.pt2").code == 0
    again = run("fold", "model.folded.pt2")
    assert again.code == 0
    assert "a torch.export program, folded before" in again.out
    assert not (folder / "model.folded.folded.pt2").exists(), "there is nothing to do"


def test_what_was_open_stays_open(run: Run) -> None:
    """Other axes than the batch too, in both kinds of program."""
    model = exported(nets.net(), ({0: AUTO, 2: AUTO, 3: AUTO},))
    assert run("fold", "model.pt2").code == 0
    assert run("fold", "model.pt2", "-o", "folded.onnx").code == 0
    assert run("export", "model.pt2", "-o", "exported.onnx").code == 0
    program = torch.export.load("model.folded.pt2").module()
    x = given(3, 3, 11, 9)
    with torch.no_grad():
        reference = model(x)
        assert (program(x) - reference).abs().max() <= 1e-5 * reference.abs().max()
    for name in ("folded.onnx", "exported.onnx"):
        (value,) = onnx.load(name).graph.input
        sizes = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        assert sizes == ["batch", 3, "axis2", "axis3"]
    fixed = run("export", "model.pt2", "-o", "fixed.onnx", "--fixed-batch")
    assert fixed.code == 0, fixed.err
    (value,) = onnx.load("fixed.onnx").graph.input
    assert value.type.tensor_type.shape.dim[0].dim_value == 2


def test_what_was_fixed_stays_fixed(run: Run) -> None:
    exported(nets.net())
    assert run("fold", "model.pt2").code == 0
    program = torch.export.load("model.folded.pt2")
    (x,) = [
        n
        for n in program.graph.nodes
        if n.op == "placeholder" and n.name in program.graph_signature.user_inputs
    ]
    assert tuple(x.meta["val"].shape) == (2, 3, 8, 8)
    assert all(isinstance(size, int) for size in x.meta["val"].shape)


def test_a_program_is_written_as_one(run: Run, folder: Path) -> None:
    exported(nets.net())
    before = digests(folder)
    ran = run("fold", "model.pt2", "-o", "model.pt")
    assert ran.code == 2
    assert "what was a program stays one" in ran.err
    assert ".pt2 or .onnx" in ran.err
    assert digests(folder) == before
    assert run("fold", "model.pt2", "--dry-run").code == 0
    assert digests(folder) == before
    ran = run("fold", "model.pt2", "--simplify")
    assert ran.code == 2
    assert "it is about modules, and a program has none" in ran.err
    assert digests(folder) == before
    Path("model.folded.pt2").write_text("mine")
    assert run("fold", "model.pt2").code == 2
    assert Path("model.folded.pt2").read_text() == "mine"


def test_inputs_can_be_given(run: Run, tmp_path: Path) -> None:
    exported(nets.net(), ({0: AUTO},))
    ran = run("fold", "model.pt2", "--input", "4x3x8x8", "--force")
    assert ran.code == 0, ran.err
    assert "input       4x3x8x8 float32 (given)" in ran.out
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32))
    ran = run("fold", "model.pt2", "--inputs", tmp_path / "x.npz", "--force")
    assert ran.code == 0, ran.err
    assert "input       3x3x8x8 float32 (given)" in ran.out


def test_inspect_says_what_folds(run: Run) -> None:
    exported(nets.partly())
    told = json.loads(run("inspect", "model.pt2", "--json").out)
    assert [edit["site"]["name"] for edit in told["plan"]["edits"]] == ["1"]
    assert [refusal["site"]["name"] for refusal in told["plan"]["refusals"]] == ["3"]
    assert told["model"]["what"] == "a torch.export program"
    assert told["findings"] == []


def test_findings_about_numbers_are_found_in_programs(run: Run) -> None:
    model = nets.net()
    fresh = nn.BatchNorm2d(5)
    model.get_submodule("4").load_state_dict(fresh.state_dict())
    exported(model)
    told = json.loads(run("inspect", "model.pt2", "--json").out)
    assert [(each["rule"], each["layer"]) for each in told["findings"]] == [("BN003", "4")]


def test_a_program_that_would_run_code_is_inspected_by_its_weights(run: Run, folder: Path) -> None:
    records = hostile.sound()
    hostile.target("torch.hub.load")(records, "")
    hostile.written(folder / "model.pt2", records)
    ran = run("inspect", "model.pt2")
    assert ran.code == 0, ran.err
    assert "the weights of a torch.export program only" in ran.out
    assert "the operator torch.hub.load" in ran.out
    told = json.loads(run("inspect", "model.pt2", "--json").out)
    assert [(site["name"], site["channels"]) for site in told["sites"]] == [("bn", 4)]
    assert told["plan"] is None
    for verb in (["fold", "model.pt2"], ["export", "model.pt2"], ["verify", "model.pt2", "model.pt2"]):
        ran = run(*verb)
        assert ran.code == 3
        assert "the operator torch.hub.load" in ran.err
        assert "--unsafe" in ran.err
    assert not list(folder.glob("*.folded.*"))


@pytest.mark.parametrize(
    "verb", [["freeze"], ["swap"], ["recalibrate", "--data", "x.npy"]], ids=lambda v: v[0]
)
def test_what_cannot_be_done_with_a_program_says_what_can(run: Run, folder: Path, verb: list[str]) -> None:
    exported(nets.net())
    np.save("x.npy", np.zeros((2, 3, 8, 8), np.float32))
    before = digests(folder)
    ran = run(verb[0], "model.pt2", *verb[1:])
    assert ran.code == 2
    assert "a torch.export program, whose graph this verb cannot change" in ran.err
    assert "fold, export, inspect or verify it" in ran.err
    assert digests(folder) == before


def test_its_weights_go_into_an_architecture(run: Run) -> None:
    model = exported(nets.net())
    ran = run("freeze", "model.pt2", "--arch", nets.SPEC)
    assert ran.code == 0, ran.err
    state = torch.load("model.frozen.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    ran = run("fold", "model.pt2", "--arch", nets.SPEC, "--input", nets.SHAPE)
    assert ran.code == 0, ran.err
    assert "the weights of a torch.export program, into" in ran.out
    assert Path("model.folded.pt").exists()
    assert run("fold", "model.pt2", "--arch", nets.SPEC, "--input", nets.SHAPE, "-o", "x.pt2").code == 0


def test_a_default_architecture_is_not_for_programs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    exported(nets.net())
    monkeypatch.setenv("BNTOOLS_ARCH", nets.SPEC)
    ran = run("fold", "model.pt2")
    assert ran.code == 0, ran.err
    assert Path("model.folded.pt2").exists()


def test_unsafe_is_said_in_the_report(run: Run) -> None:
    exported(nets.net())
    told = json.loads(run("fold", "model.pt2", "--unsafe", "--json").out)
    assert told["model"]["unsafe"] is True
    assert "opened with --unsafe" in told["model"]["what"]


def test_equal_programs_give_equal_bytes(run: Run) -> None:
    exported(nets.net(), ({0: AUTO},))
    for name in ("a.pt2", "b.pt2"):
        assert run("fold", "model.pt2", "-o", name).code == 0
    assert Path("a.pt2").read_bytes() == Path("b.pt2").read_bytes()
    assert str(Path(bn.__file__).parent).encode() not in Path("a.pt2").read_bytes()


def test_strict_and_limits_hold_for_programs(run: Run, folder: Path) -> None:
    exported(nets.partly())
    ran = run("fold", "model.pt2", "--strict")
    assert ran.code == 1
    assert "1 of 2 BatchNorms stay" in ran.err
    assert not (folder / "model.folded.pt2").exists()
    assert run("fold", "model.pt2", "--max-remaining", "1").code == 0

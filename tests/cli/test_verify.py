"""``bntools verify``: any two of a module, an artefact, a program and an ONNX file."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests.cli import nets
from tests.cli.conftest import Run, digests
from tests.planted import plant

Saved = Callable[..., Path]
ON = ("--input", nets.SHAPE)

pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")  # torch's, on copying


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in all its forms; they are made once."""
    from bntools.__main__ import main

    folder = tmp_path_factory.mktemp("made")
    torch.save(nets.net(), folder / "model.pt")
    torch.save(nets.net().state_dict(), folder / "state.pt")
    other = nets.net()
    with torch.no_grad():
        other.get_parameter("3.weight")[1] = 0
    torch.save(other, folder / "other.pt")
    on = ["--input", nets.SHAPE, "-q"]
    for name in ("folded.pt", "folded.safetensors", "model.pt2"):
        assert main(["fold", str(folder / "model.pt"), *on, "-o", str(folder / name)]) == 0
    assert (
        main(["fold", str(folder / "state.pt"), "--arch", nets.SPEC, *on, "-o", str(folder / "ckpt.pt")]) == 0
    )
    model = str(folder / "model.onnx")
    assert main(["export", str(folder / "model.pt"), *on, "-o", model, "--no-compare"]) == 0
    planted = plant((folder / "model.onnx").read_bytes(), "a weight channel zeroed", random.Random(0))
    assert planted is not None
    (folder / "bad.onnx").write_bytes(planted[0])
    (folder / "module").write_text(planted[1].module)
    return folder


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


GOOD = [
    ("model.pt", "folded.pt"),
    ("model.pt", "folded.safetensors"),
    ("folded.safetensors", "model.onnx", "--arch", nets.SPEC),
    ("model.pt", "model.onnx"),
    ("model.onnx", "model.pt"),
    ("model.onnx", "model.onnx"),
    ("state.pt", "model.onnx", "--arch", nets.SPEC),
    ("model.pt", "state.pt", "--arch", nets.SPEC),
    ("state.pt", "ckpt.pt", "--arch", nets.SPEC),
    ("model.pt", "ckpt.pt"),
    ("model.pt2", "model.onnx"),
    ("model.pt", "model.pt2"),
    ("model.pt2", "model.pt2", "--unsafe"),
]


@pytest.mark.parametrize("pair", GOOD, ids=" ".join)
def test_what_is_equal_passes(run: Run, here: Path, pair: tuple[str, ...]) -> None:
    before = digests(here)
    ran = run("verify", *pair, *ON)
    assert ran.code == 0, ran.err
    assert "verdict     passed" in ran.out
    assert digests(here) == before


@pytest.mark.parametrize("pair", [("model.pt", "state.pt"), ("state.pt", "model.pt")], ids=" ".join)
def test_arguments_of_the_architecture_are_about_the_one_that_needs_it(
    run: Run, here: Path, pair: tuple[str, str]
) -> None:
    options = ("--arch-kwargs", '{"width": 4}', *ON)
    assert run("verify", *pair, "--arch", nets.SPEC, *options).code == 0
    ran = run("verify", "model.pt", "folded.pt", *options)
    assert (ran.code, "--arch-kwargs needs --arch" in ran.err) == (2, True)


@pytest.mark.parametrize("at", [0, 1])
def test_a_name_that_is_too_long_for_a_path_is_no_bug_of_ours(run: Run, here: Path, at: int) -> None:
    """That of an architecture may be: nothing is looked up of it as of a file."""
    names = ["model.pt"]
    names.insert(at, f"tests.cli.nets:{'n' * 300}")
    ran = run("verify", *names, *ON)
    assert ran.code == 2
    assert "no path and no architecture" in ran.err


BAD = [
    ("model.pt", "bad.onnx"),
    ("bad.onnx", "model.pt"),
    ("model.onnx", "bad.onnx"),
    ("folded.safetensors", "bad.onnx", "--arch", nets.SPEC),
    ("model.pt", "other.pt"),
    ("other.pt", "folded.safetensors", "--arch", nets.SPEC),
    ("model.pt2", "bad.onnx"),
]


@pytest.mark.parametrize("pair", BAD, ids=" ".join)
def test_what_differs_fails_and_names_the_place(run: Run, here: Path, pair: tuple[str, ...]) -> None:
    ran = run("verify", *pair, *ON)
    assert ran.code == 1, ran.err
    assert "verdict     failed" in ran.out
    module = "3" if "other.pt" in pair else (here / "module").read_text()
    (place,) = [line for line in ran.out.splitlines() if line.startswith("place")]
    assert place.split()[1] == f"{module}:"
    assert f"from {module} on" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_json_and_other_formats(run: Run, here: Path) -> None:
    told = json.loads(run("verify", "model.pt", "bad.onnx", *ON, "--json").out)
    assert told["report"]["verdict"] == "failed"
    assert told["report"]["place"]["module"] == (here / "module").read_text()
    assert told["error"]["exit_code"] == 1
    assert told["b"]["what"] == "an ONNX model"
    assert "::error" in run("verify", "model.pt", "bad.onnx", *ON, "--format", "github", "--no-bisect").out
    markdown = run("verify", "model.pt", "model.onnx", *ON, "--format", "markdown").out
    assert markdown.startswith("**passed**")


def test_inputs_from_a_file_and_data_and_none_at_all(run: Run, here: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", input=np.random.default_rng(0).normal(size=(3, 3, 8, 8)))
    ran = run("verify", "model.pt", "model.onnx", "--inputs", tmp_path / "x.npz")
    assert ran.code == 0, ran.err
    assert "on 3x3x8x8 float32 (given)" in ran.out
    ran = run("verify", "model.onnx", "model.onnx", "--inputs", tmp_path / "x.npz")
    assert ran.code == 0, ran.err
    np.save(tmp_path / "data.npy", np.random.default_rng(0).normal(size=(20, 3, 8, 8)))
    ran = run("verify", "model.pt", "model.onnx", "--data", tmp_path / "data.npy", "--batch-size", "5")
    assert ran.code == 0, ran.err
    assert "on 5x3x8x8 float32 (batch 3 of the data)" in ran.out
    ran = run("verify", "model.onnx", "model.onnx")
    assert "(guessed)" in ran.out
    ran = run("verify", "model.pt", "model.onnx", *ON, "--data", tmp_path / "data.npy")
    assert ran.code == 2
    assert "exclude each other" in ran.err


def test_data_goes_before_an_input_that_is_a_default(
    run: Run, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And an input on the command line before data that is one."""
    np.save(tmp_path / "data.npy", np.random.default_rng(0).normal(size=(20, 3, 8, 8)))
    monkeypatch.setenv("BNTOOLS_INPUT", nets.SHAPE)
    ran = run("verify", "model.pt", "model.onnx", "--data", tmp_path / "data.npy", "--batch-size", "5")
    assert "on 5x3x8x8 float32 (batch 1 of the data)" in ran.out, ran.err
    monkeypatch.delenv("BNTOOLS_INPUT")
    monkeypatch.setenv("BNTOOLS_DATA", str(tmp_path / "data.npy"))
    ran = run("verify", "model.pt", "model.onnx", *ON)
    assert f"on {nets.SHAPE} float32 (given)" in ran.out, ran.err


def test_a_program_brings_its_inputs(run: Run, here: Path) -> None:
    ran = run("verify", "model.pt2", "model.onnx")
    assert ran.code == 0, ran.err
    assert "on 2x3x8x8 float32 (from the file)" in ran.out


def test_an_artefact_needs_the_model_that_it_is_for(run: Run, here: Path) -> None:
    ran = run("verify", "folded.safetensors", "model.onnx", *ON)
    assert ran.code == 2
    assert "--arch" in ran.err


def test_exact_is_about_float64(run: Run, here: Path) -> None:
    assert run("verify", "model.pt", "model.pt", *ON, "--exact").code == 0
    assert run("verify", "model.pt", "folded.pt", *ON, "--exact").code == 1, "its weights were rounded"
    assert run("verify", "model.pt", "model.onnx", *ON, "--exact").code == 2


def test_strict_makes_doubt_fatal(run: Run, here: Path, tmp_path: Path) -> None:
    wide = nets.net().double()
    torch.save(wide, tmp_path / "double.pt")
    assert run("export", tmp_path / "double.pt", *ON, "-o", tmp_path / "d.onnx", "--no-compare").code == 0
    ran = run("verify", tmp_path / "double.pt", tmp_path / "d.onnx", *ON)
    assert ran.code == 0
    assert "verdict     unverified" in ran.out
    ran = run("verify", tmp_path / "double.pt", tmp_path / "d.onnx", *ON, "--strict")
    assert ran.code == 5
    assert "unverified" in ran.err


def hostile(content: bytes) -> dict[str, bytes]:
    """Files that pass for ONNX and are not sound."""
    proto = onnx.load_from_string(content)
    cycle = onnx.ModelProto()
    cycle.CopyFrom(proto)
    cycle.graph.node[0].input[0] = cycle.graph.node[-1].output[0]
    types = onnx.ModelProto()
    types.CopyFrom(proto)
    types.graph.initializer[0].data_type = onnx.TensorProto.STRING
    short = onnx.ModelProto()
    short.CopyFrom(proto)
    short.graph.initializer[0].raw_data = b"123"
    return {
        "cut": content[: len(content) // 2],
        "cycle": cycle.SerializeToString(),
        "types": types.SerializeToString(),
        "short": short.SerializeToString(),
        "noise": content[:40] + bytes(random.Random(0).randbytes(400)),
    }


@pytest.mark.parametrize("kind", ["cut", "cycle", "types", "short", "noise", "gone", "text"])
def test_a_hostile_file_is_a_line_and_never_a_traceback(
    run: Run, here: Path, tmp_path: Path, kind: str
) -> None:
    files = hostile((here / "model.onnx").read_bytes())
    if kind in files:
        (tmp_path / "bad.onnx").write_bytes(files[kind])
    elif kind == "text":
        (tmp_path / "bad.onnx").write_text("hello")
    before = digests(tmp_path)
    for pair in (("model.pt", tmp_path / "bad.onnx"), (tmp_path / "bad.onnx", "model.onnx")):
        ran = run("verify", *pair, *ON)
        assert ran.code in (1, 2), (ran.code, ran.err)
        assert "Traceback" not in ran.err
        assert len(ran.err.splitlines()) <= 2
    assert digests(tmp_path) == before

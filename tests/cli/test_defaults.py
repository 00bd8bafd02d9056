"""A flag goes before a variable, that before pyproject.toml, and that before the built-in default."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from bntools.__main__ import main
from tests.cli import nets
from tests.cli.conftest import Run, digests
from tests.cli.test_exit_codes import evil
from tests.season import season

Saved = Callable[..., Path]
ON = ("--input", nets.SHAPE)


def write(folder: Path, text: str) -> None:
    (folder / "pyproject.toml").write_text(text, "utf-8")


def allowed(run: Run, *flags: str) -> str:
    """Which limit --max-remaining had, as the error tells it; or that there was none."""
    err = run("fold", "model.pt", "--input", nets.SHAPE, "--dry-run", *flags).err
    return err.partition("at most ")[2][:1] or "any"


def test_the_order_of_sources(run: Run, saved: Saved, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = (layer for _ in range(5) for layer in (nn.ReLU(), nn.BatchNorm2d(4)))
    saved(season(nn.Sequential(*nets.partly().children(), *blocked).eval()))  # six of its seven stay
    assert allowed(run) == "any"
    write(folder, "[tool.bntools]\nmax-remaining = 1")
    assert allowed(run) == "1"
    write(folder, "[tool.bntools]\nmax-remaining = 1\n[tool.bntools.fold]\nmax-remaining = 2")
    assert allowed(run) == "2"
    monkeypatch.setenv("BNTOOLS_MAX_REMAINING", "3")
    assert allowed(run) == "3"
    assert allowed(run, "--max-remaining", "4") == "4"


def test_the_nearest_file_above(
    run: Run, saved: Saved, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(nets.partly(), "model.pt")
    write(folder, "[tool.bntools.fold]\nstrict = true")
    below = folder / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert run("fold", "../../model.pt", *ON).code == 1
    (below / "pyproject.toml").write_text("[project]\nname = 'other'")
    assert run("fold", "../../model.pt", *ON).code == 0


@pytest.mark.parametrize("key", ["keep-mode", "keep_mode"])
def test_a_flag_with_a_dash(run: Run, saved: Saved, folder: Path, key: str) -> None:
    saved(nets.net().train())
    write(folder, f"[tool.bntools]\n{key} = true")
    assert "0 of 2" in run("fold", "model.pt", *ON).out


@pytest.mark.parametrize("text", ["json = true", "format = 'json'"])
def test_the_format(run: Run, saved: Saved, folder: Path, text: str) -> None:
    saved()
    write(folder, f"[tool.bntools]\n{text}")
    assert json.loads(run("inspect", "model.pt", *ON).out)["schema"] == 1


def test_a_flag_goes_before_the_file_under_another_name(
    run: Run, saved: Saved, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--json and --format, --input and --inputs, --key and --ema are each one choice in two flags."""
    saved({"model": nets.net().state_dict(), "model_ema": nets.partly().state_dict()})
    write(folder, '[tool.bntools]\njson = true\ninputs = "gone.npz"\nema = true')
    ran = run(
        "fold", "model.pt", *ON, "--format", "github", "--key", "model", "--arch", nets.SPEC, "--dry-run"
    )
    assert ran.code == 0, ran.err
    assert ran.out.startswith("::notice")
    monkeypatch.setenv("BNTOOLS_FORMAT", "markdown")
    assert run("inspect", "model.pt").out.startswith("**")


def test_lists_and_tables(run: Run, saved: Saved, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(nets.net(6).state_dict())
    monkeypatch.setenv("BNTOOLS_ARCH", nets.SPEC)
    for shape in (f'"{nets.SHAPE}"', f'["{nets.SHAPE}"]'):
        for keywords in ("{width = 6}", "'{\"width\": 6}'"):
            write(
                folder,
                f"[tool.bntools]\ninput = {shape}\narch-kwargs = {keywords}",
            )
            ran = run("inspect", "model.pt")
            assert ran.code == 0, ran.err
            assert "2x3x8x8 float32 (given)" in ran.out


def test_a_default_architecture_is_for_weights_only(
    run: Run, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the command line it is an error to name one for a whole module; as a habit it is not meant."""
    saved()
    monkeypatch.setenv("BNTOOLS_ARCH", nets.SPEC)
    monkeypatch.setenv("BNTOOLS_ARCH_KWARGS", "{}")
    assert run("inspect", "model.pt", *ON).code == 0
    assert run("inspect", "model.pt", *ON, "--arch", nets.SPEC).code == 2
    monkeypatch.delenv("BNTOOLS_ARCH_KWARGS")
    assert run("inspect", nets.SPEC, *ON).code == 0
    saved(nets.net().state_dict())
    assert "2 of 2" in run("inspect", "model.pt", *ON).out


@pytest.mark.parametrize("key", ["unsafe", "trust", "arch", "force", "traceback"])
@pytest.mark.parametrize("table", ["tool.bntools", "tool.bntools.fold", "tool.bntools.inspect"])
def test_what_only_a_command_line_may_say(run: Run, saved: Saved, folder: Path, key: str, table: str) -> None:
    """A file that lies in a folder must not let a model run its code, nor replace files."""
    saved()
    write(folder, f"[{table}]\n{key} = true")
    before = digests(folder)
    ran = run("fold", "model.pt", *ON)
    assert ran.code == 2
    assert f"give --{key} on the command line" in ran.err
    assert "pyproject.toml" in ran.err
    assert digests(folder) == before


@pytest.mark.parametrize("table", ["tool.bntools", "tool.bntools.recalibrate"])
def test_data_that_is_code_is_for_the_command_line(
    run: Run, saved: Saved, folder: Path, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in somebody's folder has nothing run; it may name data, and the command line may name code."""
    monkeypatch.syspath_prepend(folder)
    ran_code = "import pathlib, torch\npathlib.Path('ran').touch()\n"
    name = f"mine_{len(table)}"  # a module is imported once
    (folder / f"{name}.py").write_text(ran_code + "def batches(): return [torch.randn(8, 3, 8, 8)]\n")
    (folder / "pyproject.toml").write_text(f'[{table}]\ndata = "{name}:batches"\n')
    ran = run("recalibrate", saved(), "--dry-run")
    assert ran.code == 2
    assert "code cannot be named in a file" in ran.err
    assert not (folder / "ran").exists()
    (folder / "pyproject.toml").write_text(f'[{table}]\ndata = "images.npy"\n')
    np.save(folder / "images.npy", np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype("float32"))
    assert run("recalibrate", "model.pt", "--dry-run").code == 0
    assert run("recalibrate", "model.pt", "--dry-run", "--data", f"{name}:batches").code == 0
    assert (folder / "ran").exists()


def test_nor_may_a_variable(run: Run, saved: Saved, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UNSAFE", "FORCE", "TRACEBACK", "FOLD_UNSAFE", "FOLD_FORCE"):
        monkeypatch.setenv(f"BNTOOLS_{name}", "1")
    saved(evil(), "evil.pt")
    assert run("fold", "evil.pt", *ON).code == 3
    assert not (folder / "owned").exists()
    saved()
    (folder / "model.folded.pt").write_text("mine")
    ran = run("fold", "model.pt", *ON)
    assert ran.code == 2
    assert "Traceback" not in ran.err
    assert (folder / "model.folded.pt").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[tool.bntools]\nstrikt = true", "did you mean strict?"),
        ("[tool.bntools.fold]\nmax-remaning = 1", "did you mean max-remaining?"),
        ("[tool.bntools.inspect]\nstrict = true", "[tool.bntools.inspect] strict: no such option"),
        ("[tool.bntools.fuse]\nstrict = true", "fuse: no such option"),
        ("[tool.bntools]\nhelp = true", "help: no such option"),
        ("[tool.bntools]\nmodel = 'x.pt'", "model: no such option"),
        ("[tool.bntools]\nstrict = 'yes'", "expected true or false"),
        ("[tool.bntools]\ninput = [1]", "expected a list of strings"),
        ("[tool.bntools]\nmax-remaining = true", "expected a string or a number"),
        ("[tool.bntools]\nmax-remaining = -1", "--max-remaining"),
        ("[tool.bntools]\nformat = 'yaml'", "--format"),
        ("[tool.bntools]\nfold = 3", "[tool.bntools.fold] is no table"),
        ("[tool]\nbntools = 3", "[tool.bntools] is no table"),
        ("[tool.bntools\n", "cannot be read"),
    ],
)
def test_a_wrong_file(run: Run, saved: Saved, folder: Path, text: str, says: str) -> None:
    """A misspelt key that did nothing would be a check that never runs."""
    saved()
    write(folder, text)
    ran = run("fold", "model.pt", *ON)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err
    if "--" not in says:  # those are told by Typer, which knows no file
        assert "pyproject.toml" in ran.err
        assert len(ran.err.splitlines()) == 2


def test_a_key_of_one_verb_may_stand_for_all(run: Run, saved: Saved, folder: Path) -> None:
    saved()
    write(folder, "[tool.bntools]\nstrict = true")
    assert run("inspect", "model.pt", *ON).code == 0


@pytest.mark.parametrize("arguments", [["--help"], ["fold", "--help"], ["fold", "-h"], ["--version"]])
def test_help_does_not_depend_on_a_file(
    capsys: pytest.CaptureFixture[str], folder: Path, arguments: list[str]
) -> None:
    write(folder, "[tool.bntools\n")
    assert main(arguments) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value"), [("STRICT", "perhaps"), ("MAX_REMAINING", "few"), ("FORMAT", "yaml")]
)
def test_a_wrong_variable(
    run: Run, saved: Saved, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"BNTOOLS_{name}", value)
    monkeypatch.setenv("COLUMNS", "200")
    ran = run("fold", saved(), *ON)
    assert ran.code == 2
    assert f"BNTOOLS_{name}" in ran.err

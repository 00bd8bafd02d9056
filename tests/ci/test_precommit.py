"""The hook of .pre-commit-hooks.yaml, in a repository of somebody who commits models."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import save_file

from bntools.cli import precommit
from tests.ci import models
from tests.ci.page import blocks
from tests.ci.workflow import ROOT

(HOOK,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text("utf-8"))
PAGE = blocks(ROOT)


def each(*arguments: str) -> int:
    return precommit.inspect_each(arguments)


@pytest.fixture(autouse=True)
def here(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workspace)
    return workspace


def test_several_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert each("--fail-on", "error", "model.pt", "model.pt") == 0
    capsys.readouterr()
    assert each("--fail-on", "error", "broken.pt", "model.pt") == 1
    ran = capsys.readouterr()
    assert [line.split()[1] for line in ran.out.splitlines() if line.startswith("model ")] == [
        "broken.pt:",
        "model.pt:",
    ]
    assert "BN002" in ran.err


def test_the_worst_is_told(here: Path) -> None:
    """Whichever comes first: a file that cannot be read does not hide behind a finding."""
    (here / "none.pt").write_text("no model", "utf-8")
    assert each("--fail-on", "error", "broken.pt", "none.pt", "model.pt") == 2
    assert each("--fail-on", "error", "none.pt", "broken.pt", "model.pt") == 2
    assert each("none.pt", "broken.pt") == 2
    assert each("broken.pt", "model.pt") == 0  # nothing was said about findings


def test_a_key_press_ends_all(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def main(arguments: list[str]) -> int:
        looked.append(arguments[-1])
        return 130 if arguments[-1] == "b.pt" else 1

    monkeypatch.setattr(precommit, "main", main)
    assert each("a.pt", "b.pt", "c.pt") == 130
    assert looked == ["a.pt", "b.pt"]


@pytest.mark.parametrize(
    ("arguments", "options", "files"),
    [
        (["a.pt", "b.pt"], [], ["a.pt", "b.pt"]),
        (["--fail-on", "error", "a.pt"], ["--fail-on", "error"], ["a.pt"]),
        (["--fail-on=error", "a.pt"], ["--fail-on=error"], ["a.pt"]),
        (["--all", "a.pt"], ["--all"], ["a.pt"]),
        (["-q", "a.pt", "--set", "BN007=1", "b.pt"], ["-q", "--set", "BN007=1"], ["a.pt", "b.pt"]),
        (["--all", "--", "-q.pt", "--all"], ["--all"], ["-q.pt", "--all"]),
        (["--baseline", "--", "a.pt"], ["--baseline", "--"], ["a.pt"]),
        (["--fail-on"], ["--fail-on"], []),
        (["--gone", "a.pt"], ["--gone"], ["a.pt"]),
    ],
)
def test_what_is_an_option(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], options: list[str], files: list[str]
) -> None:
    """An option of `inspect` that takes a value takes it; all else that has no dash is a file."""
    given: list[list[str]] = []
    monkeypatch.setattr(precommit, "main", lambda line: given.append(line) or 0)
    assert each(*arguments) == (0 if files else 2)
    assert given == [["inspect", *options, "--", file] for file in files]


@pytest.mark.parametrize("option", ["--html", "--write-baseline"])
@pytest.mark.parametrize("joined", [False, True])
def test_one_file_for_several_models(
    here: Path, capsys: pytest.CaptureFixture[str], option: str, joined: bool
) -> None:
    """The second would take the place of the first."""
    into = [f"{option}=x.html"] if joined else [option, "x.html"]
    assert each(*into, "model.pt", "broken.pt") == 2
    assert f"{option}: one file for 2 models" in capsys.readouterr().err
    assert not (here / "x.html").exists()
    assert each(*into, "model.pt") == 0
    assert (here / "x.html").exists()


def test_a_file_is_only_a_file(here: Path) -> None:
    shutil.copy("broken.pt", "--fail-on=note")
    assert each("--fail-on", "error", "--", "--fail-on=note", "model.pt") == 1
    assert each("--", "--fail-on=note", "model.pt") == 0


# With pre-commit itself


def commit(
    folder: Path, hook: Mapping[str, Any], environ: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """What pre-commit says of all files of a repository with this hook."""
    config = {"repos": [{"repo": "local", "hooks": [dict(hook)]}]}
    (folder / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    home = str(folder.parent / "pre-commit")
    given = {**environ, "PRE_COMMIT_HOME": home, "GIT_CONFIG_GLOBAL": "/dev/null"}
    for command in (["git", "init", "-q"], ["git", "add", "."]):
        subprocess.run(command, cwd=folder, env=given, check=True)
    command = [sys.executable, "-m", "pre_commit", "run", "--all-files", "--color", "never"]
    return subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, check=False)


def test_pre_commit_runs_the_hook(here: Path, environ: dict[str, str]) -> None:
    """All but its environment, which takes a network and minutes: there it is our own."""
    assert HOOK["language"] == "python"
    entry = HOOK["entry"].replace("python", shlex.quote(sys.executable), 1)
    hook = {**HOOK, "language": "system", "entry": entry}
    aside = here.parent / "aside"
    aside.mkdir()
    for name in ("model.pt", "broken.pt"):
        (here / name).rename(aside / name)
    save_file(models.model().state_dict(), here / "weights.safetensors")
    ran = commit(here, hook, environ)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "Passed" in ran.stdout
    (here / "torch.py").write_text("raise SystemExit('not torch')", "utf-8")
    for name in ("model.pt", "broken.pt"):
        (aside / name).rename(here / name)
    ran = commit(here, hook, environ)
    assert ran.returncode == 1
    assert "- exit code: 1" in ran.stdout
    assert "BN002 negative-variance" in ran.stdout
    assert all(f"{name}: a" in ran.stdout for name in ("model.pt", "broken.pt", "weights.safetensors"))
    assert "calibration.npy" not in ran.stdout


def test_the_hooks_of_the_page(here: Path) -> None:
    """One names the hook of this repository; the other is the same but for where it runs."""
    (theirs,) = PAGE["hook"][0]["repos"]
    assert [hook["id"] for hook in theirs["hooks"]] == [HOOK["id"]]
    ((local,),) = (repo["hooks"] for repo in PAGE["local hook"][0]["repos"])
    assert {**local, "entry": "", "language": ""} == {
        **{key: HOOK[key] for key in ("id", "name", "files", "require_serial")},
        "entry": "",
        "language": "",
    }
    program, dash, module, *arguments = local["entry"].split()
    assert (program, dash, module) == ("python", "-m", "bntools.cli.precommit")
    assert each(*arguments, "model.pt") == 0
    assert each(*arguments, "model.pt", "broken.pt") == 1

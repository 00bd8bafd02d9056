"""What a shell offers when Tab is pressed: by the scripts that it gets, and by what they ask of bntools."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from bntools.cli.options import Format
from bntools.cli.swap import NORMS
from bntools.verbs.swap import Target

BASH = shutil.which("bash")
HEAVY = ("torch", "numpy", "onnx", "onnxruntime", "safetensors")
VERBS = ["inspect", "fold", "recalibrate", "freeze", "unfreeze", "swap", "export", "verify", "replay"]
ASKED = f"""
import sys
from bntools.__main__ import main
code = main([])
print(code, *[m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)
"""

with_bash = pytest.mark.skipif(BASH is None or not Path("/proc").is_dir(), reason="needs bash and /proc")


def offered(line: str, shell: str = "bash", action: str = "get-args") -> list[str]:
    """What bntools answers to the script of a shell: the lines, after a look at how it came by them."""
    words = shlex.split(line) + [""] * line.endswith(" ")
    environment = {
        "_BNTOOLS_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": action,
    }
    run = subprocess.run(
        [sys.executable, "-c", ASKED],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stderr == ("1\n" if action == "is-args" and not run.stdout else "0\n")
    return run.stdout.split("\n")[:-1]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("bntools ", VERBS),
        ("bntools re", ["recalibrate", "replay"]),
        ("bntools fuse", [""]),
        ("bntools inspect --format ", [each.value for each in Format]),
        ("bntools fold model.pt --format m", ["markdown"]),
        ("bntools fold --format j", ["json"]),  # not junit, which is for findings
        ("bntools swap --to ", list(NORMS)),
        ("bntools swap --to s", ["switchable", "sync"]),
        ("bntools fold --no-v", ["--no-verify"]),
        ("bntools swap --weight", ["--weight-standardization"]),
        ("bntools inspect --no-v", [""]),
        ("bntools fold ", [""]),  # a file: the shell knows those itself
    ],
)
def test_what_bash_is_offered(line: str, expected: list[str]) -> None:
    """Without torch: a key that takes two seconds is not pressed again."""
    assert offered(line) == expected


def test_the_norms_are_those_of_the_verb() -> None:
    assert get_args(Target) == NORMS


def test_a_configuration_that_cannot_be_read_does_not_write_into_the_line(folder: Path) -> None:
    (folder / "pyproject.toml").write_text("[tool.bntools]\nno-such-option = 1\n")
    assert offered("bntools fold --format m") == ["markdown"]


def test_what_zsh_and_fish_are_offered() -> None:
    with_help = "\n".join(offered("bntools f", "zsh"))
    assert re.findall(r'"(\w+)":"\w+ BatchNorm', with_help) == ["fold", "freeze"]
    assert offered("bntools fold ", "zsh") == ["_files"]
    assert [line.split("\t")[0] for line in offered("bntools f", "fish")] == ["fold", "freeze"]
    assert offered("bntools inspect --format j", "fish") == ["json", "junit"]


@pytest.fixture
def home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with the command in it, and shells of all names: they are told apart by those."""
    home = folder / "home"
    (home / "bin").mkdir(parents=True)
    command = home / "bin" / "bntools"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m bntools "$@"\n')
    command.chmod(0o755)
    for shell in ("bash", "zsh", "fish"):
        shutil.copy(str(BASH), home / "bin" / shell)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return home


def within(shell: str, script: str) -> str:
    """What a script says in a shell of that name; the last command keeps it from giving way to the first."""
    command = [shell, "--norc", "-c", f"{script}; exit $?"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stderr == ""
    return run.stdout


@with_bash
@pytest.mark.parametrize(
    ("shell", "mark", "file"),
    [
        ("bash", "complete -o default -F _bntools_completion bntools", ".bash_completions/bntools.sh"),
        ("zsh", "#compdef bntools", ".zfunc/_bntools"),
        ("fish", "complete --command bntools", ".config/fish/completions/bntools.fish"),
    ],
)
def test_each_shell_gets_its_own_script(home: Path, shell: str, mark: str, file: str) -> None:
    shown = within(shell, "bntools --show-completion")
    assert mark in shown
    assert f"complete_{shell}" in shown
    assert "installed" in within(shell, "bntools --install-completion")
    assert mark in (home / file).read_text()


@with_bash
def test_tab_in_bash(home: Path) -> None:
    """What is installed, read by a shell that then completes a line."""
    within("bash", "bntools --install-completion")
    script = (
        "source ~/.bashrc; COMP_WORDS=(bntools fold --format m); COMP_CWORD=3; "
        "_bntools_completion bntools; echo ${COMPREPLY[*]}; complete -p bntools"
    )
    assert within("bash", script) == "markdown\ncomplete -o default -F _bntools_completion bntools\n"

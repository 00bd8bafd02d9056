"""The command as a process of its own: what it imports, and how it gets on with pipes and signals."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import bntools as bn
from tests.cli import nets
from tests.cli.conftest import digests, same

Saved = Callable[..., Path]
ON = ("--input", nets.SHAPE)
COMMAND = (sys.executable, "-m", "bntools")
PYTHON = shlex.quote(sys.executable)  # for a shell
HEAVY = ("torch", "numpy", "onnx", "onnxruntime", "safetensors")


def process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 120, **options}
    return subprocess.run([*COMMAND, *arguments], check=False, **settings)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["--help"], 0),
        (["fold", "--help"], 0),
        (["inspect", "--help"], 0),
        (["replay", "--help"], 0),
        (["freeze", "--help"], 0),
        (["freeze", "page.html"], 2),
        (["freeze", "page.html", "--stats-only", "--affine-only"], 2),
        (["unfreeze", "gone.pt"], 2),
        (["--version"], 0),
        (["fuse"], 2),
        (["fold"], 2),
        (["fold", "page.html", "--no-such-option"], 2),
        (["fold", "page.html"], 2),
        (["inspect", "page.html"], 2),
        (["inspect", "gone.pt"], 2),
        (["fold", "."], 2),
        (["replay", "page.html", "timm:resnet18"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_torch_is_not_imported_before_it_is_needed(folder: Path, arguments: list[str], code: int) -> None:
    """It costs two seconds, which nobody waits for to read that a name was misspelt."""
    (folder / "page.html").write_text("<html></html>")
    script = (
        "import sys\n"
        "from bntools.__main__ import main\n"
        f"code = main({arguments!r})\n"
        f"print(code, *[m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stderr.splitlines()[-1] == str(code)


def test_the_module_is_the_command(folder: Path) -> None:
    run = process("--version")
    assert (run.returncode, run.stdout.splitlines()[0], run.stderr) == (0, f"bntools {bn.__version__}", "")
    assert "Usage: bntools " in process("--help").stdout


def test_a_fold_by_a_process(saved: Saved) -> None:
    saved()
    run = process("fold", "model.pt", *ON)
    assert (run.returncode, run.stderr) == (0, "")
    expected = bn.fold(nets.net(), torch.ones(2, 3, 8, 8)).model.state_dict()
    assert same(bn.load("model.folded.pt").state_dict(), expected)


def test_a_reader_that_has_enough(saved: Saved) -> None:
    """`bntools inspect | head -1` ends without a word."""
    weights = {
        f"a.long.way.down.bn{i}.running_{what}": torch.full((2,), 0.5)
        for i in range(3000)
        for what in ("mean", "var")
    }
    saved(weights)
    command = f"{PYTHON} -m bntools inspect model.pt | head -1; echo ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert run.stdout == "model       model.pt: a state dict\n0\n"
    assert run.stderr == ""


@pytest.mark.parametrize("form", ["text", pytest.param("json", marks=pytest.mark.zoo)])
def test_a_reader_that_has_gone_hides_no_failure(saved: Saved, form: str) -> None:
    saved(nets.partly())
    for flags, code in (([], 0), (["--strict"], 1), (["--input", "2x7x8x8"], 4)):
        reader, writer = os.pipe()
        os.close(reader)
        given = [] if "--input" in flags else ON
        run = process("fold", "model.pt", *given, *flags, "--dry-run", "--format", form, stdout=writer)
        os.close(writer)
        assert run.returncode == code
        assert "Traceback" not in run.stderr
        assert ("error" in run.stderr) == (code != 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "arguments", [["inspect", "model.pt", *ON], ["inspect", "gone.pt", "--json"], ["--help"], ["--version"]]
)
@pytest.mark.parametrize("buffered", [True, pytest.param(False, marks=pytest.mark.zoo)])
def test_a_full_disk_behind_stdout_is_no_bug_of_ours(
    saved: Saved, arguments: list[str], buffered: bool
) -> None:
    """What a buffer still holds must not fail once more when Python ends: it exits with 120 then."""
    saved()
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    with Path("/dev/full").open("w") as full:
        run = process(*arguments, stdout=full, env=environment)
    assert run.returncode == 2
    assert "stdout: cannot be written" in run.stderr
    assert "Traceback" not in run.stderr
    assert "Exception ignored" not in run.stderr


@pytest.mark.skipif(os.name == "nt", reason="a shell")
@pytest.mark.parametrize(
    "closed", [*(pytest.param(c, marks=pytest.mark.zoo) for c in (">&-", "2>&-")), ">&- 2>&-"]
)
def test_closed_streams(saved: Saved, closed: str) -> None:
    """As a daemon starts its children."""
    saved()
    command = f"{PYTHON} -m bntools fold model.pt --input {nets.SHAPE} -v {closed}"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert "BatchNorm2d" not in str(bn.load("model.folded.pt"))


WAITS = """
import time
from tests.cli import nets

class Waits(nets.Chatty):
    def forward(self, x):
        open("here", "w").close()
        time.sleep(60)

def build():
    return nets._made(Waits())
"""


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_control_c(folder: Path) -> None:
    (folder / "slow.py").write_text(WAITS)
    # A shell starts its background jobs deaf to the signal, and what is deaf has deaf children.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    child = subprocess.Popen(
        [*COMMAND, "fold", "slow:build", *ON, "-o", "out.pt"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, ours)
    try:
        for _ in range(600):
            if (folder / "here").exists():
                break
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(0.1)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
    finally:
        child.kill()
        child.wait()
    assert (child.returncode, out) == (130, "")
    assert "interrupted" in err
    assert "Traceback" not in err
    assert {path for path in digests(folder) if "pycache" not in path} == {"slow.py", "here"}


def test_colour_of_the_help_and_of_usage_errors(folder: Path) -> None:
    for given, coloured in (({}, False), ({"FORCE_COLOR": "1"}, True), ({"TERM": "dumb"}, False)):
        environment = {**os.environ, **given}
        for arguments in (["--help"], ["fold"]):
            run = process(*arguments, env=environment)
            assert ("\x1b[" in run.stdout + run.stderr) == coloured


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_stderr_changes_nothing(saved: Saved, folder: Path) -> None:
    """Nobody hears the note about the mode, or the error; what is done is the same."""
    saved(nets.net().train())
    with Path("/dev/full").open("w") as full:
        done = process("fold", "model.pt", "--input", nets.SHAPE, stderr=full)
        failed = process("fold", "gone.pt", "--json", stderr=full)
    assert done.returncode == 0
    assert (folder / "model.folded.pt").exists()
    assert failed.returncode == json.loads(failed.stdout)["error"]["exit_code"] == 2

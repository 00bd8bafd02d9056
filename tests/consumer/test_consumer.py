"""What mypy tells somebody who uses the API: nothing of right programs, and each mistake of wrong ones."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import bntools

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".mypy_cache" / "consumer"
PROGRAMS = ("uses.py", "mistakes.py")


def expected(program: Path) -> dict[int, set[str]]:
    """The codes that stand beside the lines of *program*."""
    found = {}
    for number, line in enumerate(program.read_text("utf-8").splitlines(), 1):
        if mark := re.search("# error: (.+)$", line):
            found[number] = set(mark[1].split(", "))
    return found


def test_mypy_knows_right_programs_from_wrong_ones(tmp_path: Path) -> None:
    """Away from the repository, so that bntools is a package that is installed, with types or without."""
    for name in PROGRAMS:
        shutil.copy(HERE / name, tmp_path)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", CACHE, *PROGRAMS]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    found: dict[str, dict[int, set[str]]] = {name: defaultdict(set) for name in PROGRAMS}
    for name, line, code in re.findall(r"^(\S+?):(\d+): error: .*\[([\w-]+)\]$", run.stdout, re.MULTILINE):
        found[name][int(line)].add(code)
    assert (run.returncode, found["uses.py"]) == (1, {}), run.stdout + run.stderr
    assert found["mistakes.py"] == expected(HERE / "mistakes.py"), run.stdout


def test_the_right_program_uses_every_verb_and_stage() -> None:
    text = (HERE / "uses.py").read_text("utf-8")
    functions = {name for name in bntools.__all__ if name.islower()}
    assert {name for name in functions if f"bn.{name}(" not in text} == set()

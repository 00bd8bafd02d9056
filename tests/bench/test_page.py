"""The page of the benches, and the run that goes on where it was."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.bench import __main__ as runner
from tests.bench import machine
from tests.bench.page import BENCHES as TITLES
from tests.bench.page import page
from tests.bench.result import Result, Table, write
from tests.bench.turns import Spread, gathered

BENCHES = [*TITLES]
RESULT = Result("A claim.", (Table("Two turns.", ("model", "ms"), (("net", "1.5"),)),), "GPUs.", 2)


def kept(result: Result = RESULT, **changed: Any) -> dict[str, Any]:
    at = {**machine.found(), "date": "2026-01-02", "seconds": 3.0, "load": 0.1, **changed}
    return json.loads(json.dumps({"result": asdict(result), "names": [], "at": at}))


def test_the_page_has_what_was_measured_and_says_what_was_not() -> None:
    text = page({BENCHES[0]: kept()})
    assert (
        f"## {TITLES[BENCHES[0]]}\n\nA claim.\n\nTwo turns.\n\n| model | ms |\n|---|---:|\n| net | 1.5 |\n"
        in text
    )
    assert "Not measured: GPUs." in text
    assert f"`python -m tests.bench.{BENCHES[0]}`: 2026-01-02, 3 s, 2 threads, load 0.1 before." in text
    assert f"## {TITLES[BENCHES[1]]}\n\nNot measured." in text
    assert "not kept" not in text


def test_a_limit_that_was_not_kept_is_told() -> None:
    lost = Result("A claim.", (), "GPUs.", 2, holds=False)
    assert "**The limit was not kept.**" in page({BENCHES[0]: kept(lost)})


def test_two_machines_are_told_apart() -> None:
    one, two = kept(), kept(machine="Another, 4 cores")
    text = page({BENCHES[0]: one, BENCHES[1]: two})
    assert f"{BENCHES[1]}: Another, 4 cores" in text
    assert "Measured on" not in text
    assert "Measured on" in page({BENCHES[0]: one, BENCHES[1]: one})


def test_a_row_that_lacks_a_cell_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 columns"):
        Table("", ("model", "ms"), (("net",),)).markdown()


def test_every_bench_is_on_the_page() -> None:
    there = {p.stem for p in Path(__file__).parent.glob("*.py") if "def bench(" in p.read_text("utf-8")}
    assert there - {"test_page"} == set(BENCHES)


@pytest.mark.parametrize(
    ("change", "again", "runs"),
    [
        ({}, False, 0),
        ({}, True, 1),
        ({"code": "of another day"}, False, 1),
        (None, False, 1),
    ],
)
def test_what_the_same_code_has_measured_is_not_measured_again(
    change: dict[str, Any] | None, again: bool, runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if change is not None:
        write(tmp_path / "padding.json", kept(**change))
    ran = []
    monkeypatch.setattr(runner, "RESULTS", tmp_path)
    monkeypatch.setattr(
        runner.subprocess,
        "run",
        lambda command, **_: ran.append(command) or subprocess.CompletedProcess([], 0),
    )
    assert runner.measured("padding", again=again)
    assert len(ran) == runs


def test_a_part_of_a_bench_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "padding.json", {**kept(), "names": ["resnet18"]})
    monkeypatch.setattr(runner, "RESULTS", tmp_path)
    monkeypatch.setattr(runner.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1))
    assert not runner.measured("padding", again=False)


def test_turns_alternate_and_the_first_are_left_out() -> None:
    said: list[str] = []
    one, two = gathered(
        [lambda: said.append("a") or float(len(said)), lambda: said.append("b") or float(len(said))], 2, 1
    )
    assert said == ["a", "b"] * 3
    assert (one, two) == (Spread([3.0, 5.0]), Spread([4.0, 6.0]))

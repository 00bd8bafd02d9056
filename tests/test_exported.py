"""The table of ONNX files adds up, says what is wrong, and has its place on the page."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import bntools as bn
from bntools.errors import CaptureError, PromiseError
from tests import exported
from tests.season import season
from tests.zoo import ENTRIES, ONLY_EXPORTED, takes_a_tensor
from tests.zoo_rows import Row

INPUTS = ["2x3x64x64 float32 (given)", "1x3x64x64 float32 (normal redraw, batch of 1)"]


def row(name: str, left: tuple[int, int], milliseconds: tuple[float, float], **more: Any) -> Row:
    """Of a model with which nothing is wrong."""
    made = {"proof": "passed", "verdict": "passed", "error": 2e-6, "noise": 1e-6, "open": True, "sites": 9}
    return {
        "name": name,
        "family": "resnet" if name.startswith("timm") else "torchvision",
        "torch": {"took": 2.0},
        "bntools": made | {"took": 7.0},
        "verify": {"verdict": "passed", "inputs": INPUTS, "took": 1.0},
        "left": dict(zip(("before", "after"), left, strict=True)),
        "latency": dict(zip(("before", "after"), milliseconds, strict=True)),
        "cpu": {"before": 10.0, "after": 8.0},
        **more,
    }


ONE = row("timm:resnet18", (6, 1), (10.0, 5.0))
TWO = row("torchvision:densenet121", (4, 4), (10.0, 9.0))
THREE = row("torchvision:resnet18", (0, 0), (10.0, 12.0))


def with_(found: Row, step: str, **more: Any) -> Row:
    return found | {step: found[step] | more}


def without(found: Row, *steps: str) -> Row:
    return {key: value for key, value in found.items() if key not in steps}


def line_of(name: str, text: str) -> list[str]:
    return next(line for line in text.splitlines() if line.startswith(f"| {name} |")).split(" | ")


def test_the_classifiers_of_torchvision_are_all_there() -> None:
    known = {f"torchvision:{name}" for name in torchvision.models.list_models(module=torchvision.models)}
    known |= {"torchvision:mc3_18", "torchvision:r2plus1d_18", "torchvision:r3d_18"}
    zoo = {entry.name for entry in (*ENTRIES, *ONLY_EXPORTED) if takes_a_tensor(entry)}
    assert {name for name in exported.NAMES if name.startswith("torchvision:")} == known
    assert known <= zoo


def test_of_each_family_of_timm_there_is_one() -> None:
    of_timm = [name for name in exported.NAMES if name.startswith("timm:")]
    families = Counter(map(exported.family, of_timm))
    assert set(families.values()) == {1}
    assert set(families) == {exported.family(e.name) for e in ENTRIES if e.name.startswith("timm:")}
    assert len(families) >= 45
    assert exported.family("timm:ecaresnet26t") == exported.family("timm:resnet18") == "resnet"
    assert exported.family("torchvision:resnet18") == "torchvision"


def test_it_adds_up() -> None:
    text = exported.section([ONE, TWO, THREE])
    assert text.startswith("## ONNX files\n")
    assert "3 classifiers: 2 of torchvision and 1 of timm, of 1 families." in text
    assert "torch alone exports 3, bntools 3; in 3 of these the batch stays open, 3 are verified, 3" in text
    assert "False alarms: none. Refusals and failures: none." in text
    assert "3 models that both export: 10 by torch alone, in 2 models; 5 through bntools, in 2" in text
    # 0.5, 0.9, 1.2: the quartiles are half-way between neighbours.
    assert "median 0.90, quartiles 0.70 and 1.05, best timm:resnet18 with 0.50, worst torchvision:" in text
    assert "with 1.20, of 3 models. In time of the processor" in text
    assert "median 0.80, quartiles 0.80 and 0.80" in text
    assert "torch alone 2.0 (total 6), `bn.export` 7.0 (total 21), `bn.verify` 1.0 (total 3)." in text
    cells = "9 | 6 | 1 | open | passed | 2e-06 | 1e-06 | 10.0 | 5.0 | 0.50 | 0.80 | 2.0 | 7.0 | 1.0"
    assert f"| timm:resnet18 | resnet | {cells} |" in text.splitlines()


def test_what_was_not_measured_is_named() -> None:
    rows = [ONE | {"name": name} for name in exported.NAMES[2:]]
    missing = ", ".join(sorted(exported.NAMES[:2]))
    assert f"Not measured: {missing}." in exported.section(rows)
    assert "Not measured: none." in exported.section([ONE | {"name": name} for name in exported.NAMES])


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (with_(ONE, "bntools", proof="failed", proof_why="off"), "proof failed (off)"),
        (with_(ONE, "bntools", verdict="inconclusive", why="noisy"), "file inconclusive (noisy)"),
        (with_(ONE, "verify", verdict="failed", why="off"), "verify failed (off)"),
        (without(with_(ONE, "bntools", proof="failed"), "verify"), "proof failed"),
    ],
)
def test_a_check_that_did_not_pass_is_a_false_alarm(found: Row, said: str) -> None:
    text = exported.section([found, TWO])
    assert f"False alarms: timm:resnet18: {said}. Refusals and failures: none." in text
    assert "1 are verified" in text
    assert line_of("timm:resnet18", text)[6] == said


def test_a_refusal_of_torch_is_a_row_and_no_false_alarm() -> None:
    refused = without(ONE, "verify", "latency", "cpu") | {
        "torch": {"raised": "ValueError: no | way", "took": 1.0},
        "bntools": {"refused": "torch.export refuses", "took": 1.0},
        "left": {},
    }
    text = exported.section([refused, TWO, THREE])
    assert "torch alone exports 2, bntools 2; in 2 of these the batch stays open, 2 are verified" in text
    assert "False alarms: none. Refusals and failures: timm:resnet18: torch raised: ValueError" in text
    assert r"| torch raised: ValueError: no \| way; bntools refused: torch.export refuses |" in text
    assert "2 models that both export: 4 by torch alone, in 1 models; 4 through bntools, in 1" in text


def test_more_batchnorms_than_without_bntools_are_told() -> None:
    more = row("timm:resnet18", (1, 2), (10.0, 5.0))
    assert exported.trouble(more) == "2 BatchNorms through bntools, 1 without"
    assert exported.trouble(TWO) == ""  # as many


def test_what_was_not_checked_to_the_end_is_not_verified() -> None:
    assert exported.is_verified(ONE)
    broken = without(ONE, "verify") | {"ended": "died of SIGKILL"}
    assert not exported.is_verified(broken)
    assert "bntools 2; in 2 of these the batch stays open, 1 are verified" in exported.section([broken, TWO])


def test_a_fixed_batch_and_one_batch_size_are_told() -> None:
    fixed = with_(with_(ONE, "bntools", open=False), "verify", inputs=INPUTS[:1])
    text = exported.section([fixed, TWO])
    assert "bntools 2; in 1 of these the batch stays open, 2 are verified, 1 of them with other" in text
    assert line_of("timm:resnet18", text)[5] == "fixed"


def test_what_was_not_timed_counts_in_no_ratio() -> None:
    text = exported.section([ONE, TWO, without(THREE, "cpu")])
    assert "with 1.20, of 3 models. In time" in text
    assert "with 0.80, of 2 models." in text
    assert "other work makes: not measured." in exported.section([ONE, without(TWO, "cpu")])
    assert line_of("torchvision:resnet18", text)[11:13] == ["1.20", ""]


def test_waiting_is_no_time_of_the_processor() -> None:
    """A call that sleeps, one that works, and a first one that is to warm up."""

    def works(seconds: float) -> None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    sleeper = exported.Clocked(lambda: time.sleep(0.05))
    sleeper()
    assert sleeper.median(0) < 25
    length = iter([0.1, 0.02])
    worker = exported.Clocked(lambda: works(next(length)))
    worker()
    worker()
    assert 20 <= worker.median(1) < 40
    assert worker.median(0) >= 60


@pytest.mark.parametrize(
    ("described", "is_open"),
    [
        ("input: batch×3×64×64 float", True),
        ("input: s77×3×64×64 float", True),
        ("input: 2×3×64×64 float", False),
        ("x: 5: 2×3 float", False),
        ("x: scalar float", True),
    ],
)
def test_an_axis_with_a_name_is_open(described: str, is_open: bool) -> None:
    assert exported.is_open(described) is is_open


def test_an_export_is_told_in_numbers(tmp_path: Path) -> None:
    """A layer that folds, and one behind an activation, which stays."""
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sigmoid(), nn.BatchNorm1d(4), nn.Sigmoid())
    example = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    season(net.eval())
    for dynamic in (True, False):
        done = bn.export(net, example, tmp_path / "net.onnx", dynamic_batch=dynamic, force=True)
        found = exported.told(done)
        assert (found["sites"], found["folded"], found["open"], found["alone"]) == (2, 1, dynamic, 1)
        assert sum(found["stay"].values()) == 1
    verified = exported.judged(bn.verify(net, tmp_path / "net.onnx", example))
    assert exported.is_verified({"bntools": found, "verify": verified})
    assert exported.batches({"verify": verified}) == {5}  # no other: the last file is made for five rows


@pytest.mark.parametrize(
    ("raised", "found"),
    [
        (PromiseError("it is off\nby far", todo="no"), {"verdict": "failed"}),
        (CaptureError("torch refuses", todo="no"), {"refused": "torch refuses; no"}),
        (ValueError("no\nway"), {"raised": "ValueError: no"}),
    ],
)
def test_how_a_step_ends_is_told(raised: Exception, found: Mapping[str, str]) -> None:
    def work() -> Row:
        raise raised

    told = exported.timed(work)
    assert told.pop("took") >= 0
    assert found.items() <= told.items()
    assert ("why" in told) == isinstance(raised, PromiseError)
    assert "\n" not in "".join(map(str, told.values()))


def done(code: int, stdout: bytes, stderr: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.CompletedProcess([], code, stdout, stderr)


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (done(0, b'["left", {"before": 3}]\n'), None),
        (done(-9, b'["left", {"before": 3}]\n["lat'), "died of SIGKILL"),
        (done(1, b'["left", {"before": 3}]\n', b"Traceback\nValueError: no\n"), "ValueError: no"),
        (subprocess.TimeoutExpired([], 1, b'["left", {"before": 3}]\n'), "not done after 600 s"),
    ],
)
def test_how_a_child_ends_is_told(monkeypatch: pytest.MonkeyPatch, end: Any, said: str | None) -> None:
    def run(*args: Any, **kwargs: Any) -> Any:
        if isinstance(end, Exception):
            raise end
        return end

    monkeypatch.setattr(subprocess, "run", run)
    found = exported.ask("timm:resnet18")
    assert found["name"] == "timm:resnet18"
    assert found["left"] == {"before": 3}
    assert found.get("ended") == said
    assert exported.trouble(found) == (said or "")


def test_only_what_has_no_file_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def ask(name: str) -> Row:
        asked.append(name)
        return {"name": name, "seconds": 1.0}

    monkeypatch.setattr(exported, "ask", ask)
    monkeypatch.setattr(exported, "ROWS", tmp_path)
    monkeypatch.setattr(exported, "NAMES", ["timm:b", "timm:a"])
    monkeypatch.setattr("sys.argv", ["exported"])
    (tmp_path / "timm-b.json").write_text('{"name": "timm:b"}')
    exported.main()
    assert asked == ["timm:a"]
    assert [each["name"] for each in exported.read()] == ["timm:a", "timm:b"]
    monkeypatch.setattr("sys.argv", ["exported", "timm:b"])
    exported.main()
    assert asked == ["timm:a", "timm:b"]


def test_the_section_has_its_place_on_the_page() -> None:
    page = exported.placed("# Coverage\n\n| a |\n", "## ONNX files\n\nold\n")
    assert page == f"# Coverage\n\n| a |\n\n{exported.BEGIN}\n\n## ONNX files\n\nold\n\n{exported.END}\n"
    assert exported.placed(page, "## ONNX files\n\nnew\n") == page.replace("old", "new")
    assert exported.placed(f"{page}\nmore\n", "new\n").endswith(f"new\n\n{exported.END}\n\nmore\n")


@pytest.mark.parametrize("page", [exported.BEGIN, exported.END, f"{exported.END}\n{exported.BEGIN}"])
def test_half_a_section_is_not_written_over(page: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        exported.placed(page, "new")


def test_without_a_batchnorm_there_is_no_fold_to_prove() -> None:
    nothing = ONE | {"bntools": ONE["bntools"] | {"sites": 0, "folded": 0, "proof": "skipped"}}
    assert (exported.alarms(nothing), exported.is_verified(nothing)) == ("", True)
    unproven = ONE | {"bntools": ONE["bntools"] | {"proof": "skipped"}}
    assert exported.alarms(unproven).startswith("proof skipped")
    assert not exported.is_verified(unproven)
    unrun = {key: value for key, value in nothing.items() if key != "verify"}
    assert not exported.is_verified(unrun)

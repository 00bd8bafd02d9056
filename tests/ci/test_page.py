"""docs/ci.md: each of its blocks is run, on a model that is well and on one that is not."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml

from bntools.cli.app import EXIT_CODES
from tests.ci.models import SHAPE
from tests.ci.page import PAGE, blocks
from tests.ci.serving import Server
from tests.ci.workflow import ROOT, Runner, Step

BLOCKS = blocks(ROOT)
MADE = ("recalibrated.pt", "folded.pt", "model.onnx")


def broken(workspace: Path) -> None:
    """The model that the page speaks of is the broken one."""
    shutil.copy(workspace / "broken.pt", workspace / "model.pt")


def job(workflow: dict[str, Any]) -> dict[str, Any]:
    (only,) = workflow["jobs"].values()
    return dict(only)


def failures(steps: list[Step]) -> dict[str, int]:
    return {step.name: step.code for step in steps if step.outcome == "failure"}


def computes_the_same(workspace: Path, folder: str) -> None:
    """The files compute what the recalibrated model computes, and that is not what the first one did."""
    x = torch.from_numpy(np.load(workspace / "calibration.npy"))[: SHAPE[0]]
    of = {
        name: torch.load(workspace / name, weights_only=False) for name in ("model.pt", f"{folder}/{MADE[0]}")
    }
    was, want = (model(x).detach().numpy() for model in of.values())
    assert np.abs(was - want).max() > 1e-2
    folded = torch.load(workspace / folder / MADE[1], weights_only=False)
    assert not [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    np.testing.assert_allclose(folded(x).detach().numpy(), want, atol=1e-5)
    session = onnxruntime.InferenceSession(workspace / folder / MADE[2])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_there_is_one_of_each() -> None:
    """A new block must be run below; `blocks` refuses one of an unknown kind."""
    assert {kind: len(each) for kind, each in BLOCKS.items()} == {
        "workflow": 1,
        "action": 1,
        "script": 1,
        "gitlab": 1,
        "hook": 1,
        "local hook": 1,
        "command": 2,
    }


def test_the_workflow(runner: Runner, workspace: Path, server: Server) -> None:
    steps = runner.job(job(BLOCKS["workflow"][0]))
    assert failures(steps) == {}, [(step.name, step.out, step.err) for step in steps if step.code]
    assert {step.outcome for step in steps} == {"success"}
    computes_the_same(workspace, "out")
    (kept,) = runner.artefacts.values()
    assert {path.name for path in kept} == {"report.html", *MADE}
    told = "".join(step.summary for step in steps)
    assert "2 of 2 BatchNorms recalibrated" in told
    assert "`out/folded.pt`" in told
    assert "`out/model.onnx`" in told
    said = "".join(step.out for step in steps)
    assert said.count(": passed") == 2
    assert "::error" not in said
    assert "bntools[images] @ git+https://github.com/OWNER/bntools" in server.installed


def test_the_workflow_of_a_broken_model(runner: Runner, workspace: Path) -> None:
    broken(workspace)
    steps = runner.job(job(BLOCKS["workflow"][0]))
    (failed,) = (step for step in steps if step.outcome == "failure")
    assert (failed.name, failed.code) == ("Inspect, for the annotations; errors fail", 1)
    assert failed.out.startswith("::error title=bntools inspect BN002 negative-variance::1: ")
    after = [step.outcome for step in steps[steps.index(failed) + 1 :]]
    assert after == ["skipped"] * (len(after) - 1) + ["success"]
    (kept,) = runner.artefacts.values()
    assert [path.name for path in kept] == ["report.html"]
    assert "BN002" in kept[0].read_text("utf-8")
    assert "BN002" in "".join(step.summary for step in steps)


def test_the_workflow_with_the_action(runner: Runner, workspace: Path) -> None:
    """The last step of the page's job asks for the ONNX file by the action's output."""
    steps = runner.job(job(BLOCKS["action"][0]))
    assert failures(steps) == {}, [(step.name, step.out, step.err) for step in steps if step.code]
    action = next(step for step in steps if step.inner)
    names = dict(zip(("recalibrated", "folded", "onnx"), MADE, strict=True), report="report.html")
    paths = {name: f"bntools-out/{file}" for name, file in names.items()}
    assert action.outputs == {"exit-code": "0", **paths}
    computes_the_same(workspace, "bntools-out")
    assert {path.name for path in runner.artefacts["bntools"]} == {"report.html", *MADE}
    headings = re.findall(r"^#### bntools (\w+)$", action.summary, re.MULTILINE)
    assert headings == ["inspect", "recalibrate", "fold", "export", "verify", "verify"]
    assert action.summary.count("**passed**") == 2
    assert "::notice title=bntools inspect::2 of 2 BatchNorms fold" in action.out
    assert "::error" not in action.out


def test_the_workflow_with_the_action_of_a_broken_model(runner: Runner, workspace: Path) -> None:
    broken(workspace)
    steps = runner.job(job(BLOCKS["action"][0]))
    assert list(failures(steps).values()) == [1]
    action = next(step for step in steps if step.inner)
    report = {"report": "bntools-out/report.html", "recalibrated": "", "folded": "", "onnx": ""}
    assert action.outputs == {"exit-code": "1", **report}
    assert steps[-1].outcome == "skipped"
    (kept,) = runner.artefacts["bntools"]
    assert "BN002" in kept.read_text("utf-8")
    assert action.out.count("::error title=bntools inspect BN002") == 1
    assert "BN002" in action.summary


def gitlab(workspace: Path, environ: dict[str, str], server: Server) -> int:
    """The script of the GitLab job, which runs the page's shell script."""
    (script,), (pipeline,) = BLOCKS["script"], BLOCKS["gitlab"]
    (workspace / "check-model.sh").write_text(script, "utf-8")
    lines = "\n".join(pipeline["model"]["script"])
    return server.execute(["bash", "-eo", "pipefail", "-c", lines], workspace, environ).returncode


def test_the_shell_script(workspace: Path, environ: dict[str, str], server: Server) -> None:
    assert gitlab(workspace, environ, server) == 0
    computes_the_same(workspace, "out")
    kept = BLOCKS["gitlab"][0]["model"]["artifacts"]
    assert kept["when"] == "always"
    assert all((workspace / path).exists() for path in [*kept["paths"], kept["reports"]["junit"]])
    assert "<failure" not in (workspace / kept["reports"]["junit"]).read_text("utf-8")


def test_the_shell_script_and_a_broken_model(
    workspace: Path, environ: dict[str, str], server: Server
) -> None:
    broken(workspace)
    assert gitlab(workspace, environ, server) == 1
    assert sorted(path.name for path in (workspace / "out").iterdir()) == ["inspect.xml", "report.html"]
    assert "<failure" in (workspace / "out" / "inspect.xml").read_text("utf-8")


def test_the_baseline(workspace: Path, environ: dict[str, str], server: Server) -> None:
    """Written of the model that is well; what breaks it is new. Written of the broken one, nothing is."""
    write, compare = (["sh", "-c", command] for command in BLOCKS["command"])
    assert server.execute(write, workspace, environ).returncode == 0
    assert server.execute(compare, workspace, environ).returncode == 0
    broken(workspace)
    assert server.execute(compare, workspace, environ).returncode == 1
    assert server.execute(write, workspace, environ).returncode == 0
    assert "BN002" in {
        each["rule"] for each in json.loads((workspace / "known.json").read_text())["findings"]
    }
    assert server.execute(compare, workspace, environ).returncode == 0


def test_the_tables_are_whole() -> None:
    """Every input of the action, with its default, and every exit code."""
    page = (ROOT / PAGE).read_text("utf-8")
    action = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
    rows = re.findall(r"^\| (`[a-z-]+`(?:, `[a-z-]+`)*) \| ([^|]*)\|", page, re.MULTILINE)
    told = {name.strip("`"): default.strip("` ") for names, default in rows for name in names.split(", ")}
    assert told == {name: str(about.get("default", "")) for name, about in action["inputs"].items()}
    prose = re.search(r"^Outputs: .*?\.$", page, re.MULTILINE | re.DOTALL) or pytest.fail("no outputs")
    assert all(f"`{name}`" in prose[0] for name in action["outputs"])
    codes = re.findall(r"^\| ([\d, ]+) \|", page, re.MULTILINE)
    known = re.findall(r"^ +(\d+) ", EXIT_CODES, re.MULTILINE)
    assert [code for row in codes for code in row.split(", ")] == known

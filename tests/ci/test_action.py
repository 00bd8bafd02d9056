"""The action and its scripts, beyond what the page shows: what comes in by the inputs, and how it ends."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from tests.ci import models
from tests.ci.serving import Server
from tests.ci.workflow import ROOT, Runner, Step

ON = {"input": "2x3x224x224"}
WORKFLOWS = [ROOT / "action.yml", *sorted((ROOT / ".github" / "workflows").glob("*.yml"))]


def act(runner: Runner, **given: Any) -> Step:
    """One step that uses the action."""
    inputs = {name.replace("_", "-"): value for name, value in given.items()}
    (step,) = runner.job({"steps": [{"uses": "./", "with": inputs}]})
    return step


def asked(server: Server, before: int) -> list[list[str]]:
    return server.calls[before:]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_no_value_is_pasted_into_a_script(file: Path) -> None:
    """`run` is code: ``${{ inputs.model }}`` there would run what a model's name says."""

    def scripts(node: Any) -> list[str]:
        if isinstance(node, dict):
            below = [script for value in node.values() for script in scripts(value)]
            return [node["run"], *below] if isinstance(node.get("run"), str) else below
        return [script for each in node for script in scripts(each)] if isinstance(node, list) else []

    found = scripts(yaml.safe_load(file.read_text("utf-8")))
    assert found
    assert not [script for script in found if "${{" in script]


def test_every_input_reaches_a_script() -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
    code = "".join((ROOT / "action" / name).read_text("utf-8") for name in ("check", "install"))
    steps = action["runs"]["steps"]
    handed = {name: value for step in steps for name, value in step.get("env", {}).items()}
    wanted = {
        f"INPUT_{name.upper().replace('-', '_')}": f"${{{{ inputs.{name} }}}}" for name in action["inputs"]
    }
    del wanted["INPUT_ARTIFACT"]
    assert handed == wanted
    read = set(re.findall(r"INPUT_[A-Z_]+", code)) | {
        f"INPUT_{n}" for n in re.findall(r"\bon ([A-Z]+)", code)
    }
    assert set(wanted) <= read
    assert steps[-1]["with"]["name"] == "${{ inputs.artifact }}"


@pytest.mark.parametrize("script", ["check", "install"])
def test_a_script_can_be_started(script: str) -> None:
    assert os.access(ROOT / "action" / script, os.X_OK)


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["a $(touch pwned);`touch pwned`'touch pwned'.pt", "-q.pt", "*.pt"])
def test_a_name_is_a_name(runner: Runner, workspace: Path, name: str) -> None:
    """Of the files that are there, each is taken as it is called; its twin that is not there is an error."""
    missing = act(runner, **ON, model=name, output="none")
    assert missing.code == 2
    assert "there is no such file" in missing.out
    (workspace / "model.pt").rename(workspace / name)
    there = act(runner, **ON, model=name, output=f"{name} out", fold=True, verify=False, artifact="2")
    assert there.code == 0, there.err
    assert (workspace / f"{name} out" / "folded.pt").exists()
    assert not (workspace / "pwned").exists()


def test_a_star_stays_one(runner: Runner, server: Server) -> None:
    """Words of an input are not the names of files, of which there are several here."""
    before = len(server.calls)
    assert act(runner, model="model.pt", input="*", args="--trust *").code == 2
    assert [call[1:3] for call in asked(server, before)] == [["--trust", "*"]] * 2
    assert all(call[call.index("--input") + 1] == "*" for call in asked(server, before))


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["input", "args", "fail_on", "baseline", "data", "arch", "output"])
def test_no_input_is_code(runner: Runner, workspace: Path, name: str) -> None:
    act(runner, **{"model": "model.pt", **ON, name: "x; touch pwned; $(touch pwned) `touch pwned`"})
    assert not (workspace / "pwned").exists()


@pytest.mark.zoo
def test_options_for_every_command(runner: Runner, server: Server, workspace: Path) -> None:
    """They are split as a shell does it, quotes and line ends and all."""
    torch.save(models.model(width=5).state_dict(), workspace / "model.pt")
    given = {**ON, "model": "model.pt", "arch": "tests.ci.models:model", "fold": True}
    before = len(server.calls)
    step = act(runner, **given, args="""--arch-kwargs '{"width": 5}'\n--quiet""")
    assert step.code == 0, step.err
    assert [call[0] for call in asked(server, before)] == ["inspect", "inspect", "fold", "verify"]
    words = ["--arch-kwargs", '{"width": 5}', "--quiet"]
    assert all(call[1:4] == words for call in asked(server, before))


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"args": "--key 'ema"}, "args: a quote is not closed"),
        ({"fold": "yes"}, "input FOLD: expected true or false, it is yes"),
        ({"export": "1"}, "input EXPORT: expected true or false"),
        ({"verify": "no\n::notice::x"}, "input VERIFY: expected true or false, it is no ::notice::x"),
        ({"output": "a\nreport=b"}, "output: expected a name on one line"),
    ],
)
def test_a_wrong_input(runner: Runner, server: Server, given: dict[str, str], told: str) -> None:
    before = len(server.calls)
    step = act(runner, model="model.pt", **given)
    assert (step.code, step.outputs["exit-code"], step.outputs["report"]) == (2, "2", "")
    (line,) = step.out.splitlines()
    assert line.startswith(f"::error title=bntools::{told}")
    assert asked(server, before) == []


@pytest.mark.zoo
def test_what_fails_after_inspect_is_annotated_and_summarised(runner: Runner, workspace: Path) -> None:
    """Markdown has no annotations; a command that fails there gets its own."""
    step = act(runner, **ON, model="model.pt", data="gone%.npy", fold=True)
    assert (step.code, step.outputs["folded"]) == (2, "")
    (error,) = [line for line in step.out.splitlines() if line.startswith("::error")]
    assert error.startswith("::error title=bntools recalibrate::gone%25.npy: ")
    assert "    error  gone%.npy: " in step.summary.splitlines()[-2]
    assert [path.name for path in runner.artefacts["bntools"]] == ["report.html"]


@pytest.mark.zoo
def test_what_is_there_already_is_not_replaced(runner: Runner, workspace: Path) -> None:
    assert act(runner, **ON, model="model.pt", fold=True).code == 0
    before = (workspace / "bntools-out" / "folded.pt").read_bytes()
    assert act(runner, **ON, model="model.pt", fold=True, artifact="").code == 2
    assert (workspace / "bntools-out" / "folded.pt").read_bytes() == before


@pytest.mark.zoo
def test_weights_alone(runner: Runner, workspace: Path) -> None:
    """A state dict in safetensors, recalibrated and folded on; recalibrated ones are no safetensors."""
    save_file(models.model().state_dict(), workspace / "weights.safetensors")
    how = {**ON, "arch": "tests.ci.models:model", "model": "weights.safetensors", "strict": True}
    step = act(runner, **how, data="calibration.npy", fold=True)
    assert step.code == 0, step.err
    assert step.outputs["folded"] == "bntools-out/folded.pt"
    step = act(runner, **how, fold=True, output="2", artifact="")
    assert step.code == 0, step.err
    assert step.outputs["folded"] == "2/folded.safetensors"


@pytest.mark.zoo
def test_what_fails_is_chosen(runner: Runner, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the input; if that is empty, by the project's file; and a baseline lets pass what it knows."""
    given = {**ON, "model": "broken.pt"}
    assert act(runner, **given, fail_on="BN013", output="1", artifact="").code == 0
    assert act(runner, **given, fail_on="BN002", output="2", artifact="").code == 1
    assert act(runner, **given, fail_on="", output="3", artifact="").code == 0
    (workspace / "pyproject.toml").write_text('[tool.bntools.inspect]\nfail-on = "error"', "utf-8")
    assert act(runner, **given, fail_on="", output="4", artifact="").code == 1
    ran = runner.execute(
        ["bntools", "inspect", "broken.pt", "--write-baseline", "known.json"], workspace, runner.environ
    )
    assert ran.returncode == 0
    assert act(runner, **given, baseline="known.json", output="5", artifact="").code == 0


@pytest.mark.zoo
def test_strict(runner: Runner, workspace: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 7, stride=8), nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU())
    torch.save(models.season(model.eval(), example=torch.randn(models.SHAPE)), workspace / "stays.pt")
    assert act(runner, **ON, model="stays.pt", fold=True).code == 0
    step = act(runner, **ON, model="stays.pt", fold=True, strict=True, output="2", artifact="")
    assert (step.code, step.outputs["folded"]) == (1, "")


@pytest.mark.zoo
def test_where_nothing_is_to_be_done(runner: Runner, workspace: Path) -> None:
    """Nothing fails; where no statistics are moved, there is no such file, and the model itself goes on."""
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 7, stride=8), nn.ReLU()).eval(), workspace / "plain.pt")
    step = act(runner, **ON, model="plain.pt", fold=True)
    assert step.code == 0, step.err
    frozen = models.model()
    for norm in frozen.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.0
    torch.save(frozen, workspace / "frozen.pt")
    step = act(runner, **ON, model="frozen.pt", data="calibration.npy", fold=True, output="2", artifact="")
    assert step.code == 0, step.err
    assert (step.outputs["recalibrated"], step.outputs["folded"]) == ("", "2/folded.pt")
    assert "frozen.pt and 2/folded.pt: passed" in step.summary


@pytest.mark.zoo
def test_colours_that_the_job_asks_for_do_not_hide_an_error(runner: Runner, workspace: Path) -> None:
    runner.environ = {**runner.environ, "FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"}
    step = act(runner, **ON, model="model.pt", data="gone.npy")
    assert "::error title=bntools recalibrate::gone.npy" in step.out
    assert "\x1b" not in step.out + step.summary


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, [f"{ROOT}[images]"]),
        ({"pinned": True}, ["--constraint", f"{ROOT}/constraints.txt", f"{ROOT}[images]"]),
        ({"install": "bntools[plot] == 1; x"}, ["bntools[plot] == 1; x"]),
        ({"install": "none"}, []),
    ],
)
def test_what_is_installed(runner: Runner, server: Server, given: dict[str, Any], told: list[str]) -> None:
    before = len(server.installed)
    assert act(runner, **ON, model="model.pt", **given).code == 0
    assert server.installed[before:] == (["install", *told] if told else [])


def test_without_github(workspace: Path, environ: dict[str, str], server: Server) -> None:
    given = {**environ, "INPUT_MODEL": "model.pt"}
    ran = server.execute([str(ROOT / "action" / "check")], workspace, given)
    assert (ran.returncode, ran.stderr.split(",")[0]) == (0, "note  bntools-out/report.html: the page")
    given["INPUT_MODEL"] = ""
    ran = server.execute([str(ROOT / "action" / "check")], workspace, given)
    assert ran.returncode == 2
    assert "no file was named" in ran.stderr


@pytest.mark.zoo
def test_the_job_that_uses_it_here(runner: Runner, workspace: Path) -> None:
    """The job of our own workflow: a model that is well, and one that is not and has to fail."""
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))["jobs"]
    for path in workspace.iterdir():
        path.unlink()
    steps = runner.job(jobs["action"])
    bad = {step.name: (step.code, step.out, step.err) for step in steps if step.outcome != "success"}
    assert set(bad) == {"A broken model"}, bad
    assert set(runner.artefacts) == {"well", "broken"}

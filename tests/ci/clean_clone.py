"""``python -m tests.ci.clean_clone``, which is ``make ci-recipe``: the page, as a stranger would follow it.

A fresh clone is made, and an environment with nothing but what the page's own command installs of it. There
the workflow runs, with the real commands, on a model that is well and on one that is not; so does the action.
Then pre-commit makes the hook's environment from the clone, as the page configures it, and runs it on both.

If PIP_EXTRA_INDEX_URL is set, though empty, it goes before the page's: pip may be set up otherwise here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.ci import models
from tests.ci.page import blocks
from tests.ci.workflow import ROOT, Runner, Step

INDEX = "PIP_EXTRA_INDEX_URL"


def execute(
    command: Sequence[str], folder: Path, environ: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, env=dict(environ), capture_output=True, text=True, check=False)


def tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Place:
    """A clone, an environment that is still empty, and a workspace with the models.

    Args:
        folder: where they are made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.clone, self.workspace = folder, folder / "bntools", folder / "workspace"
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(self.clone)], check=True)
        subprocess.run(["git", "checkout", "--quiet", "-B", "main"], cwd=self.clone, check=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder / "environment")], check=True)
        self.workspace.mkdir()
        models.write(self.workspace)
        dropped = ("VIRTUAL_ENV", "PYTHONPATH", INDEX)
        kept = {name: value for name, value in os.environ.items() if name not in dropped}
        self.environ = {
            **kept,
            "PATH": f"{folder / 'environment' / 'bin'}:{os.environ['PATH']}",
            "SOURCE": str(self.clone),
            "RUNNER_TEMP": str(folder / "runner"),
            "PIP_CONSTRAINT": str(self.clone / "constraints.txt"),
            "PRE_COMMIT_HOME": str(folder / "pre-commit"),
            # What the page says is fetched from there comes from the clone.
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.{self.clone.as_uri()}.insteadOf",
            "GIT_CONFIG_VALUE_0": "https://github.com/OWNER/bntools",
            **({INDEX: os.environ[INDEX]} if os.environ.get(INDEX) else {}),
        }

    def run(self, title: str, workflow: Mapping[str, Any], model: str, code: int) -> bool:
        """Run the job of a workflow on *model*, as ``model.pt``: whether it ended with this exit code."""
        (job,) = workflow["jobs"].values()
        if INDEX in os.environ:
            job = {**job, "env": {name: value for name, value in job["env"].items() if name != INDEX}}
        here = self.folder / title
        shutil.copytree(self.workspace, here)
        shutil.copy(self.workspace / model, here / "model.pt")
        runner = Runner(
            here, {**self.environ, "RUNNER_TEMP": f"{self.environ['RUNNER_TEMP']}/{title}"}, execute
        )
        tell(f"\n{title}, {model}")
        steps = runner.job(job)
        _tell(steps)
        for name, files in runner.artefacts.items():
            tell(f"    artefact {name}: {', '.join(path.name for path in files)}")
        ended = next((step.code for step in steps if step.code), 0)
        tell(f"    exit code {ended}, expected {code}")
        kept = {path.name for files in runner.artefacts.values() for path in files}
        wanted = {"report.html"} | ({"recalibrated.pt", "folded.pt", "model.onnx"} if code == 0 else set())
        return ended == code and kept == wanted

    def hook(self, config: Mapping[str, Any], model: str, code: int) -> bool:
        """Let pre-commit run the hook on a model that is committed: whether it ended with this exit code."""
        begun = time.perf_counter()
        repository = self.folder / "committed"
        subprocess.run(["git", "init", "--quiet", str(repository)], check=True)
        (repository / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config), "utf-8")
        shutil.copy(self.workspace / model, repository / model)
        subprocess.run(["git", "add", "."], cwd=repository, check=True)
        command = [sys.executable, "-m", "pre_commit", "run", "--color", "never", "--files", model]
        ran = execute(command, repository, self.environ)
        tell(f"\npre-commit, {model}\n    {time.perf_counter() - begun:6.1f} s")
        tell("".join(f"    {line}\n" for line in (ran.stdout + ran.stderr).splitlines()[-30:]))
        return ran.returncode == code


def _tell(steps: Sequence[Step], depth: int = 1) -> None:
    for step in steps:
        tell(f"{'    ' * depth}{step.seconds:6.1f} s  {step.outcome:8}{step.name}")
        _tell(step.inner, depth + 1)
        if not step.inner and step.code:
            tell(
                "".join(f"    {'    ' * depth}{line}\n" for line in (step.out + step.err).splitlines()[-20:])
            )


def main() -> int:
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="ci-recipe") as folder:
        place = Place(Path(folder))
        page = blocks(place.clone)
        (workflow,), (action,), (config,) = page["workflow"], page["action"], page["hook"]
        held = [
            place.run("the workflow", workflow, "model.pt", 0),
            place.run("the workflow again", workflow, "broken.pt", 1),
            place.run("the action", action, "model.pt", 0),
            place.run("the action again", action, "broken.pt", 1),
            place.hook(config, "model.pt", 0),
            place.hook(config, "broken.pt", 1),
        ]
    tell(f"{sum(held)} of {len(held)} as the page says, in {time.perf_counter() - begun:.0f} s")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())

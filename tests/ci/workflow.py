"""Runs the jobs of a GitHub workflow and the action, as far as those here need it, without GitHub.

A step's script goes to bash as GitHub's runner hands it over; expressions are filled into everything but
scripts, which may hold none. What is not known here is an error, so that nothing is passed over.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
OURS = ("./", "OWNER/bntools@main")
UPLOAD = "actions/upload-artifact@v4"
OTHERS = ("actions/checkout@v4", "actions/setup-python@v5")
SHELLS = {None: ["bash", "-e"], "bash": ["bash", "--noprofile", "--norc", "-eo", "pipefail"]}

Execute = Callable[[Sequence[str], Path, Mapping[str, str]], "subprocess.CompletedProcess[str]"]
"""Runs a program in a folder with this environment."""


@dataclass
class Step:
    """What a step did; of one that uses the action, its `inner` steps did it."""

    name: str
    outcome: str
    """As GitHub has it: success, failure or skipped."""
    code: int = 0
    out: str = ""
    err: str = ""
    summary: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
    inner: list[Step] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Runner:
    """A machine that jobs run on.

    Args:
        folder: the workspace.
        environ: that of every step.
        execute: starts bash.
    """

    folder: Path
    environ: Mapping[str, str]
    execute: Execute
    artefacts: dict[str, list[Path]] = field(default_factory=dict)
    count: int = 0

    def job(self, job: Mapping[str, Any]) -> list[Step]:
        """Run a job: what each of its steps did, in order."""
        assert set(job) <= {"name", "runs-on", "timeout-minutes", "env", "steps"}, job
        return self._steps(job["steps"], {**self.environ, **_texts(job.get("env", {}))}, {})

    def _steps(
        self, steps: Sequence[Mapping[str, Any]], environ: Mapping[str, str], inputs: Mapping[str, str]
    ) -> list[Step]:
        did: list[Step] = []
        by_id: dict[str, Step] = {}
        failed = False
        for step in steps:
            known = {"name", "id", "if", "uses", "with", "run", "shell", "env", "continue-on-error"}
            assert set(step) <= known, step
            scope = Scope(inputs, by_id)
            wanted = str(step["if"]) if "if" in step else "success()"
            begun = time.perf_counter()
            if (failed and "cancelled()" not in wanted) or not scope.true(wanted):
                done = Step("", "skipped")
            elif "run" in step:
                done = self._script(step, {**environ, **scope.fill(step.get("env", {}))})
            else:
                done = self._use(step["uses"], scope.fill(step.get("with", {})), environ)
            done.name = step.get("name") or step.get("id") or step.get("uses") or step["run"]
            done.seconds = time.perf_counter() - begun
            did.append(done)
            by_id[step.get("id", str(len(did)))] = done
            failed |= done.outcome == "failure" and not step.get("continue-on-error", False)
        return did

    def _script(self, step: Mapping[str, Any], environ: Mapping[str, str]) -> Step:
        assert "${{" not in step["run"], "a script is code: values reach it by env"
        self.count += 1
        scratch = Path(environ["RUNNER_TEMP"]) / str(self.count)
        scratch.mkdir(parents=True)
        script, summary, output = (scratch / name for name in ("script.sh", "summary.md", "output"))
        script.write_text(step["run"], "utf-8")
        summary.touch()
        output.touch()
        given = {**environ, "GITHUB_STEP_SUMMARY": str(summary), "GITHUB_OUTPUT": str(output)}
        ran = self.execute([*SHELLS[step.get("shell")], str(script)], self.folder, given)
        outputs = dict(line.split("=", 1) for line in output.read_text("utf-8").splitlines())
        told = summary.read_text("utf-8")
        outcome = "failure" if ran.returncode else "success"
        return Step("", outcome, ran.returncode, ran.stdout, ran.stderr, told, outputs)

    def _use(self, action: str, given: dict[str, str], environ: Mapping[str, str]) -> Step:
        if action == UPLOAD:
            files = sorted(path for path in (self.folder / given["path"]).rglob("*") if path.is_file())
            assert given["name"] not in self.artefacts, "two artefacts of one name"
            self.artefacts[given["name"]] = files
            return Step("", "success")
        if action in OURS:
            return self._action(given, environ)
        assert action in OTHERS, action
        return Step("", "success")

    def _action(self, given: dict[str, str], environ: Mapping[str, str]) -> Step:
        source = environ["SOURCE"]  # the repository that the action comes from
        action = yaml.safe_load(Path(source, "action.yml").read_text("utf-8"))
        known = action["inputs"]
        assert set(given) <= set(known), set(given) - set(known)
        inputs = {name: given.get(name, str(about.get("default", ""))) for name, about in known.items()}
        own = {**environ, "GITHUB_ACTION_PATH": source}
        steps = self._steps(action["runs"]["steps"], own, inputs)
        by_id = {s["id"]: done for s, done in zip(action["runs"]["steps"], steps, strict=True) if "id" in s}
        outputs = Scope(inputs, by_id).fill({k: about["value"] for k, about in action["outputs"].items()})
        code = next((step.code for step in steps if step.code), 0)
        joined = {name: "".join(getattr(step, name) for step in steps) for name in ("out", "err", "summary")}
        return Step("", "failure" if code else "success", code, **joined, outputs=outputs, inner=steps)


class Scope:
    """The values that expressions may name."""

    def __init__(self, inputs: Mapping[str, str], steps: Mapping[str, Step]) -> None:
        self._inputs, self._steps = inputs, steps

    def fill(self, values: Mapping[str, Any]) -> dict[str, str]:
        """*values* with their expressions evaluated."""
        pattern = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")
        return {
            name: pattern.sub(lambda match: self._value(match[1]), text)
            for name, text in _texts(values).items()
        }

    def true(self, condition: str) -> bool:
        """Whether an ``if`` holds, but for what it says of earlier failures."""
        text = condition.removeprefix("${{").removesuffix("}}").strip()
        return all(self._holds(term.strip()) for term in text.split("&&"))

    def _holds(self, term: str) -> bool:
        if term in ("success()", "!cancelled()"):
            return True
        match = re.fullmatch(r"(\S+) (==|!=) '([^']*)'", term)
        assert match is not None, f"{term}: not known here"
        return (self._value(match[1]) == match[3]) == (match[2] == "==")

    def _value(self, name: str) -> str:
        first, *rest = name.split(".")
        if first == "inputs":
            return self._inputs[rest[0]]
        assert first == "steps", f"{name}: not known here"
        assert rest[0] in self._steps, f"{name}: there is no such step before"
        step = self._steps[rest[0]]
        if rest[1] == "outputs":
            return step.outputs.get(rest[2], "")
        assert rest[1] == "outcome", f"{name}: not known here"
        return step.outcome


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """As GitHub makes text of what YAML has."""
    return {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in values.items()}

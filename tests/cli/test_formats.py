"""JSON, GitHub's annotations and Markdown: each can be read by what reads it, whatever happened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from bntools.cli.options import Format
from bntools.cli.render import sink
from bntools.core import inputs
from tests.cli import nets
from tests.cli.conftest import Ran, Run
from tests.cli.test_exit_codes import break_graft

Saved = Callable[..., Path]
ON = ("--input", nets.SHAPE)


def strict(text: str) -> Any:
    """JSON as the standard has it, without NaN and Infinity."""

    def refuse(name: str) -> Any:
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


def read(ran: Ran, verb: str = "fold") -> Any:
    """The one object on stdout."""
    assert ran.out.endswith("}\n")
    assert ran.out.count("\n") == 1
    about = strict(ran.out)
    assert (about["schema"], about["command"]) == (1, verb)
    return about


@pytest.mark.parametrize("flags", [["--json"], ["--format", "json"]])
def test_json_of_a_fold(run: Run, saved: Saved, flags: list[str]) -> None:
    about = read(run("fold", saved(nets.partly()), *ON, *flags))
    assert set(about) == {
        "schema", "command", "model", "input", "dry_run", "plan", "report", "latency", "output",
    }  # fmt: skip
    assert about["report"]["verdict"] == "passed"
    assert [e["site"]["name"] for e in about["plan"]["edits"]] == ["1"]
    assert [r["reason"] for r in about["plan"]["refusals"]] == ["blocked"]
    assert about["output"]["path"].endswith("model.folded.pt")
    assert about["output"]["after"] == Path("model.folded.pt").stat().st_size


def test_json_of_the_other_verbs(run: Run, saved: Saved) -> None:
    model = saved()
    assert len(read(run("inspect", model, *ON, "--json"), "inspect")["sites"]) == 2
    assert run("fold", model, *ON, "-o", "a.safetensors").code == 0
    about = read(run("replay", "a.safetensors", model, "--json"), "replay")
    assert about["output"]["path"] == "a.replayed.pt"


def test_json_is_never_coloured(run: Run, saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in run("inspect", saved(), *ON, "--json").out
    assert "\x1b" not in run("inspect", "gone.pt", "--json").out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["gone.pt"], 2),
        (["model.pt", "--input", "2xx"], 2),
        (["model.pt", "--input", "2x7x8x8"], 4),
        (["model.pt", "--input", "2x7x8x8", "--strict", "-o", "out.pt"], 4),
        (["model.pt", *ON, "--strict"], 1),
        (["weak.pt", *ON, "--strict"], 5),
        (["tests.cli.nets:quits", *ON], 4),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_one_object_also_for_errors(run: Run, saved: Saved, arguments: list[str], code: int) -> None:
    saved(nets.partly())
    saved(nets.weak(), "weak.pt")
    ran = run("fold", *arguments, "--json")
    assert ran.code == code
    error = read(ran)["error"]
    assert error["exit_code"] == code
    assert error["message"] in ran.err
    assert set(error) == {"message", "todo", "exit_code"}


def test_one_object_for_a_bug_and_an_interruption(
    run: Run, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved()
    for error, code in ((RuntimeError("oh"), 101), (KeyboardInterrupt(), 130)):

        def stop(*_: Any, error: BaseException = error, **__: Any) -> Any:
            raise error

        monkeypatch.setattr(inputs, "parse_inputs", stop)
        ran = run("fold", "model.pt", *ON, "--json")
        assert ran.code == code
        assert read(ran)["error"]["exit_code"] == code


def test_one_object_if_it_is_interrupted_behind_it(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        with sink("fold", Format.json, False, False, False) as out:
            out.result({"sites": []}, {})
            raise KeyboardInterrupt

    with pytest.raises(typer.Exit):
        body()
    ran = Ran(130, *capsys.readouterr())
    assert "error" not in read(ran)
    assert "interrupted" in ran.err


def test_a_number_that_is_none_is_null(run: Run, saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of NaN are infinitely wrong, which JSON has no word for."""
    break_graft(monkeypatch, float("nan"))
    ran = run("fold", saved(), *ON, "--json")
    assert ran.code == 1
    report = read(ran)["report"]
    assert report["verdict"] == "failed"
    assert report["shipped_error"] is None
    assert report["power"] > 0


def test_github_has_a_line_for_the_result_and_for_each_that_stays(run: Run, saved: Saved) -> None:
    lines = run("fold", saved(nets.partly()), *ON, "--dry-run", "--format", "github").out.splitlines()
    assert lines[0] == "::notice title=bntools fold::1 of 2 BatchNorms fold"
    assert lines[1].startswith("::warning title=bntools fold::3: blocked: ")
    assert len(lines) == 2


def test_github_of_bare_weights(run: Run, saved: Saved) -> None:
    ran = run("inspect", saved(nets.net().state_dict()), "--format", "github")
    assert ran.out == "::notice title=bntools inspect::2 BatchNorms\n"


def test_github_shows_errors(run: Run, saved: Saved) -> None:
    model = saved(nets.partly())
    assert run("fold", "gone.pt", "--format", "github").out.startswith("::error title=bntools fold::gone.pt")
    failed = run("fold", model, *ON, "--strict", "--format", "github").out.splitlines()[-1]
    assert failed.startswith("::error title=bntools fold::1 of 2 BatchNorms stay")


def test_github_reads_no_command_out_of_a_name(run: Run, saved: Saved) -> None:
    """%0A in a name would start a line, and so a command, of its own; an escape sequence is written out."""
    ran = run("fold", saved(nets.odd_names()), *ON, "--dry-run", "--format", "github")
    assert len(ran.out.splitlines()) == 2
    assert "[bold]%250A" in ran.out
    assert "\\x1b[2J\\nz|" in ran.out
    assert "%0A" not in ran.out
    assert "\x1b" not in ran.out
    error = run("fold", "a%0A::error::b\nc.pt", "--format", "github").out
    assert "a%250A" in error
    assert len(error.splitlines()) == 1


def test_markdown_has_a_row_for_each_site(run: Run, saved: Saved) -> None:
    ran = run("fold", saved(nets.partly()), *ON, "--format", "markdown")
    rows = [line for line in ran.out.splitlines() if line.startswith("|")]
    assert rows[2:] == [
        "| `1` | BatchNorm2d | 4 | `0` (conv2d) |",
        "| `3` | BatchNorm2d | 4 | blocked: relu in 2 stands in front of it, and passes no "
        "negative scale; what it returns is returned |",
    ]
    assert "Written: `" in ran.out


@pytest.mark.parametrize("verb", ["inspect", "fold"])
def test_markdown_keeps_its_columns(run: Run, saved: Saved, verb: str) -> None:
    """A pipe or a line end in a name would break the table, a backtick the code."""
    ran = run(verb, saved(nets.odd_names()), *ON, "--format", "markdown")
    rows = [line for line in ran.out.splitlines() if line.startswith("|")]
    assert len(rows) == (7 if verb == "inspect" else 4)  # inspect has a table of findings too
    for row in rows:
        assert row.replace("\\|", "").count("|") == 5
        assert row.count("`") % 2 == 0
    assert "a\\|b%" in rows[2]
    assert "c[red]\\|" in rows[2]


def test_markdown_without_a_batchnorm(run: Run, saved: Saved) -> None:
    out = run("inspect", saved(nets.plain()), *ON, "--format", "markdown").out
    assert "0 of 0 BatchNorms" in out
    assert "|" not in out


@pytest.mark.parametrize("form", ["text", "markdown", "github"])
def test_a_name_is_no_emoji(run: Run, saved: Saved, form: str) -> None:
    model = saved().rename("a:cat:b.pt")
    assert run("inspect", model, *ON).out.splitlines()[0].endswith("torch.nn")
    assert "a:cat:b.pt" in run("fold", model, *ON, "--dry-run").out
    error = run("fold", "gone:dog:x.pt", "--format", form)
    assert "gone:dog:x.pt" in error.err

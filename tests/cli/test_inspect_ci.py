"""What `inspect` is in CI: a JUnit report, and a baseline of what is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

import bntools
from bntools.findings import RULES
from tests.cli import nets
from tests.cli.conftest import Run, digests
from tests.cli.test_inspect import ill
from tests.report.test_junit import outcomes, well_formed

Saved = Callable[..., Path]
ON = ("--input", nets.SHAPE)
JUNIT = ("--format", "junit")
KNOWN = "known.json"
STATIC = {r.id for r in RULES.values() if r.needs not in ("data", "optimizer")} - {"BN026"}
"""Those that a model alone is asked."""


def clean() -> nn.Module:
    model = nets.net()
    model[3].bias = None
    return model


# JUnit


def test_a_suite_of_what_is_wrong(run: Run, saved: Saved) -> None:
    ran = run("inspect", saved(ill()), *ON, *JUNIT)
    assert (ran.code, ran.err) == (0, "")
    suite = well_formed(ran.out)
    told = outcomes(suite)
    assert {case: outcome for case, outcome in told.items() if outcome} == {
        "BN002 negative-variance: 1": "failure",
        "BN005 momentum-convention: 3": "failure",
        "BN005 momentum-convention: 5": "failure",
        "BN013 redundant-bias: 1": "system-out",
        "BN013 redundant-bias: 5": "system-out",
        "BN023 mixed-momentum: 1": "system-out",
    }
    assert {case.split()[0] for case in told} == STATIC
    properties = {each.attrib["name"]: each.attrib["value"] for each in suite.iter("property")}
    assert properties.pop("kind").startswith("a pickled module")
    assert properties == {"model": str(Path.cwd() / "model.pt"), "version": bntools.__version__}


def test_rules_that_had_nothing_to_look_at_are_no_cases(run: Run, saved: Saved) -> None:
    asked = {
        "module": {
            case.split()[0] for case in outcomes(well_formed(run("inspect", saved(), *ON, *JUNIT).out))
        },
        "weights": set(),
    }
    saved(nets.net().state_dict())
    out = run("inspect", "model.pt", *JUNIT, "--batch-size", "2").out
    asked["weights"] = {case.split()[0] for case in outcomes(well_formed(out))}
    tensors = {rule.id for rule in RULES.values() if rule.needs.value == "tensors"}
    assert asked == {"module": STATIC, "weights": tensors}
    assert len(tensors) == 7


def test_a_model_that_does_not_run_is_an_error_beside_what_was_found(run: Run, saved: Saved) -> None:
    ran = run("inspect", saved(ill()), "--input", "2x7x8x8", *JUNIT)
    assert ran.code == 4
    suite = well_formed(ran.out)
    told = outcomes(suite)
    assert told["BN002 negative-variance: 1"] == "failure"
    assert told["inspect run"] == "error"
    assert "BN013 redundant-bias" not in told
    assert "BN005 momentum-convention: 3" in told
    (error,) = suite.iter("error")
    assert "give inputs that the model runs on" in error.attrib["message"]


def test_a_file_that_is_none_is_an_error(run: Run) -> None:
    ran = run("inspect", "gone\x1b.pt", *JUNIT)
    assert ran.code == 2
    suite = well_formed(ran.out)
    assert outcomes(suite) == {"inspect run": "error"}
    (error,) = suite.iter("error")
    assert error.get("message") == "gone\\x1b.pt: there is no such file; check the path"
    assert len(ran.err.splitlines()) == 2


@pytest.mark.parametrize(("chosen", "code", "outcome"), [("BN013", 1, "failure"), ("BN002", 0, "system-out")])
def test_a_note_that_nobody_wants_is_a_failure(
    run: Run, saved: Saved, chosen: str, code: int, outcome: str
) -> None:
    """Else the report would be green and the exit code 1."""
    ran = run("inspect", saved(), *ON, *JUNIT, "--fail-on", chosen)
    assert ran.code == code
    assert outcomes(well_formed(ran.out))["BN013 redundant-bias: 4"] == outcome


def test_names_from_a_file(run: Run, saved: Saved) -> None:
    model = nets.odd_names()
    for norm in model.children():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_var[0] = -1
    told = outcomes(well_formed(run("inspect", saved(model), *ON, *JUNIT).out))
    assert told["BN002 negative-variance: a|b%`"] == "failure"
    assert told["BN002 negative-variance: [bold]%0A\\x1b[2J\\nz|"] == "failure"


@pytest.mark.parametrize(
    "verb", ["fold", "recalibrate", "freeze", "unfreeze", "swap", "export", "verify", "replay"]
)
def test_other_verbs_have_no_findings(run: Run, saved: Saved, folder: Path, verb: str) -> None:
    saved()
    before = digests(folder)
    arguments = {"recalibrate": ["--data", "x"], "verify": ["model.pt"], "replay": ["model.pt"]}.get(verb, [])
    for more, code in ((JUNIT, 2), (("--format", "json"), None)):
        ran = run(verb, "model.pt", *arguments, *more, *(["--help"] if code is None else []))
        told = " ".join(ran.err.replace("│", " ").split())
        assert ran.code == (code or 0)
        assert ("only inspect writes it" in told) == (code == 2)
    assert digests(folder) == before


def test_the_format_of_inspect_as_a_default(
    run: Run, saved: Saved, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved()
    (folder / "pyproject.toml").write_text('[tool.bntools.inspect]\nformat = "junit"', "utf-8")
    assert run("inspect", "model.pt", *ON).out.startswith("<?xml")
    assert run("inspect", "model.pt", *ON, "--json").out.startswith("{")
    assert run("fold", "model.pt", *ON, "--dry-run").code == 0
    monkeypatch.setenv("BNTOOLS_FORMAT", "junit")
    assert run("fold", "model.pt", *ON, "--dry-run").code == 2


# Baseline


def write(run: Run, *arguments: str) -> None:
    ran = run("inspect", "model.pt", *ON, "--write-baseline", KNOWN, *arguments)
    assert ran.code == 0, ran.err


def test_what_is_known_is_not_told_again(run: Run, saved: Saved, folder: Path) -> None:
    saved(ill())
    fail = (*ON, "--fail-on", "note")
    assert run("inspect", "model.pt", *fail).code == 1
    first = run("inspect", "model.pt", *fail, "--write-baseline", KNOWN)
    assert (first.code, first.err) == (0, "")  # known from now on
    assert "BN002 negative-variance: 1 layer" in first.out
    assert f"written     {KNOWN}: 6 findings, known from now on" in first.out.splitlines()
    again = run("inspect", "model.pt", *fail, "--baseline", KNOWN)
    assert (again.code, again.err) == (0, "")
    lines = again.out.splitlines()
    assert lines[-2:] == ["findings    none", f"known       6 findings, in {KNOWN} and not shown"]
    assert "BN002" not in again.out


def test_what_is_new_is_a_failure(run: Run, saved: Saved) -> None:
    model = ill()
    saved(model)
    write(run)
    model[3].running_var[0] = -7.0
    model[1].running_var[0] = -9.0  # other numbers of what is known
    ran = run("inspect", saved(model), *ON, "--baseline", KNOWN, "--fail-on", "error")
    assert ran.code == 1
    assert "BN002 negative-variance (1 layer)" in ran.err
    assert "3: σ² is below 0 in 1 of 4 channels, the least is -7" in ran.out
    assert "the least is -9" not in ran.out
    assert "6 findings, in known.json and not shown" in ran.out


def test_entries_that_no_longer_occur(run: Run, saved: Saved) -> None:
    saved(ill())
    write(run)
    saved(clean())
    out = run("inspect", "model.pt", *ON, "--baseline", KNOWN).out
    assert out.splitlines()[-2:] == [
        f"known       0 findings, in {KNOWN} and not shown",
        f"gone        6 entries of {KNOWN} no longer occur: BN002 in 1, BN005 in 3, BN005 in 5 and 3 more",
    ]
    every = run("inspect", "model.pt", *ON, "--baseline", KNOWN, "--all").out
    assert every.splitlines()[-1].endswith("BN005 in 5, BN013 in 1, BN013 in 5, BN023 in 1")
    about = json.loads(run("inspect", "model.pt", *ON, "--baseline", KNOWN, "--json").out)["baseline"]
    assert (about["path"], about["known"], about["written"]) == (KNOWN, 0, False)
    assert about["gone"][0] == {"rule": "BN002", "layer": "1"}
    assert len(about["gone"]) == 6


def test_weights_alone_do_not_tell_what_is_gone(run: Run, saved: Saved) -> None:
    model = ill()
    saved(model)
    write(run)
    out = run("inspect", saved(model.state_dict()), "--baseline", KNOWN).out
    assert out.splitlines()[-1] == f"known       1 finding, in {KNOWN} and not shown"


@pytest.mark.parametrize("form", ["github", "markdown", "json", "junit"])
def test_in_other_formats(run: Run, saved: Saved, form: str) -> None:
    saved(ill())
    write(run)
    saved(nets.partly())  # one of its two biases is known
    out = run("inspect", "model.pt", *ON, "--baseline", KNOWN, "--format", form).out
    if form == "junit":
        assert set(outcomes(well_formed(out)).values()) == {""}
    elif form == "json":
        assert (json.loads(out)["findings"], json.loads(out)["rules"]) == ([], {})
        assert json.loads(out)["baseline"]["known"] == 1
    else:
        assert f"1 finding, in {KNOWN} and not shown" in out
        assert "5 entries of known.json no longer occur" in out
        assert "redundant-bias" not in out


def test_without_one_nothing_is_said_of_it(run: Run, saved: Saved) -> None:
    saved(ill())
    for form in ("text", "github", "markdown"):
        out = run("inspect", "model.pt", *ON, "--format", form).out
        assert "known" not in out.replace("unknown", "")
    assert json.loads(run("inspect", "model.pt", *ON, "--json").out)["baseline"] is None


@pytest.mark.parametrize("content", ["{", "[]", '{"kind": "bntools baseline", "schema": 9}'])
def test_a_damaged_one(run: Run, saved: Saved, folder: Path, content: str) -> None:
    saved(ill())
    (folder / KNOWN).write_text(content, "utf-8")
    before = digests(folder)
    for flag in ("--baseline", "--write-baseline"):
        ran = run("inspect", "model.pt", *ON, flag, KNOWN)
        assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 2)
        assert KNOWN in ran.err
    assert "--force" in ran.err
    assert digests(folder) == before
    write(run, "--force")
    assert len(json.loads((folder / KNOWN).read_text("utf-8"))["findings"]) == 6


def test_one_that_is_not_there(run: Run, saved: Saved) -> None:
    ran = run("inspect", saved(), *ON, "--baseline", "gone.json")
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 2)
    assert "gone.json: cannot be read" in ran.err


def test_no_other_file_is_replaced(run: Run, saved: Saved, folder: Path) -> None:
    saved(ill())
    before = digests(folder)
    ran = run("inspect", "model.pt", *ON, "--write-baseline", "model.pt")
    assert ran.code == 2
    assert "is no baseline" in ran.err
    assert digests(folder) == before
    write(run)
    write(run)  # a baseline is
    assert digests(folder).keys() == {"model.pt", KNOWN}


def test_of_a_model_that_does_not_run_none_is_written(run: Run, saved: Saved, folder: Path) -> None:
    """It would not have what only a run shows, and hide none of it."""
    saved(ill())
    ran = run("inspect", "model.pt", "--input", "2x7x8x8", "--write-baseline", KNOWN)
    assert ran.code == 4
    assert not (folder / KNOWN).exists()
    assert "written" not in ran.out


def test_both_at_once(run: Run, saved: Saved, folder: Path) -> None:
    saved(ill())
    write(run)
    before = digests(folder)
    ran = run("inspect", "model.pt", *ON, "--baseline", KNOWN, "--write-baseline", KNOWN)
    assert ran.code == 2
    assert "exclude each other" in ran.err
    assert digests(folder) == before


@pytest.mark.parametrize("table", ["tool.bntools", "tool.bntools.inspect"])
def test_a_default(run: Run, saved: Saved, folder: Path, table: str) -> None:
    """It may name a baseline that is still to be written, and may not have one written."""
    saved(ill())
    (folder / "pyproject.toml").write_text(f'[{table}]\nbaseline = "{KNOWN}"', "utf-8")
    assert run("inspect", "model.pt", *ON).code == 2
    write(run)
    assert "6 findings, in known.json" in run("inspect", "model.pt", *ON).out
    assert run("fold", "model.pt", *ON, "--dry-run").code == 0
    (folder / "pyproject.toml").write_text(f'[{table}]\nwrite-baseline = "{KNOWN}"', "utf-8")
    (folder / KNOWN).unlink()
    ran = run("inspect", "model.pt", *ON)
    assert ran.code == 2
    assert "give --write-baseline on the command line" in ran.err
    assert not (folder / KNOWN).exists()


def test_a_variable(run: Run, saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(ill())
    write(run)
    monkeypatch.setenv("BNTOOLS_BASELINE", KNOWN)
    assert run("inspect", "model.pt", *ON, "--fail-on", "note").code == 0

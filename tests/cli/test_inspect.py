"""What `inspect` lists, and from which kinds of file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import bntools as bn
from bntools.findings import RULES
from tests.cli import nets
from tests.cli.conftest import Run, digests

Saved = Callable[..., Path]
ON = ("--input", nets.SHAPE)


def rows(text: str) -> list[list[str]]:
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("site "))
    return [line.split() for line in lines[start + 1 :] if line.split()[1].startswith("BatchNorm")]


def test_a_module(run: Run, saved: Saved, folder: Path) -> None:
    saved(nets.partly())
    before = digests(folder)
    ran = run("inspect", "model.pt", *ON)
    assert ran.code == 0
    first, second, *_ = rows(ran.out)
    assert first == ["1", "BatchNorm2d", "4", "1e-05", "0.1", "77", "0", "(conv2d)"]
    assert second[:7] == ["3", "BatchNorm2d", "4", "1e-05", "0.1", "77", "blocked:"]
    assert "1 of 2 BatchNorms: 1 into conv2d" in ran.out
    assert digests(folder) == before


@pytest.mark.parametrize("kind", ["state dict", "checkpoint", "wrapped", "safetensors"])
def test_bare_weights_need_no_architecture(run: Run, saved: Saved, folder: Path, kind: str) -> None:
    """Names and channels are there; eps, momentum and a verdict are not, and are not made up."""
    weights = nets.net().state_dict()
    path = folder / "model.pt"
    if kind == "safetensors":
        path = folder / "model.safetensors"
        save_file(weights, path)
    elif kind == "checkpoint":
        saved({"model": weights, "epoch": 1})
    elif kind == "wrapped":
        saved({f"module.{key}": value for key, value in weights.items()})
    else:
        saved(weights)
    ran = run("inspect", path)
    assert ran.code == 0, ran.err
    assert rows(ran.out) == [
        ["1", "BatchNorm", "4", "-", "-", "77"],
        ["4", "BatchNorm", "5", "-", "-", "77"],
    ]
    assert "folds" not in ran.out
    whole = run("inspect", path, "--arch", nets.SPEC, *ON)
    assert "2 of 2 BatchNorms" in whole.out


def test_a_folded_file_has_none_left(run: Run, saved: Saved) -> None:
    assert run("fold", saved(), *ON).code == 0
    ran = run("inspect", "model.folded.pt", *ON)
    assert ran.code == 0
    assert "no BatchNorm" in ran.out


@pytest.mark.parametrize("weights", [False, True])
def test_without_a_batchnorm(run: Run, saved: Saved, weights: bool) -> None:
    model = nets.plain()
    ran = run("inspect", saved(model.state_dict() if weights else model), *ON)
    assert ran.code == 0
    assert "no BatchNorm" in ran.out


def test_a_model_that_does_not_run_is_listed_all_the_same(run: Run, saved: Saved) -> None:
    ran = run("inspect", saved(), "--input", "2x7x8x8")
    assert ran.code == 4
    assert [row[0] for row in rows(ran.out)] == ["1", "4"]
    assert "give inputs that the model runs on" in ran.err


def test_safetensors_are_listed_in_the_order_of_the_layers(run: Run, folder: Path) -> None:
    """The library hands its tensors out in another order each time; and 10 comes after 9."""
    names = [f"layers.{i}.bn" for i in range(12)]
    statistics = ("running_mean", "running_var")
    save_file(
        {f"{n}.{s}": torch.full((3,), 0.5) for n in names for s in statistics}, folder / "w.safetensors"
    )
    assert [row[0] for row in rows(run("inspect", "w.safetensors").out)] == names


@pytest.mark.parametrize("count", [float("nan"), float("inf"), 2.5])
def test_a_count_that_is_no_whole_number_is_left_out(run: Run, saved: Saved, count: float) -> None:
    state = nets.net().state_dict()
    state["1.num_batches_tracked"] = torch.tensor(count)
    ran = run("inspect", saved(state), "--json")
    assert ran.code == 0
    assert [site["batches"] for site in json.loads(ran.out)["sites"]] == [None, 77]


# Findings


def ill() -> nn.Module:
    """An error in one layer, a warning in another, a note in front of each: both convolutions have a bias."""
    model = nn.Sequential(*nets.partly(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    nets._made(model)
    model[1].running_var[0] = -1.0
    model[3].momentum = model[5].momentum = 0.9
    return model


def paragraphs(text: str) -> list[str]:
    """The heads of the findings: severity, rule, how many layers."""
    return [line for line in text.splitlines() if line.split()[:1] in (["error"], ["warning"], ["note"])]


def test_findings_stand_behind_the_table_the_worst_first(run: Run, saved: Saved) -> None:
    ran = run("inspect", saved(ill()), *ON)
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines.index("findings    1 error, 1 warning, 2 notes") > lines.index(
        next(line for line in lines if line.startswith("5  "))
    )
    assert paragraphs(ran.out) == [
        "error       BN002 negative-variance: 1 layer",
        "warning     BN005 momentum-convention: 2 layers",
        "note        BN013 redundant-bias: 2 layers",
        "note        BN023 mixed-momentum: 1 layer",
    ]
    assert "            1: σ² is below 0 in 1 of 4 channels, the least is -1" in lines
    assert "            3, 5: momentum 0.9; in the other convention that is 0.1" in lines


@pytest.mark.parametrize("columns", [80, 200])
def test_findings_fit_the_screen(
    run: Run, saved: Saved, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    out = run("inspect", saved(ill()), *ON, "--batch-size", "4").out
    lines = out.partition("findings ")[2].splitlines()[1:]
    assert max(map(len, lines)) <= min(columns, 120)
    assert max(map(len, lines)) > min(columns, 120) - 25
    assert all(line.startswith(" " * 12) for line in lines if line not in paragraphs(out))


def test_no_findings(run: Run, saved: Saved) -> None:
    model = nets.net()
    model[3].bias = None
    assert run("inspect", saved(model), *ON).out.splitlines()[-1] == "findings    none"
    assert "finding" not in run("inspect", "model.pt", *ON, "--format", "markdown").out


@pytest.mark.parametrize(
    ("chosen", "code"),
    [
        ("error", 1),
        ("warning", 1),
        ("note", 1),
        ("BN002", 1),
        ("BN013", 1),
        ("BN001,BN005", 1),
        (" BN001 , error", 1),
        ("BN001", 0),
        ("", 0),
    ],
)
def test_fail_on(run: Run, saved: Saved, chosen: str, code: int) -> None:
    ran = run("inspect", saved(ill()), *ON, "--fail-on", chosen)
    assert ran.code == code
    assert ("BN002 negative-variance (1 layer)" in ran.err) == (code == 1 and chosen[:3] not in ("BN0",)) or (
        chosen == "BN002"
    )


@pytest.mark.parametrize(("chosen", "code"), [("error", 0), ("warning", 1), ("BN005", 1), ("BN002", 0)])
def test_a_severity_has_the_worse_ones_and_not_the_others(
    run: Run, saved: Saved, chosen: str, code: int
) -> None:
    model = nets.net()
    model[1].momentum = 0.9
    assert run("inspect", saved(model), *ON, "--fail-on", chosen).code == code


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--fail-on", "fatal"], "neither a severity nor a rule"),
        (["--fail-on", "BN999"], "no such rule"),
        (["--set", "BN005"], "write it as"),
        (["--set", "BN005=x"], "write it as"),
        (["--set", "BN001=1"], "has no threshold"),
        (["--set", "BN005=inf"], "finite"),
        (["--batch-size", "0"], "--batch-size"),
    ],
)
def test_what_is_no_choice(run: Run, saved: Saved, arguments: list[str], told: str) -> None:
    ran = run("inspect", saved(), *ON, *arguments)
    assert ran.code == 2
    assert told in ran.err


def test_thresholds(run: Run, saved: Saved, folder: Path) -> None:
    model = nets.net()
    model[1].momentum = model[4].momentum = 0.3
    saved(model)
    fail = ("--fail-on", "BN005")
    assert run("inspect", "model.pt", *ON, *fail).code == 0
    assert run("inspect", "model.pt", *ON, *fail, "--set", "BN005=0.2", "--set", "BN008=5").code == 1
    (folder / "pyproject.toml").write_text(
        '[tool.bntools.inspect]\nset = ["BN005=0.2"]\nfail-on = "warning"', "utf-8"
    )
    assert run("inspect", "model.pt", *ON).code == 1
    assert run("inspect", "model.pt", *ON, "--fail-on", "error").code == 0


@pytest.mark.parametrize("weights", [False, True])
def test_batch_size(run: Run, saved: Saved, weights: bool) -> None:
    model = nets.net()
    saved(model.state_dict() if weights else model)
    assert "BN026" not in run("inspect", "model.pt", *ON).out
    assert "BN026" not in run("inspect", "model.pt", *ON, "--batch-size", "16").out
    told = " ".join(run("inspect", "model.pt", *ON, "--batch-size", "9").out.split())
    assert "BN026 small-batch: the model" in told
    assert "24.8% with BatchNorm and 24.0% with GroupNorm at 8" in told


def test_findings_as_json(run: Run, saved: Saved) -> None:
    model = ill()
    ran = run("inspect", saved(model), *ON, "--json", "--fail-on", "error")
    assert ran.code == 1
    about = json.loads(ran.out)
    assert [(f["rule"], f["layer"]) for f in about["findings"]] == [
        ("BN002", "1"),
        ("BN005", "3"),
        ("BN005", "5"),
        ("BN013", "1"),
        ("BN013", "5"),
        ("BN023", "1"),
    ]
    first = about["findings"][0]
    assert first["numbers"] == [{"name": "channels", "value": 1.0}, {"name": "least", "value": -1.0}]
    assert set(about["rules"]) == {"BN002", "BN005", "BN013", "BN023"}
    assert about["rules"]["BN002"]["remedy"] == RULES["BN002"].remedy
    assert about["error"]["exit_code"] == 1


def test_findings_as_annotations(run: Run, saved: Saved) -> None:
    lines = run("inspect", saved(ill()), *ON, "--format", "github").out.splitlines()
    assert [line.partition(": ")[0] for line in lines[:4]] == [
        "::error title=bntools inspect BN002 negative-variance::1",
        "::warning title=bntools inspect BN005 momentum-convention::3, 5",
        "::notice title=bntools inspect BN013 redundant-bias::1",
        "::notice title=bntools inspect BN023 mixed-momentum::1",
    ]
    assert lines[4].startswith("::notice title=bntools inspect::")


def test_findings_as_markdown(run: Run, saved: Saved) -> None:
    out = run("inspect", saved(ill()), *ON, "--format", "markdown").out
    rows = out.partition("| severity | finding |")[2].splitlines()[2:]
    assert [row.split(":")[0] for row in rows] == [
        "| error | BN002 negative-variance",
        "| warning | BN005 momentum-convention",
        "| note | BN013 redundant-bias",
        "| note | BN023 mixed-momentum",
    ]
    assert "| `3`, `5`: momentum 0.9; in the other convention that is 0.1 |" in rows[1]


def test_many_layers_are_summed_up(run: Run, saved: Saved) -> None:
    model = nn.Sequential(*(nn.BatchNorm2d(3) for _ in range(9))).eval()
    model[4].weight.data[0] = 2
    lines = run("inspect", saved(model), *ON).out.splitlines()
    assert "error       BN003 never-trained: 9 layers" in lines
    assert any(line.strip().startswith("0, 1, 2 and 5 more: μ = 0") for line in lines)
    every = run("inspect", "model.pt", *ON, "--all").out
    assert "0, 1, 2, 3, 5, 6, 7, 8: μ = 0" in every
    assert len(json.loads(run("inspect", "model.pt", *ON, "--json").out)["findings"]) == 9


def test_many_details_are_summed_up(run: Run, saved: Saved) -> None:
    model = nn.Sequential(*(nn.BatchNorm2d(3) for _ in range(6)))
    nets._made(model)
    for at, norm in enumerate(model):
        norm.running_var[0] = -1 - at
    out = run("inspect", saved(model), *ON).out
    assert "the least is -3" in out
    assert "the least is -4" not in out
    assert "            and 3 more layers" in out.splitlines()
    every = run("inspect", "model.pt", *ON, "--all").out
    assert "the least is -6" in every
    assert "more layers" not in every


def test_a_model_that_does_not_run_is_no_lesser_failure(run: Run, saved: Saved) -> None:
    ran = run("inspect", saved(ill()), "--input", "2x7x8x8", "--fail-on", "error")
    assert ran.code == 4
    assert "BN002 negative-variance" in ran.out


@pytest.mark.parametrize("form", ["text", "github", "markdown"])
def test_a_name_does_nothing_to_a_screen(run: Run, saved: Saved, form: str) -> None:
    model = nets.odd_names()
    for norm in model.children():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_var[0] = -1
    out = run("inspect", saved(model), *ON, "--format", form).out
    assert "\x1b" not in out
    told = out.partition("findings ")[2] if form == "text" else out
    assert "[bold]%" in told
    assert "%0A" not in out.replace("%250A", "") or form != "github"
    assert "z|" not in out or form != "markdown"


# SwitchableNorm


def switched() -> nn.Module:
    """Half instance in the mean, all batch in the variance."""
    model = bn.swap(nets.net(), "switchable").model
    with torch.no_grad():
        model[1].mean_weight.copy_(torch.tensor([0.5, 0.125, 0.375]).log())
        model[1].var_weight.copy_(torch.tensor([0.0, 0.0, 100.0]))
    return model


@pytest.mark.parametrize("weights", [False, True])
def test_what_a_switchablenorm_has_learned(run: Run, saved: Saved, weights: bool) -> None:
    model = switched()
    saved(model.state_dict() if weights else model)
    arguments = () if weights else ("--trust", "bntools.norms")
    lines = run("inspect", "model.pt", *ON, *arguments).out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("SwitchableNorm "))
    told = " ".join(lines[head].split()[1:])
    assert told == "mean instance mean layer mean batch var instance var layer var batch"
    assert lines[head + 1].split() == ["1", "50.0%", "12.5%", "37.5%", "0.0%", "0.0%", "100.0%"]
    assert lines[head + 2].split()[0] == "4"
    markdown = run("inspect", "model.pt", *ON, *arguments, "--format", "markdown").out
    assert "| `1` | 50.0% | 12.5% | 37.5% | 0.0% | 0.0% | 100.0% |" in markdown
    (first, second) = json.loads(run("inspect", "model.pt", *ON, *arguments, "--json").out)["mixtures"]
    assert (first["layer"], second["layer"]) == ("1", "4")
    assert first["mean"] == pytest.approx({"instance": 0.5, "layer": 0.125, "batch": 0.375})


def test_without_a_switchablenorm_there_is_no_table(run: Run, saved: Saved) -> None:
    assert "SwitchableNorm" not in run("inspect", saved(), *ON).out
    assert json.loads(run("inspect", "model.pt", *ON, "--json").out)["mixtures"] == []

"""Each rule speaks of its trouble and not of the twin; thresholds, order and records."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bntools as bn
from bntools.core.records import record
from bntools.errors import UsageError
from bntools.findings import RULES, Finding, Needs, Severity, together
from bntools.findings.examine import OF_LAYERS
from bntools.findings.settings import BATCH_NORM, BATCHES, GROUP_NORM
from bntools.findings.within import OF_MODELS
from bntools.norms import SwitchableNorm2d
from tests.findings import cases_of_data  # noqa: F401  (it adds to them)
from tests.findings.cases import CASES, Case, inputs, layer, net
from tests.season import season

LOUD = ("error", "warning")
named = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.rule}-{case.make.__name__}")


def looked(case: Case, bad: bool) -> tuple[Finding, ...]:
    model, example, *how = case.make(bad)
    return bn.inspect(model, example, **case.how, **(how[0] if how else {})).findings


@named
def test_the_trouble_is_found(case: Case) -> None:
    findings = looked(case, True)
    ours = [finding for finding in findings if finding.rule == case.rule]
    assert tuple(finding.layer for finding in ours) == case.layers
    assert {finding.severity for finding in ours} == {RULES[case.rule].severity}
    numbers = {measure.name: measure.value for measure in ours[0].numbers}
    for name, value in case.numbers.items():
        assert numbers[name] == pytest.approx(value, rel=1e-4), name
    assert {finding.rule for finding in findings if finding.severity in LOUD} <= {case.rule}


@named
def test_the_twin_has_none_of_it(case: Case) -> None:
    findings = looked(case, False)
    assert [finding for finding in findings if finding.rule == case.rule] == []
    assert [finding.rule for finding in findings if finding.severity in LOUD] == []


def test_every_rule_has_a_case_and_a_check_and_a_section() -> None:
    assert {case.rule for case in CASES} == set(RULES) == {*OF_LAYERS, *OF_MODELS}
    assert not OF_LAYERS.keys() & OF_MODELS.keys()
    page = (Path(__file__).parents[2] / "docs" / "findings.md").read_text("utf-8")
    heads = re.findall(r"^### (BN\d{3}) ([a-z0-9-]+) \((\w+)\)", page, re.MULTILINE)
    assert sorted(heads) == [(rule.id, rule.name, rule.severity.value) for rule in RULES.values()]
    for rule in RULES.values():
        section = page.partition(f"### {rule.id} ")[2].partition("\n### ")[0]
        told = re.findall(r"\*\*([\de.-]+)\*\*", section)
        assert told == ([] if rule.threshold is None else [f"{rule.threshold:g}"]), rule.id
        assert f"\n*{rule.needs.value}.* " in section, rule.id
    assert len({rule.name for rule in RULES.values()}) == len(RULES)


def test_the_page_has_the_published_numbers() -> None:
    page = (Path(__file__).parents[2] / "docs" / "findings.md").read_text("utf-8")
    table = {
        row.split("|")[1].strip(): [float(n) for n in re.findall(r"\d+(?:\.\d)?", row)]
        for row in page.partition("### BN026")[2].splitlines()
        if row.startswith(("| batch", "| BatchNorm", "| GroupNorm"))
    }
    assert table["batch for each device"] == [32, 16, 8, 4, 2] == [*reversed(BATCHES)]
    assert table["BatchNorm"] == [23.6, 23.7, 24.8, 27.3, 34.7] == [*reversed(BATCH_NORM)]
    assert table["GroupNorm"] == [24.1, 24.2, 24.0, 24.2, 24.1] == [*reversed(GROUP_NORM)]


def test_a_clean_model_has_no_findings() -> None:
    assert bn.inspect(net(), inputs()).findings == ()


def test_the_worst_come_first_and_each_rule_together() -> None:
    model = net()
    layer(model).momentum = layer(model, "4").momentum = 0.9
    layer(model, "4").running_var[0] = -1
    findings = bn.inspect(model, inputs()).findings
    assert [(finding.rule, finding.layer) for finding in findings] == [
        ("BN002", "4"),
        ("BN005", "1"),
        ("BN005", "4"),
    ]
    error = Finding("BN025", Severity.ERROR, "4", "")
    shuffled = [findings[1], error, findings[0], findings[2]]
    told = [[f.rule for f in group] for group in together(shuffled)]
    assert told == [["BN002"], ["BN025"], ["BN005", "BN005"]]


def test_a_threshold_can_be_set() -> None:
    model = net()
    layer(model).momentum = 0.3
    assert bn.inspect(model, inputs(), thresholds={"BN005": 0.3}).findings[0].rule == "BN023"
    (first, *_) = bn.inspect(model, inputs(), thresholds={"BN005": 0.29}).findings
    assert (first.rule, first.threshold) == ("BN005", 0.29)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"BN999": 1.0}, "no such rule"),
        ({"bn005": 0.1}, "did you mean BN005"),
        ({"BN001": 1.0}, "has no threshold"),
        ({"BN005": float("nan")}, "no threshold"),
        ({"BN005": "0.1"}, "no threshold"),
        ({"BN005": True}, "no threshold"),
    ],
)
def test_a_threshold_that_is_none(given: dict[str, float], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        bn.inspect(net(), inputs(), thresholds=given)


def test_a_batch_of_none() -> None:
    with pytest.raises(UsageError, match="no number of samples"):
        bn.inspect(net(), inputs(), batch_size=0)


def test_findings_come_back_from_json() -> None:
    model = net()
    layer(model).running_var[0] = float("-inf")
    findings = bn.inspect(model, inputs()).findings
    assert {finding.rule for finding in findings} == {"BN001", "BN002"}
    for finding in findings:
        text = json.dumps(dataclasses.asdict(finding), allow_nan=False)
        assert record(Finding, json.loads(text), "finding") == finding


def test_a_model_that_does_not_run_is_looked_at_all_the_same() -> None:
    model = net()
    layer(model).running_var[0] = -1
    layer(model, "4").momentum = None
    census = bn.inspect(model, torch.randn(2, 7, 8, 8))
    assert {refusal.reason.value for refusal in census.plan.refusals} == {"not-captured"}
    assert [finding.rule for finding in census.findings] == ["BN002", "BN006"]


def test_nothing_is_changed() -> None:
    model = net()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    grads = [parameter.requires_grad for parameter in model.parameters()]
    bn.inspect(model.train(), inputs(), batch_size=2)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == grads
    assert model.training


def test_what_is_no_number_is_a_finding_and_no_warning() -> None:
    """0·∞ in the shift of a layer that stays: numpy would warn of it."""
    model = season(nn.Sequential(nn.Sigmoid(), nn.BatchNorm2d(3), nn.Sigmoid()).eval())
    with torch.no_grad():
        layer(model).weight[1] = 0
    layer(model).running_mean[1] = float("inf")
    assert [finding.rule for finding in bn.inspect(model, inputs()).findings] == ["BN001", "BN011"]


def test_a_folded_float16_overflow_is_one() -> None:
    """What BN009 speaks of happens: the fold in float16 is infinite, that of the twin is not."""
    for bad in (True, False):
        (case,) = [c for c in CASES if c.make.__name__ == "a_fold_beyond_float16"]
        model, example = case.make(bad)
        folded = bn.fold(model, example).model.half()
        assert all(bool(p.isfinite().all()) for p in folded.parameters()) != bad


def test_a_recalibrated_model_is_not_under_warmed() -> None:
    data = [torch.randn(8, 3, 8, 8) for _ in range(5)]
    model = bn.recalibrate(net(), data).model
    assert int(layer(model).num_batches_tracked) == 5
    assert [f.rule for f in bn.inspect(model, inputs()).findings if f.severity in LOUD] == []


def test_an_aliased_layer_is_named_once() -> None:
    model = nn.Sequential(net())
    model.again = layer(model, "0.1")
    layer(model, "0.1").running_var[0] = -1
    model.forward = model[0].forward
    found = [finding.layer for finding in bn.inspect(model, inputs()).findings if finding.rule == "BN002"]
    assert found == ["0.1"]


def test_severities_and_needs_are_closed_lists() -> None:
    assert [each.value for each in Severity] == ["error", "warning", "note"]
    assert [each.value for each in Needs] == ["tensors", "modules", "run", "data", "optimizer"]


@pytest.mark.parametrize(("momentum", "away", "rule"), [(0.0, False, "BN027"), (0.1, True, "BN016")])
def test_what_stands_still_is_not_half_frozen(momentum: float, away: bool, rule: str) -> None:
    """γ and β have no gradients, and for now training would leave the statistics alone: one rule says how."""
    model = net().train(away)
    one = layer(model).eval().requires_grad_(False)
    one.momentum = momentum
    findings = bn.inspect(model, inputs()).findings
    assert [finding.rule for finding in findings if finding.severity in LOUD] == [rule]


class Backwards(nn.Module):
    """Runs its second layer first, which has another name besides."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.last, self.first = norm(3), norm(3)
        self.alias = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


def test_layers_are_named_in_the_order_of_execution() -> None:
    findings = bn.inspect(Backwards(nn.BatchNorm2d).eval(), inputs()).findings
    assert [(finding.rule, finding.layer) for finding in findings] == [("BN003", "first"), ("BN003", "last")]


def test_a_switchablenorm_is_listed_once_by_its_first_name() -> None:
    mixtures = bn.inspect(Backwards(SwitchableNorm2d).eval(), inputs()).mixtures
    assert [mixture.layer for mixture in mixtures] == ["last", "first"]


@pytest.mark.parametrize(
    "module",
    [
        "bntools.findings",
        "bntools.findings.thresholds",
        "bntools.findings.census",
        "bntools.findings.baseline",
        "bntools.report.junit",
        "bntools.cli.findings",
        "bntools.cli.rules",
    ],
)
def test_the_list_of_rules_needs_no_torch(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in run.stdout.split()

"""What can be said of a state dict alone is said of it as of the model, and no more."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from bntools.findings import RULES, Needs
from bntools.norms import SwitchableNorm2d
from bntools.verbs.inspect import inspect_tensors
from tests.findings.cases import CASES, Case, layer, net


def quantised() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is going to be gone one day; files of it will be there
        return torch.quantize_per_tensor(torch.zeros(8), 0.1, 0, torch.qint8)


named = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.rule}-{case.make.__name__}")


def found(case: Case, bad: bool) -> list[str | None]:
    model, *_ = case.make(bad)
    findings = inspect_tensors(model.state_dict(), **case.how).findings
    assert {RULES[finding.rule].needs for finding in findings} <= {Needs.TENSORS}
    return [finding.layer for finding in findings if finding.rule == case.rule]


@named
def test_the_trouble(case: Case) -> None:
    alone = RULES[case.rule].needs is Needs.TENSORS
    assert found(case, True) == (list(case.layers) if alone else [])


@named
def test_the_twin(case: Case) -> None:
    """Whether a layer is frozen or in step with other processes, no tensor tells."""
    assert found(case, False) == ([None] if case.rule == "BN026" else [])


def test_the_root() -> None:
    tensors = nn.BatchNorm1d(3).state_dict()
    assert [(f.rule, f.layer) for f in inspect_tensors(tensors).findings] == [("BN003", "")]


@pytest.mark.parametrize(
    "odd",
    [
        torch.zeros(3).to_sparse(),
        torch.zeros(3, dtype=torch.complex64),
        torch.zeros(0),
        torch.zeros(5, 3, 3),
        torch.zeros(3, dtype=torch.int32),
        quantised(),
        torch.zeros(8, device="meta"),
        torch.zeros(8, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    ],
    ids=["sparse", "complex", "empty", "kernel", "short", "quantised", "meta", "float4"],
)
@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
def test_tensors_that_are_no_statistics(odd: Tensor, name: str) -> None:
    """A weight of other size is no γ; whatever a file holds, it is no reason to stop."""
    state = {key: value for key, value in net().state_dict().items() if key.startswith("1.")}
    assert inspect_tensors(state | {f"1.{name}": odd}).findings == ()


def test_a_mixture_stands_beside_statistics() -> None:
    norm = SwitchableNorm2d(4)
    (mixture,) = inspect_tensors({f"a.{key}": value for key, value in norm.state_dict().items()}).mixtures
    assert (mixture.layer, mixture.mean.layer) == ("a", pytest.approx(1 / 3))
    alone = {"a.mean_weight": torch.ones(3), "a.var_weight": torch.ones(3)}
    assert inspect_tensors(alone).mixtures == ()
    wider = norm.state_dict() | {"var_weight": torch.ones(4)}
    assert inspect_tensors(wider).mixtures == ()


def test_an_infinite_statistic_is_told_by_name() -> None:
    model = net()
    layer(model).running_var[0] = float("inf")
    (finding,) = inspect_tensors(model.state_dict()).findings
    assert finding.detail == "NaN or infinite: running_var in 1 of 8 channels"

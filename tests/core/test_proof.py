"""Inputs that a model was not made for: what rounding alone does there is no fault, and no excuse for one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import bntools as bn
from bntools.core import maps
from bntools.core.algebra import affine_of
from bntools.core.example import Example
from bntools.core.trials import trials
from tests.season import season

GAIN = 1e11


class Chaotic(nn.Module):
    """Amplifies what its BatchNorm returns a hundred billion times, on all inputs or on single ones only."""

    def __init__(self, *, always: bool) -> None:
        super().__init__()
        self.conv, self.bn, self.always = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), always

    def forward(self, v: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(v))
        return torch.sin(y * GAIN) if self.always or len(v) == 1 else y


def inputs() -> Tensor:
    return torch.randn(2, 3, 6, 6)


def test_a_redraw_that_amplifies_rounding_is_no_evidence() -> None:
    report = bn.fold(season(Chaotic(always=False).eval()), inputs()).report
    assert report.verdict is bn.Verdict.PASSED
    assert [text.split("x")[0] for text in report.inputs] == ["2", "3"]


def test_an_input_that_amplifies_rounding_is_inconclusive() -> None:
    report = bn.fold(season(Chaotic(always=True).eval()), inputs()).report
    assert report.verdict is bn.Verdict.INCONCLUSIVE
    assert "give inputs that the model was trained for" in report.why


@pytest.mark.parametrize("always", [True, False])
def test_a_fault_is_found_there_too(always: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "affine_of", lambda g, b, m, v, eps: affine_of(g * 1.01, b, m, v, eps))
    with pytest.raises(bn.PromiseError):
        bn.fold(season(Chaotic(always=always).eval()), inputs())


def test_redraws_keep_the_example_s_mean_variance_and_range() -> None:
    example = Example((torch.rand(4, 3, 64, 64) * 2 + 5, torch.arange(4)))
    given, normal, uniform = trials(example)
    assert given is example
    assert [t.shape[0] for trial in (normal, uniform) for t in trial.tensors] == [1, 1, 3, 3]
    for trial in (normal, uniform):
        values, index = trial.tensors
        assert 5 <= values.min() <= values.max() <= 7
        assert abs(values.mean() - 6) < 0.02
        assert abs(values.std() - 0.577) < 0.06
        assert set(index.tolist()) <= {0, 1, 2, 3}


def test_an_example_that_cannot_be_redrawn_is_tried_alone() -> None:
    for tensors in ((torch.ones(2, 3), torch.ones(5)), (torch.tensor(1.0),), (torch.ones(0, 3),)):
        assert len(list(trials(Example(tensors)))) == 1
    constant = list(trials(Example((torch.ones(1, 3),))))
    assert [len(t.args[0]) for t in constant] == [1, 2, 1]
    assert all((t.args[0] == 1).all() for t in constant)

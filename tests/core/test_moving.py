"""Outputs that are the same for every input prove nothing."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bntools as bn
from bntools.core.moving import STILL, Moving
from bntools.core.verify import Verdict

ONE, TWO = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0], [1.0, 2.0]])


@pytest.mark.parametrize(
    ("runs", "is_still"),
    [
        ([[TWO]], True),
        ([[ONE], [ONE]], True),
        ([[ONE]], False),  # who knows
        ([[0 * ONE]], True),
        ([[torch.tensor(3.0)], [torch.tensor(3.0)]], True),
        ([[torch.tensor(3.0)], [torch.tensor(4.0)]], False),
        ([[TWO], [ONE + 1]], False),
        ([[TWO, torch.tensor([1, 2])]], False),  # one of them moves
        ([[TWO, torch.ones(1, 3)]], False),  # of the second nothing is known
        ([[torch.ones(1, 3)], [torch.ones(1, 4)]], False),  # other sizes are others
        ([[torch.tensor([[float("nan")], [1.0]])]], False),
        ([[torch.zeros(0, 4)]], False),  # nothing was returned
        ([], False),
    ],
)
def test_rows_that_differ(runs: list[list[Tensor]], is_still: bool) -> None:
    moving = Moving()
    for outputs in runs:
        moving.look([torch.eye(2)], outputs)
    assert moving.is_still is is_still


def test_equal_outputs_of_equal_inputs_say_nothing() -> None:
    """Unless they are zero; an example of ones is drawn again as ones."""
    moving, zero = Moving(), Moving()
    moving.look([torch.ones(2, 3)], [TWO])
    zero.look([torch.ones(2, 3)], [0 * TWO])
    assert (moving.is_still, zero.is_still) == (False, True)
    assert bn.verify(network(1.0), network(1.0), torch.ones(2, 3, 8, 8)).verdict is Verdict.PASSED


def network(last: float) -> nn.Module:
    """With a head of zeros if *last* is 0, as many networks are before they are trained."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)).eval()
    with torch.no_grad():
        model[3].weight.mul_(last)
    return model


def test_two_networks_with_a_head_of_zeros_are_not_the_same_for_that() -> None:
    """What is in front of the head differs, and the outputs do not."""
    one, x = network(0.0), torch.randn(2, 3, 8, 8)
    other = network(0.0)
    nn.init.normal_(other[0].weight)
    report = bn.verify(one, other, x)
    assert (report.verdict, report.why) == (Verdict.INCONCLUSIVE, STILL)
    assert bn.verify(network(1.0), network(1.0), x).verdict is Verdict.PASSED
    other[3].bias.data.add_(1.0)
    assert bn.verify(one, other, x).verdict is Verdict.FAILED


def test_a_file_of_such_a_network_is_not_called_right(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    assert bn.export(network(0.0), x, tmp_path / "still.onnx").check.verdict is Verdict.INCONCLUSIVE
    assert bn.export(network(1.0), x, tmp_path / "moving.onnx").check.verdict is Verdict.PASSED

"""Three processes recalibrate as one would, and what ends one of them ends all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import bntools as bn
from tests.verbs.processes import SCENARIOS, SIZE, Ways, net, shares, ways

Outcomes = Callable[[str], list[Any]]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What each of the processes found in a scenario; None of one that has died."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "tests.verbs.processes"]
    started = [
        subprocess.Popen([*command, str(rank), str(folder)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for rank in range(SIZE)
    ]
    talk = [process.communicate(timeout=240)[1] for process in started]

    def found(name: str) -> list[Any]:
        files = [folder / f"{name} {rank}.pt" for rank in range(SIZE)]
        assert any(file.exists() for file in files), talk
        return [torch.load(file, weights_only=False) if file.exists() else None for file in files]

    return found


def apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of a statistic, as a share of σ or σ²."""
    worst = 0.0
    for key, value in expected.items():
        if "running" in key:
            var = expected[key.replace("running_mean", "running_var")]
            size = var.sqrt() if key.endswith("mean") else var
            worst = max(worst, float(((found[key] - value).abs() / size).max()))
    return worst


def test_uneven_parts_and_none_at_all_give_what_one_process_gives(outcomes: Outcomes) -> None:
    everything = torch.cat([batch for share in shares() for batch in share])
    alone = bn.recalibrate(net(), [everything])
    for found, report in outcomes("uneven"):
        assert apart(found, alone.model.state_dict()) <= 1e-12
        assert (report.samples, report.batches, report.groups, report.processes) == (31, 6, 1, 3)
        assert report.first == alone.report.first
    assert apart(net().state_dict(), alone.model.state_dict()) > 0.1


@pytest.mark.parametrize("name", ["uneven", "groups", "branches", "moving"])
def test_all_end_with_the_same_bits(outcomes: Outcomes, name: str) -> None:
    found = [each[0] if isinstance(each, tuple) else each for each in outcomes(name)]
    for other in found[1:]:
        assert all(torch.equal(value, other[key]) for key, value in found[0].items())


def test_groups_are_of_all_processes(outcomes: Outcomes) -> None:
    """With 12 samples in lock-step, each of the three has 4 of them."""
    groups = [torch.cat(batches) for batches in zip(*shares(uneven=False), strict=True)]
    alone = bn.recalibrate(net(), groups, virtual_batch=12, stop=False)
    for found, report in outcomes("groups"):
        assert apart(found, alone.model.state_dict()) <= 1e-12
        assert (report.groups, report.virtual_batch, report.samples) == (3, 12, 30)


def test_the_limit_is_of_all_processes(outcomes: Outcomes) -> None:
    assert outcomes("limited") == [7, 7, 7]


def test_forwards_that_part_across_processes_meet_again(outcomes: Outcomes) -> None:
    alone = bn.recalibrate(Ways().double(), [batch for share in ways() for batch in share]).model
    for found in outcomes("branches"):
        assert apart(found, alone.state_dict()) <= 1e-12
        assert torch.equal(found["unreached.running_var"], torch.ones(3))
    assert alone.a.running_mean.abs().max() > 1e-3


def test_a_moving_average_is_of_all_processes(outcomes: Outcomes) -> None:
    groups = [torch.cat(batches) for batches in zip(*shares(uneven=False), strict=True)]
    alone = bn.recalibrate(net(), groups, method="ema").model
    for found in outcomes("moving"):
        assert apart(found, alone.state_dict()) <= 1e-12


def test_of_distributed_data_parallel_the_statistics_of_the_first_count(outcomes: Outcomes) -> None:
    everything = torch.cat([batch for share in shares() for batch in share])
    alone = bn.recalibrate(net(), [everything], prior=5)
    for found, report in outcomes("wrapped"):
        assert apart(found, alone.model.state_dict()) <= 1e-12
        assert [layer.path for layer in report.layers] == ["1", "4"]
        assert report.layers[0].mean == pytest.approx(alone.report.layers[0].mean)


def test_one_can_work_alone(outcomes: Outcomes) -> None:
    own = bn.recalibrate(net(), shares()[1], virtual_batch="all").model.state_dict()
    assert apart(outcomes("alone")[1], own) <= 1e-12


@pytest.mark.parametrize(
    ("name", "where", "kind", "message"),
    [
        ("broken", 1, "UsageError", "batch 1: it holds NaN or infinity"),
        ("misshapen", 2, "CaptureError", "batch 2: the model does not run on it"),
        ("overflowing", 0, "UsageError", "batch 0: what reaches 1 holds NaN or infinity"),
        ("loader", 1, "UsageError", "data: giving batch 1 failed with OSError: the disk is gone"),
    ],
)
def test_an_error_in_one_ends_all(outcomes: Outcomes, name: str, where: int, kind: str, message: str) -> None:
    for rank, (found, said, untouched) in enumerate(outcomes(name)):
        assert found == kind
        assert said.startswith(message if rank == where else f"process {where}: {message}")
        assert untouched


@pytest.mark.parametrize(("name", "message"), [("empty", "data: expected batches"), ("option", "prior")])
def test_an_error_in_all_is_the_error_of_each(outcomes: Outcomes, name: str, message: str) -> None:
    for _, said, untouched in outcomes(name):
        assert said.startswith(message)
        assert untouched


@pytest.mark.parametrize(
    ("name", "message"),
    [("other model", "differ in the model"), ("other weights", "differ in its weights: process 0 has")],
)
def test_all_have_to_hold_the_same_model(outcomes: Outcomes, name: str, message: str) -> None:
    assert all(message in said for said in outcomes(name))


def test_who_is_alone_in_calling_it_does_not_wait_for_ever(outcomes: Outcomes) -> None:
    assert outcomes("nobody else")[0].startswith("not all of the 3 processes recalibrate")


def test_one_that_dies_is_noticed_at_once(outcomes: Outcomes) -> None:
    first, gone, third = outcomes("dying")
    assert gone is None
    for message, seconds in (first, third):
        assert "another has gone" in message
        assert seconds < 60


def test_each_scenario_is_looked_at(outcomes: Outcomes) -> None:
    looked_at = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{name}"' in looked_at for name in SCENARIOS)
    assert all(outcomes(name) for name in SCENARIOS)

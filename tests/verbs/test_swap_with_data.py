"""Swapping with data: each norm is the nearest to the old one, with those below it swapped already."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bntools as bn
from bntools.core import distill, rounds
from bntools.core.graft import graft_
from tests.must_fold import Apply, BatchNormReLU
from tests.season import season
from tests.verbs.test_swap import as_the_statistics_say

DATA = torch.randn(12, 3, 7, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
DATA = DATA * torch.linspace(0.3, 3, 12)[:, None, None, None] + torch.linspace(-2, 1, 12)[:, None, None, None]


def net(norm: Any = nn.BatchNorm2d) -> nn.Module:
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), nn.Conv2d(8, 16, 3), norm(16), nn.ReLU())
    return season(layers).double().eval()


def line(x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """γ and β by NumPy's own solver, channel by channel."""
    xs, ys = (v.detach().transpose(0, 1).flatten(1).numpy() for v in (x, y))
    found = [
        np.linalg.lstsq(np.stack([a, np.ones_like(a)], 1), b, rcond=None)[0]
        for a, b in zip(xs, ys, strict=True)
    ]
    return np.array([a for a, _ in found]), np.array([b for _, b in found])


def assert_is_line(norm: Any, x: Tensor, y: Tensor) -> None:
    gamma, beta = line(x, y)
    np.testing.assert_allclose(norm.weight.detach().numpy(), gamma, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(norm.bias.detach().numpy(), beta, rtol=1e-8, atol=1e-9)


def normed(x: Tensor, groups: int) -> Tensor:
    """Of each group of each sample by its own mean and variance, from their definitions."""
    parts = x.unflatten(1, (groups, -1)).flatten(2)
    made = (parts - parts.mean(2, keepdim=True)) / (parts.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
    return made.reshape(x.shape)


@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("size", [1, 5, 12])
def test_each_norm_is_the_nearest_with_those_below_it_swapped(groups: int, size: int) -> None:
    model = net()
    swapped = bn.swap(model, groups=groups, data=DATA.split(size)).model
    first, second = model[0](DATA), model[3](model[:3](DATA))
    assert_is_line(swapped[1], normed(first, groups), model[1](first))
    below = model[3](F.relu(swapped[1](first)))
    assert_is_line(swapped[4], normed(below, groups), model[4](second))
    # The twin: were the one below not swapped, it would be another line.
    assert (
        np.abs(line(normed(second, groups), model[4](second))[0] - swapped[4].weight.detach().numpy()).max()
        > 1e-3
    )


def test_it_is_nearer_than_the_closed_form_layer_by_layer() -> None:
    model = net()
    first = model[0](DATA)
    with_data, without = (bn.swap(model, groups=2, data=data, inputs=DATA) for data in (DATA.split(4), None))
    off = [(each.model[1](first) - model[1](first)).norm() for each in (with_data, without)]
    assert off[0] < 0.99 * off[1]
    assert with_data.report.samples == 12
    assert without.report.samples == 0
    assert with_data.plan.promise is bn.Promise.NEW


def test_groups_in_lockstep_are_pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is swapped below, the line of all pairs is the same however they are grouped."""
    model = season(nn.Sequential(nn.BatchNorm2d(3))).double().eval()
    gn = season(nn.Sequential(nn.GroupNorm(1, 3))).double().eval()
    seen = []
    for memory in (1, 1 << 40):
        monkeypatch.setattr(rounds, "free", lambda device, memory=memory: memory)
        seen.append(
            (
                bn.swap(model, groups=1, data=DATA.split(3)).model,
                bn.swap(gn, "batch", data=DATA.split(3)).model,
            )
        )
    for one, two in zip(*seen, strict=True):
        for key, value in one.state_dict().items():
            torch.testing.assert_close(value.double(), two.state_dict()[key].double(), rtol=1e-9, atol=1e-9)
    assert_is_line(seen[0][0][0], normed(DATA, 1), model(DATA))


@pytest.mark.parametrize("size", [1, 5, 12])
def test_a_groupnorm_becomes_a_batchnorm(size: int) -> None:
    model = net(lambda channels: nn.GroupNorm(4, channels))
    surgery = bn.swap(model, "batch", data=DATA.split(size))
    swapped = surgery.model
    assert [type(swapped[at]) for at in (1, 4)] == [nn.BatchNorm2d] * 2
    assert surgery.plan.promise is bn.Promise.NEW
    first = model[0](DATA)
    torch.testing.assert_close(swapped[1].running_mean, first.mean((0, 2, 3)))
    torch.testing.assert_close(swapped[1].running_var, first.var((0, 2, 3)))
    biased = first.var((0, 2, 3), correction=0).detach()
    x = (first - first.mean((0, 2, 3))[:, None, None]) / (biased + 1e-5).sqrt()[:, None, None]
    assert_is_line(swapped[1], x, model[1](first))
    assert swapped[1].num_batches_tracked == len(DATA.split(size))
    # The second one by what comes to it once the first is swapped, with the biased variance of the pass.
    ready = copy.deepcopy(swapped[1])
    ready.running_var.copy_(biased)
    below = model[3](F.relu(ready(first)))
    torch.testing.assert_close(swapped[4].running_mean, below.mean((0, 2, 3)))


def test_there_and_back_is_exact_where_samples_are_as_the_statistics_say() -> None:
    model = season(nn.Sequential(nn.BatchNorm2d(8))).double().eval()
    x = as_the_statistics_say(model[0])
    there = bn.swap(model, groups=2, inputs=x)
    back = bn.swap(there.model, "batch", data=x.split(2))
    torch.testing.assert_close(
        back.model(x), model(x), rtol=1e-4, atol=1e-4
    )  # the unbiased variance is stored
    # The twin: samples that differ from the statistics and from one another.
    other = bn.swap(there.model, "batch", data=(x * torch.linspace(0.5, 2, 5)[:, None, None, None]).split(2))
    assert (other.model(x) - model(x)).abs().max() > 0.1


def test_without_data_a_groupnorm_stays() -> None:
    model = nn.Sequential(net(), nn.GroupNorm(4, 16)).double()
    plan = bn.swap(model, "batch", inputs=DATA).plan
    assert {r.site.name: r.reason for r in plan.refusals}["1"] is bn.Reason.NO_DATA
    assert bn.swap(model, "group", inputs=DATA).plan.swaps  # and is nobody's business there
    assert "1" not in {site.name for site in bn.swap(model, "group", inputs=DATA).plan.sites}


def test_a_groupnorm_stays_where_torch_has_no_batchnorm() -> None:
    model = season(nn.Sequential(nn.GroupNorm(2, 8), nn.ReLU(), nn.GroupNorm(1, 8))).double().eval()
    data = torch.randn(4, 8, 2, 2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plan = bn.swap(model, "batch", data=data.split(2)).plan
    assert not plan.swaps
    assert [r.reason for r in plan.refusals] == [bn.Reason.UNRECOGNISED] * 2
    assert len(bn.swap(model, "batch", data=data[..., 0].split(2)).plan.swaps) == 2


def test_a_plan_with_a_norm_that_there_is_none_of_does_not_fit() -> None:
    """A plan from a file may say anything. The error names the module as everybody calls it."""
    model = season(nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8))).double().eval()
    surgery = bn.swap(model, "batch", data=DATA.split(4))
    (swap,), tensors = surgery.plan.swaps, surgery.model.state_dict()
    tensors = {key: tensors[key] for key in surgery.plan.keys}
    for wrong in ({"space": 7}, {"eps": -1.0}, {"groups": 0}):
        plan = dataclasses.replace(surgery.plan, swaps=(dataclasses.replace(swap, **wrong),))
        with pytest.raises(bn.PlanError, match=r"^plan: 1: \d groups"):
            graft_(copy.deepcopy(model), plan, tensors)
    graft_(twin := copy.deepcopy(model), surgery.plan, tensors)
    assert torch.equal(twin(DATA), surgery.model(DATA))


def test_a_groupnorm_that_no_batch_reaches_stays() -> None:
    model = Apply(
        lambda m, x: m.a(x) if x.sum() > 1e6 else m.b(x), a=nn.GroupNorm(1, 3), b=nn.GroupNorm(1, 3)
    )
    model = season(model).double().eval()
    surgery = bn.swap(model, "batch", data=DATA.split(4))
    assert [type(each) for each in (surgery.model.a, surgery.model.b)] == [nn.GroupNorm, nn.BatchNorm2d]
    assert [r.site.name for r in surgery.plan.refusals] == ["a"]
    # Nor one that the inputs reach and the data does not.
    surgery = bn.swap(model, "batch", data=DATA.split(4), inputs=DATA.abs() * 1e6)
    assert [(r.site.name, r.reason) for r in surgery.plan.refusals if r.site.name == "a"] == [
        ("a", bn.Reason.UNREACHED)
    ]


def test_a_norm_that_is_called_twice_is_fitted_to_both() -> None:
    model = season(
        Apply(lambda m, x: m.norm(m.conv(m.norm(x))), norm=nn.BatchNorm2d(3), conv=nn.Conv2d(3, 3, 1))
    )
    model = model.double().eval()
    swapped = bn.swap(model, groups=1, data=DATA.split(5)).model
    # In the pass the first call had the line of its own pairs; the second reads what that made.
    once = season(nn.Sequential(nn.BatchNorm2d(3))).double().eval()
    once[0].load_state_dict(model.norm.state_dict())
    first = bn.swap(once, groups=1, data=DATA.split(5)).model
    second = model.conv(first(DATA))
    x = torch.cat([normed(DATA, 1), normed(second, 1)])
    y = torch.cat([model.norm(DATA), model(DATA)])
    assert_is_line(swapped.norm, x, y)


def test_a_subclass_is_fitted_in_front_of_its_activation() -> None:
    model = season(nn.Sequential(BatchNormReLU(3))).double().eval()
    swapped = bn.swap(model, groups=1, data=DATA.split(5)).model
    plain = F.batch_norm(DATA, model[0].running_mean, model[0].running_var, model[0].weight, model[0].bias)
    assert_is_line(swapped[0].norm, normed(DATA, 1), plain)


def test_a_channel_of_one_value_keeps_its_slope() -> None:
    model = season(nn.Sequential(nn.BatchNorm1d(4))).double().eval()
    closed = bn.swap(model, groups=1, inputs=torch.randn(3, 4, dtype=torch.float64)).model
    x = torch.randn(1, 4, dtype=torch.float64)
    fitted = bn.swap(model, groups=1, data=[x]).model
    torch.testing.assert_close(fitted[0].weight, closed[0].weight)
    torch.testing.assert_close(fitted(x), model(x))


# Tuning


def test_tuning_comes_nearer_and_trains_what_is_trained() -> None:
    model = nn.Sequential(net(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).double().eval()
    model[3].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    plain, tuned = (bn.swap(model, groups=2, data=DATA.split(4), tune=steps) for steps in (0, 150))
    assert tuned.report.steps == 150
    assert plain.report.tuned is None
    first, last = tuned.report.tuned
    assert last < 0.9 * first
    want = model(DATA)
    off = [((each.model(DATA) - want).norm() / want.norm()).item() for each in (plain, tuned)]
    assert off == pytest.approx([first, last], rel=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    changed = {
        key
        for key, value in tuned.model.state_dict().items()
        if not torch.equal(value, plain.model.state_dict()[key])
    }
    assert changed == {key for key, _ in model.named_parameters()} - {"3.weight", "3.bias"}
    assert set(tuned.plan.tuned) == {f"0.{at}.{name}" for at in (0, 3) for name in ("weight", "bias")}
    assert [p.requires_grad for p in tuned.model.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]
    assert all(p.grad is None for p in tuned.model.parameters())


def test_tuning_that_leads_away_is_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    plain = bn.swap(model, groups=2, data=[DATA]).model
    monkeypatch.setattr(distill, "_RATE", 100.0)
    tuned = bn.swap(model, groups=2, data=[DATA], tune=1)
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in tuned.model.state_dict().items())
    assert tuned.plan.tuned == ()
    first, last = tuned.report.tuned
    assert first == last


# Data


def batches(data: Tensor, how: str) -> Any:
    parts = data.split(5)
    if how == "generator":
        return (part for part in parts)
    return {
        "pairs": [(part, torch.zeros(len(part))) for part in parts],
        "dicts": [{"input": part} for part in parts],
        "loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data), batch_size=5),
        "float32": [part.float().double() for part in parts],
    }[how]


@pytest.mark.parametrize("how", ["generator", "pairs", "dicts", "loader"])
@pytest.mark.parametrize("tune", [0, 4])
def test_batches_come_in_any_form(how: str, tune: int) -> None:
    model = net()
    want = bn.swap(model, groups=2, data=DATA.split(5), tune=tune).model
    found = bn.swap(model, groups=2, data=batches(DATA, how), tune=tune).model
    for key, value in want.state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], value)


def test_a_forward_of_ones_own() -> None:
    model = net()
    want = bn.swap(model, groups=2, data=DATA.split(5)).model
    data = [[{"deep": part}] for part in DATA.split(5)]
    found = bn.swap(model, groups=2, data=data, forward=lambda m, batch: m(batch[0]["deep"])).model
    assert torch.equal(found[4].weight, want[4].weight)


def test_a_model_that_writes_into_its_input() -> None:
    model = (
        season(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))).double().eval()
    )
    kept = DATA.clone()
    swapped = bn.swap(model, groups=2, data=DATA.split(5), tune=2, inputs=DATA).model
    assert torch.equal(DATA, kept)
    assert swapped[2].weight.isfinite().all()


def failing() -> Iterator[Tensor]:
    yield DATA[:2]
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": []}, "data: expected batches, there is none"),
        ({"data": [DATA[:2], DATA[:2] * torch.nan]}, "batch 1: it holds NaN"),
        ({"data": [DATA[:2], DATA[:2, :2]]}, "batch 1: the model does not run on it"),
        ({"data": failing()}, "giving batch 1 failed with OSError: the disk is gone"),
        ({"data": [DATA], "tune": -1}, "tune: -1 is none"),
        ({"tune": 3}, "tune: there is no data"),
        ({"data": [DATA], "tune": 2, "frozen": True}, "tune: no parameter of the model is trained"),
        ({"data": [DATA], "to": "sync"}, "data: nothing is fitted for to='sync'"),
        ({"data": [DATA], "max_samples": 0}, "max_samples: expected a positive number"),
        ({"data": 5}, "data: expected an iterable of batches, got int"),
    ],
)
@pytest.mark.parametrize("inplace", [True, False])
def test_what_goes_wrong_is_told_and_changes_nothing(options: Any, message: str, inplace: bool) -> None:
    model = net().train()
    before = copy.deepcopy(model.state_dict())
    random = torch.random.get_rng_state()
    model.requires_grad_(not options.get("frozen"))
    options = {key: value for key, value in options.items() if key != "frozen"}
    if message.startswith("giving"):
        options = {"data": failing()}
    with pytest.raises(bn.BntoolsError, match=message.replace("'", ".")):
        bn.swap(model, **{"groups": 2, "inplace": inplace, **options})
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())


def test_parameters_stay_the_very_ones() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    model = season(model).double().eval()
    model[2].weight = model[0].weight  # tied
    held = model[0].weight
    old = held.detach().clone()
    surgery = bn.swap(model, groups=1, data=DATA.split(5), tune=60, inplace=True)
    assert model[0].weight is model[2].weight is held
    assert not torch.equal(held, old)
    assert "0.weight" in surgery.plan.tuned


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("0.weight", torch.ones(8, 3, 3, 3), "it is .* torch.float64, not .* torch.float32"),
        ("0.weight", torch.ones(8, 3, 3, 3).double() * torch.nan, "not finite"),
        ("7.weight", torch.ones(1), "the model has no such parameter"),
    ],
)
def test_tuned_parameters_that_do_not_fit_are_refused(key: str, value: Tensor, message: str) -> None:
    surgery = bn.swap(net(), groups=2, data=DATA.split(5), tune=60)
    tensors = {key: surgery.model.state_dict()[key] for key in surgery.plan.keys}
    plan = dataclasses.replace(surgery.plan, tuned=tuple({*surgery.plan.tuned, key}))
    with pytest.raises(bn.PlanError, match=message):
        bn.graft_(net(), plan, {**tensors, key: value})


def test_the_result_is_replayed() -> None:
    model = net()
    surgery = bn.swap(model, groups=2, data=DATA.split(5), tune=3)
    twin = copy.deepcopy(model)
    bn.graft_(twin, surgery.plan, {key: surgery.model.state_dict()[key] for key in surgery.plan.keys})
    assert torch.equal(twin(DATA), surgery.model(DATA))


# What the shapes of a run tell


@pytest.mark.parametrize(("side", "refused"), [(1, True), (2, False)])
def test_a_group_of_one_value_is_refused(side: int, refused: bool) -> None:
    model = season(nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.BatchNorm2d(3), nn.BatchNorm2d(3))).double()
    plan = bn.swap(model, "instance", inputs=DATA).plan
    assert {r.reason for r in plan.refusals} == ({bn.Reason.ONE_VALUE} if refused else set())
    assert bool(plan.swaps) is not refused


@pytest.mark.parametrize(("groups", "noted"), [(8, True), (4, False)])
def test_as_many_groups_as_channels_are_pointed_out(groups: int, noted: bool) -> None:
    model = season(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))).double()
    assert (
        any("as many groups as channels" in note for note in bn.swap(model, groups=groups).plan.notes)
        is noted
    )
    assert not bn.swap(model, "instance").plan.notes


@pytest.mark.parametrize(("tracks", "kind"), [(True, nn.BatchNorm2d), (False, nn.InstanceNorm2d)])
@pytest.mark.parametrize("affine", [True, False])
def test_an_instancenorm_that_tracks_is_a_batchnorm(tracks: bool, kind: type, affine: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=affine, track_running_stats=tracks))
    model = season(model).double().eval()
    surgery = bn.swap(model, "batch", inputs=DATA)
    assert type(surgery.model[1]) is kind
    assert surgery.plan.promise is bn.Promise.SAME
    assert torch.equal(surgery.model(DATA), model(DATA))
    assert [r.reason for r in surgery.plan.refusals] == ([] if tracks else [bn.Reason.NO_STATISTICS])

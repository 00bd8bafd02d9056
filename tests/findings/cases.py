"""For every rule a model that has the trouble, and a twin that differs in one thing and has not.

A case is a function of whether the trouble is there; it returns a seasoned model and its input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bntools as bn
from tests.season import season

Made = tuple[nn.Module, Any]
SHAPE = (4, 3, 8, 8)


@dataclass(frozen=True)
class Case:
    """One pair.

    Args:
        rule: that speaks of the one and not of the other.
        make: both.
        layers: of which it speaks.
        numbers: of the first of them, worked out by hand.
        how: more arguments of `bntools.inspect`, for both.
    """

    rule: str
    make: Callable[[bool], Made]
    layers: tuple[str | None, ...]
    numbers: dict[str, float] = field(default_factory=dict)
    how: dict[str, Any] = field(default_factory=dict)


CASES: list[Case] = []


def case(rule: str, *layers: str | None, **more: Any) -> Callable[[Callable[[bool], Made]], Any]:
    def keep(make: Callable[[bool], Made]) -> Callable[[bool], Made]:
        CASES.append(Case(rule, make, layers, **more))
        return make

    return keep


def net(
    *, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, act: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Convolution, BatchNorm, activation, twice: 1 and 4 are the BatchNorms."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), norm(8), act(), nn.Conv2d(8, 8, 3, bias=False), norm(8), act()
    )
    return season(model.eval(), example=inputs())


def inputs() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


def layer(model: nn.Module, path: str = "1") -> nn.BatchNorm2d:
    found = model.get_submodule(path)
    assert isinstance(found, nn.BatchNorm2d)
    return found


# Statistics


@case("BN001", "1", numbers={"weight": 1})
@torch.no_grad()
def a_gamma_of_nan(bad: bool) -> Made:
    model = net()
    layer(model).weight[2] = float("nan") if bad else 1.0
    return model, inputs()


@case("BN001", "4", numbers={"running_var": 2, "running_mean": 1})
def infinite_statistics(bad: bool) -> Made:
    model = net()
    if bad:
        layer(model, "4").running_var[:2] = float("inf")
        layer(model, "4").running_mean[7] = float("-inf")
    return model, inputs()


@case("BN002", "1", numbers={"channels": 2, "least": -0.25})
def a_negative_variance(bad: bool) -> Made:
    model = net()
    layer(model).running_var[3:5] = torch.tensor([-0.125, -0.25]) * (1 if bad else -1)
    return model, inputs()


@case("BN003", "4", numbers={"batches": 77})
def fresh_statistics(bad: bool) -> Made:
    model = net()
    layer(model, "4").running_mean.zero_()
    layer(model, "4").running_var.fill_(1)
    if not bad:
        layer(model, "4").running_mean[0] = 1e-3
    return model, inputs()


@case("BN003", "1", "4", numbers={"batches": 0})
def nothing_but_a_count_of_0(bad: bool) -> Made:
    """Weights of another framework come without the count."""
    model = net()
    for path in ("1", "4"):
        layer(model, path).num_batches_tracked.zero_()
        if bad:
            layer(model, path).reset_parameters()
    return model, inputs()


@case("BN004", "1", "4", numbers={"share": 0.9**10, "batches": 10, "momentum": 0.1})
def trained_for_ten_batches(bad: bool) -> Made:
    model = net()
    for path in ("1", "4"):
        layer(model, path).reset_running_stats()
    model.train()
    with torch.no_grad():
        for _ in range(10 if bad else 60):
            model(torch.randn(SHAPE))
    return model.eval(), inputs()


@case("BN004", "1", numbers={"share": 0.5, "batches": 1, "momentum": 0.5})
def a_count_that_does_not_tell(bad: bool) -> Made:
    """One batch at momentum 0.5 leaves 0.5 in each variance: less cannot have come about that way."""
    model = net()
    one = layer(model)
    one.num_batches_tracked.fill_(1)
    one.momentum = 0.5
    one.running_var.fill_(0.75)
    if not bad:
        one.running_var[5] = 0.25
    return model, inputs()


@case("BN007", "1", numbers={"share": 1e-5 / (1e-5 + 5e-8), "eps": 1e-5})
def hardly_any_variance(bad: bool) -> Made:
    model = net()
    layer(model).running_var.fill_(5e-8 if bad else 2e-7)
    return model, inputs()


@case("BN020", "1", "4")
def statistics_in_16_bits(bad: bool) -> Made:
    model = net().to(torch.bfloat16 if bad else torch.float32)
    return model, inputs().to(torch.bfloat16 if bad else torch.float32)


# Scale and shift


@case("BN008", "1", numbers={"channel": 6, "ratio": ((1 + 1e-5) / (2e-5)) ** 0.5})
@torch.no_grad()
def one_large_scale(bad: bool) -> Made:
    model = net()
    layer(model).weight.fill_(-1)
    layer(model).running_var.fill_(1)
    layer(model).running_var[6] = 1e-5 if bad else 1e-3
    return model, inputs()


@case("BN009", "0")
@torch.no_grad()
def a_fold_beyond_float16(bad: bool) -> Made:
    model = net()
    model.get_parameter("0.weight")[1, 0, 0, 0] = 7e4 if bad else 6e4
    one = layer(model)
    one.weight[1], one.running_var[1] = 1, 1 - 1e-5
    return model, inputs()


@case("BN009", "1", numbers={"largest": 1e5})
@torch.no_grad()
def one_that_stays_beyond_float16(bad: bool) -> Made:
    model = season(nn.Sequential(nn.Sigmoid(), nn.BatchNorm2d(3), nn.Sigmoid()).eval())
    one = layer(model)
    one.weight[0], one.bias[0], one.running_mean[0] = 0.5, 1e5 if bad else 1e4, 0
    return model, inputs()


@case("BN010", "1", numbers={"channels": 2, "of": 8})
@torch.no_grad()
def dead_in_front_of_a_relu(bad: bool) -> Made:
    model = net()
    one = layer(model)
    one.weight[2:4] = torch.tensor([0.5, -0.5])
    one.bias[2:4] = -1.6 if bad else -1.4
    return model, inputs()


@case("BN010", "1", numbers={"channels": 8, "of": 8})
@torch.no_grad()
def behind_which_stands_no_relu(bad: bool) -> Made:
    model = net(act=nn.ReLU6 if bad else nn.SiLU)
    layer(model).bias.fill_(-9)
    return model, inputs()


class Block(nn.Module):
    """conv(x) through BatchNorm and ReLU; what is between the two is read or returned too if asked for."""

    def __init__(self, *, again: bool = False, inplace: bool = False, both: bool = False) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.again, self.inplace, self.both = again, inplace, both

    def forward(self, x: Tensor) -> Any:
        y = self.bn(self.conv(x))
        z = F.relu(y, inplace=self.inplace)
        if self.both:
            return z, y
        return z * y if self.again else z


@case("BN010", "bn", numbers={"channels": 8, "of": 8})
@torch.no_grad()
def of_which_somebody_else_sees_all(bad: bool) -> Made:
    model = season(Block(again=not bad).eval())
    model.bn.bias.fill_(-9)
    return model, inputs()


@case("BN010", "bn", numbers={"channels": 8, "of": 8})
@torch.no_grad()
def that_the_caller_gets(bad: bool) -> Made:
    model = season(Block(both=not bad).eval())
    model.bn.bias.fill_(-9)
    return model, inputs()


@case("BN010", "bn", numbers={"channels": 8, "of": 8})
@torch.no_grad()
def whose_reader_gets_what_an_inplace_relu_left(bad: bool) -> Made:
    model = season(Block(again=True, inplace=bad).eval())
    model.bn.bias.fill_(-9)
    return model, inputs()


@case("BN011", "1", numbers={"channels": 1})
@torch.no_grad()
def a_gamma_of_next_to_nothing(bad: bool) -> Made:
    model = net()
    layer(model).weight[:2] = torch.tensor([-1.6, 1.5e-3 if bad else 1.7e-3])
    return model, inputs()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn(self.conv(x))


@case("BN012", "bn", numbers={"largest": 0})
@torch.no_grad()
def a_branch_that_never_learned(bad: bool) -> Made:
    model = season(Residual().eval())
    model.bn.weight.zero_()
    if not bad:
        model.bn.weight[1] = -1e-3
    return model, inputs()


# Settings


@case("BN005", "4", numbers={"momentum": 0.9})
def the_other_convention(bad: bool) -> Made:
    model = net()
    layer(model, "4").momentum = 0.9 if bad else 0.1
    return model, inputs()


@case("BN006", "1", numbers={"momentum": 1})
def momentum_of_1(bad: bool) -> Made:
    model = net()
    layer(model).momentum = 1.0 if bad else 0.1
    return model, inputs()


@case("BN006", "1", "4")
def momentum_of_none(bad: bool) -> Made:
    model = net()
    layer(model).momentum = layer(model, "4").momentum = None
    return (model if bad else bn.freeze(model, affine=False).model), inputs()


@case("BN017", "1")
def without_statistics(bad: bool) -> Made:
    model = net()
    model[1] = nn.BatchNorm2d(8, track_running_stats=not bad)
    return season(model, seed=1).eval(), inputs()


@case("BN018", "1", "4")
def a_sync_batchnorm(bad: bool) -> Made:
    return net(norm=nn.SyncBatchNorm if bad else nn.BatchNorm2d), inputs()


class Plain(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class WithAct(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class Doubled(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


@case("BN019", "1", "4")
def a_class_with_an_activation(bad: bool) -> Made:
    return net(norm=WithAct if bad else Plain), inputs()


@case("BN019", "1", "4")
def a_class_that_nobody_can_keep(bad: bool) -> Made:
    return net(norm=Doubled if bad else Plain), inputs()


def _three() -> nn.Sequential:
    return season(nn.Sequential(*(nn.BatchNorm2d(3) for _ in range(3))).eval())


@case("BN022", "1", numbers={"eps": 1e-3, "usual": 1e-5})
def one_eps_of_keras(bad: bool) -> Made:
    model = _three()
    layer(model).eps = 1e-3 if bad else 1e-5 * (1 + 1e-8)
    return model, inputs()


@case("BN023", "2", numbers={"momentum": 0.01, "usual": 0.1})
def one_momentum_of_keras(bad: bool) -> Made:
    model = _three()
    layer(model, "2").momentum = 0.01 if bad else 0.1
    layer(model, "2").num_batches_tracked.fill_(1000)
    return model, inputs()


@case(
    "BN026",
    None,
    numbers={"batch_size": 5, "layers": 2, "batchnorm_error": 27.3, "groupnorm_error": 24.2},
    how={"batch_size": 5},
)
def few_samples(bad: bool) -> Made:
    return (net() if bad else bn.freeze(net(), affine=False).model), inputs()


@case("BN026", None, numbers={"batch_size": 1, "layers": 2, "batchnorm_error": 34.7}, how={"batch_size": 1})
def few_samples_of_many_devices(bad: bool) -> Made:
    return net(norm=nn.BatchNorm2d if bad else nn.SyncBatchNorm), inputs()


# Modes


@case("BN015", "1")
def gamma_frozen_and_statistics_live(bad: bool) -> Made:
    model = net()
    for parameter in layer(model).parameters():
        parameter.requires_grad_(False)
    return (model if bad else bn.freeze(model, only="1").model), inputs()


@case("BN015", "1", "4")
def a_backbone_that_is_not_trained(bad: bool) -> Made:
    """Where nothing has gradients nobody is going to train."""
    model = nn.Sequential(*net(), nn.Conv2d(8, 2, 1)).requires_grad_(False).eval()
    model[6].requires_grad_(bad)
    return model, inputs()


@case("BN016", "4")
def one_in_training_mode(bad: bool) -> Made:
    model = net()
    layer(model, "4").train(bad)
    return model, inputs()


@case("BN016", "1")
def one_in_eval_mode(bad: bool) -> Made:
    model = net().train()
    layer(model).eval()
    return (model if bad else bn.freeze(model, only="1", affine=False).model), inputs()


@case("BN027", "1", numbers={"momentum": 0})
def momentum_of_0(bad: bool) -> Made:
    model = net()
    layer(model).momentum = 0.0
    return (model if bad else bn.freeze(model, only="1", affine=False).model), inputs()


@case("BN027", "4")
def tracking_switched_off(bad: bool) -> Made:
    model = net()
    layer(model, "4").track_running_stats = not bad
    return model, inputs()


# Structure


@case("BN013", "1")
def a_bias_in_front(bad: bool) -> Made:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=bad), nn.BatchNorm2d(8))
    return season(model.eval()), inputs()


@case("BN013", "1")
def a_bias_in_front_of_what_goes_by_the_batch(bad: bool) -> Made:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    season(model.eval())
    return (model if bad else bn.freeze(model, affine=False).model), inputs()


@case("BN013", "2")
def a_bias_with_nothing_between(bad: bool) -> Made:
    linear, between = nn.Linear(192, 8), nn.Identity() if bad else nn.ReLU()
    model = nn.Sequential(nn.Flatten(), nn.Sequential(linear, between), nn.BatchNorm1d(8))
    return season(model.eval()), inputs()


class Read(nn.Module):
    """A convolution with a bias, whose output is read or returned in front of the BatchNorm too if asked for;
    or which is called once more without a BatchNorm.
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.bn, self.how = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), how

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        z = self.bn(y)
        if self.how == "returned":
            return z, y
        if self.how == "called":
            return z + self.conv(x * x)
        return z + y if self.how == "read" else z


@case("BN013", "bn")
def a_bias_that_somebody_else_reads(bad: bool) -> Made:
    return season(Read("" if bad else "read").eval()), inputs()


@case("BN013", "bn")
def a_bias_that_the_caller_gets(bad: bool) -> Made:
    return season(Read("" if bad else "returned").eval()), inputs()


@case("BN013", "bn")
def a_bias_of_another_call(bad: bool) -> Made:
    return season(Read("" if bad else "called").eval()), inputs()


class Towers(nn.Module):
    """Two inputs through one BatchNorm, or through one each."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.conv, self.a = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.b = self.a if shared else nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.conv(x)) * self.b(self.conv(x * x))


@case("BN014", "a", numbers={"calls": 2})
def one_for_two_towers(bad: bool) -> Made:
    return season(Towers(bad).eval()), inputs()


@case("BN014", "a", numbers={"calls": 2})
def one_for_two_towers_in_training_mode(bad: bool) -> Made:
    """Both calls write the same statistics, and are no loop for it."""
    return season(Towers(bad).train()), inputs()


class Loop(nn.Module):
    """Three steps by one cell, or one step."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.cell, self.bn, self.steps = nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6), steps

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x)
        for _ in range(self.steps):
            h = torch.tanh(self.bn(self.cell(h)) + x)
        return h


@case("BN024", "bn", numbers={"calls": 3})
def in_a_loop(bad: bool) -> Made:
    return season(Loop(3 if bad else 1).eval()), torch.randn(4, 6)


@case("BN021", "4", numbers={"p": 0.5, "ratio": 2})
def dropout_in_front(bad: bool) -> Made:
    """Not in front of the first, which stands before it; nor where it stands behind both."""
    first, drop = net(), nn.Dropout2d(0.5)
    layers = [*first[:3], drop, *first[3:]] if bad else [*first, drop]
    model = nn.Sequential(*layers)
    if bad:  # the paths have moved
        model = nn.Sequential(*first[:3], nn.Sequential(drop, first[3]), *first[4:])
    return model.eval(), inputs()


@case("BN021", "1", numbers={"p": 0.25, "ratio": 4 / 3})
def dropout_of_something(bad: bool) -> Made:
    model = net()
    model[0] = nn.Sequential(nn.Dropout(0.25 if bad else 0.0), model[0])
    return model, inputs()


@case("BN025", "1", numbers={"groups": 8})
def groups_of_one_value(bad: bool) -> Made:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 8), nn.GroupNorm(8 if bad else 4, 8), nn.Flatten(), nn.BatchNorm1d(8)
    )
    return season(model.eval()), inputs()


@case("BN025", "1", numbers={"groups": 8})
def as_many_groups_as_channels(bad: bool) -> Made:
    """On a map of more than one place that is an InstanceNorm, and fine."""
    model = nn.Sequential(nn.Conv2d(3, 8, 8 if bad else 7), nn.GroupNorm(8, 8), nn.BatchNorm2d(8))
    return season(model.eval()), inputs()

"""The cases of the rules that need data, or an optimizer: added to `tests.findings.cases.CASES`.

A case here also returns more arguments of `bntools.inspect`. The statistics of the models are those of the
data, so that only what a case changes is off.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import bntools as bn
from tests.findings.cases import SHAPE, case, inputs, layer, net
from tests.season import season

Given = tuple[nn.Module, Any, dict[str, Any]]


def data(samples: int = 64, size: int = 8) -> list[Tensor]:
    rng = torch.Generator().manual_seed(2)
    return [*(torch.randn((samples, *SHAPE[1:]), generator=rng) * 1.5 + 0.5).split(size)]


def fitted(batches: list[Tensor] | None = None) -> nn.Module:
    """With the very statistics of the data, γ and β seasoned."""
    return bn.recalibrate(net(), batches or data()).model


def quiet(*rules: str) -> dict[str, Any]:
    """What else such a trouble makes is not asked."""
    return {"thresholds": dict.fromkeys(rules, 1e9)}


@case("BN028", "1", numbers={"divergence": 0.25, "mean": 0.5}, how=quiet("BN029"))
def a_mean_off_by_half_a_sigma(bad: bool) -> Given:
    """``½·(δ²/σ'² + δ²/σ²)`` is δ² in units of a σ that has not moved."""
    model = fitted()
    one = layer(model)
    if bad:
        one.running_mean += 0.5 * (one.running_var + one.eps).sqrt()
    return model, inputs(), {"data": data()}


@case("BN028", "4", numbers={"divergence": (3 + 1 / 3) / 2 - 1}, how=quiet("BN029"))
def a_variance_off_by_three(bad: bool) -> Given:
    """Of a layer in the middle: that in front of it is fine. ``½·(σ²/σ'² + σ'²/σ² − 2)``."""
    model = fitted()
    one = layer(model, "4")
    if bad:
        one.running_var = (one.running_var + one.eps) * 3 - one.eps
    return model, inputs(), {"data": data()}


@case("BN028", "1", how=quiet("BN029"))
def a_brighter_domain(bad: bool) -> Given:
    """The layers behind the first get what it has put right."""
    return fitted(), inputs(), {"data": [batch * 2 + 1 if bad else batch for batch in data()]}


@case("BN029", None, numbers={"gap": 2}, how=quiet("BN028"))
def outputs_two_sigma_off(bad: bool) -> Given:
    """Of ±1 training returns ±1, and eval with a mean of 2 returns −1 and −3."""
    model = nn.Sequential(nn.BatchNorm1d(1, eps=0.0)).eval()
    model[0].running_mean.fill_(2 if bad else 0.0)
    model[0].weight.requires_grad_(False).fill_(-1)
    batches = [torch.tensor([[1.0], [-1.0]] * 40) for _ in range(2)]
    if not bad:
        model[0].running_mean.fill_(1e-3)  # 0 and 1 exactly are those of a fresh layer
    return model, batches[0][:2], {"data": batches}


@case("BN030", None, numbers={"count": 2})
def batches_of_nan(bad: bool) -> Given:
    batches = data()
    clean = fitted(batches)
    if bad:
        batches.insert(3, torch.full(SHAPE, float("nan")))
        batches.insert(0, torch.full(SHAPE, float("-inf")))
    return clean, inputs(), {"data": batches}


class Log(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.log()


@case("BN030", "1", numbers={"batch": 1})
def nan_that_the_model_makes(bad: bool) -> Given:
    batches = [batch.abs() + 0.1 for batch in data()]
    model = nn.Sequential(Log(), nn.BatchNorm2d(3), nn.BatchNorm2d(3)).eval()
    model = bn.recalibrate(season(model), batches).model
    if bad:
        batches[1][0, 0, 0, 0] = -1
    return model, batches[0], {"data": batches}


@case("BN031", None)
def sorted_by_label(bad: bool) -> Given:
    """Two kinds of images: all of the one first, or mixed."""
    images = torch.cat(data())
    images[::2] += 2
    order = torch.arange(64).reshape(32, 2).T.flatten() if bad else torch.randperm(64, generator=rng())
    batches = [*images[order].split(8)]
    return fitted(batches), inputs(), {"data": batches}


@case("BN032", None, numbers={"samples": 6})
def six_samples(bad: bool) -> Given:
    """Small maps, so that a sample holds few values."""
    batches = [batch[..., :5, :5] for batch in data(6 if bad else 960, 3)]
    return fitted(batches), batches[0], {"data": batches}


@case("BN033", "0", numbers={"channels": 1, "of": 3})
def silent_on_bounded_data(bad: bool) -> Given:
    """Uniform values end at √3 σ: β = −2 leaves none of them above 0, β = −1.5 some. Normal ones go on."""
    rng = torch.Generator().manual_seed(4)
    batches = [*torch.rand((64, 3, 8, 8), generator=rng).split(8)]
    model = bn.recalibrate(season(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()).eval()), batches).model
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -1.0, 1.0]))
        model[0].bias.copy_(torch.tensor([0.5, -2.0 if bad else -1.5, -0.5]))
    return model, batches[0], {"data": batches}


class Heads(nn.Module):
    """A head that only training uses."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.body, self.aux, self.always = net(), nn.BatchNorm2d(8), always

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.aux(y) if self.training or self.always else y


@case("BN034", "aux")
def a_head_that_eval_leaves_out(bad: bool) -> Given:
    model = bn.recalibrate(season(Heads(True).eval()), data()).model
    model.always = not bad
    return model, inputs(), {"data": data()}


class Again(nn.Module):
    """Dark images go through one layer twice."""

    def __init__(self, ever: bool) -> None:
        super().__init__()
        self.bn, self.ever = nn.BatchNorm2d(3), ever

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(x)
        return self.bn(y.sin()) if self.ever and x.mean() < 0 else y


@case("BN035", "bn", numbers={"least": 1, "most": 2}, how=quiet("BN031"))
def twice_for_some_batches(bad: bool) -> Given:
    batches = [*data(32), *(-batch for batch in data(32))]
    model = bn.recalibrate(season(Again(bad).eval()), batches).model
    model.bn.num_batches_tracked.fill_(100)
    return model, batches[0], {"data": batches}


@case("BN036", "1", "4", numbers={"weight_decay": 0.05})
def all_parameters_decay(bad: bool) -> Given:
    model = net()
    norms = [p for path in ("1", "4") for p in layer(model, path).parameters()]
    others = [model[0].weight, model[3].weight]
    groups = [{"params": others, "weight_decay": 0.05}, {"params": norms, "weight_decay": 0.05 * bad}]
    return model, inputs(), {"optimizer": torch.optim.AdamW(groups)}


@case("BN036", "1", "4", numbers={"weight_decay": 0.1})
def a_checkpoint_of_an_optimizer(bad: bool) -> Given:
    """Its state keeps numbers for names; all of them in one group are all there are."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1 if bad else 0.0)
    return model, inputs(), {"optimizer": optimizer.state_dict()}


@case("BN036", "4", numbers={"weight_decay": 0.2})
def one_beta_by_its_name(bad: bool) -> Given:
    model = net()
    named = dict(model.named_parameters())
    groups = [
        {"params": [(k, p) for k, p in named.items() if k != "4.bias"], "weight_decay": 0.0},
        {"params": [("4.bias", named["4.bias"])], "weight_decay": 0.2 if bad else 0.0},
    ]
    return model, inputs(), {"optimizer": torch.optim.SGD(groups, lr=0.1).state_dict()}


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(3)

"""What `inspect` does with data: what it tells of it, what it refuses, and that it leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bntools as bn
from bntools.core.decays import decays_in, states_in
from bntools.errors import BntoolsError, CaptureError, UsageError
from tests.findings.cases import inputs, layer, net
from tests.findings.cases_of_data import data, fitted
from tests.season import season

DATA_RULES = {f"BN{number:03}" for number in range(28, 36)}


def rules(census: bn.Census) -> list[str]:
    return [finding.rule for finding in census.findings if finding.rule in DATA_RULES]


def shifted() -> nn.Module:
    """Off in its first layer by 0.5 σ, and in its second by 0.4."""
    model = fitted()
    with torch.no_grad():
        for path, by in (("1", 0.5), ("4", 0.4)):
            layer(model, path).running_mean += by * layer(model, path).running_var.sqrt()
    return model


def test_the_drift_is_that_of_a_recalibration() -> None:
    """The two look at the same data with the same statistics, layer by layer."""
    model = season(net())
    looked, done = bn.inspect(model, data=data()).passed, bn.recalibrate(model, data()).report
    assert looked is not None
    assert looked.drift is not None
    assert [each.path for each in looked.drift.layers] == ["1", "4"]
    for ours, theirs in zip(looked.drift.layers, done.layers, strict=True):
        for name in ("mean", "var", "divergence", "error_mean", "error_var"):
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-6), name
    assert (looked.drift.gap_before, looked.drift.first) == (pytest.approx(done.gap_before), done.first)


def test_the_first_layer_that_drifts_is_named_first() -> None:
    census = bn.inspect(shifted(), data=data(), thresholds={"BN028": 0.1})
    found = [finding.layer for finding in census.findings if finding.rule == "BN028"]
    assert (found, census.passed.drift.first) == (["1", "4"], "1")


@pytest.mark.parametrize("size", [1, 3, 64])
def test_the_size_of_the_batches_does_not_matter(size: int) -> None:
    batches = [*torch.cat(data()).split(size)]
    found = [f for f in bn.inspect(shifted(), data=batches).findings if f.rule == "BN028"]
    numbers = {measure.name: measure.value for measure in found[0].numbers}
    assert (found[0].layer, numbers["mean"]) == ("1", pytest.approx(0.5, rel=1e-4))


def test_what_is_read_once_is_read_once() -> None:
    """A generator gives the example and the pass from one reading, and no batch is lost."""
    read = []

    def batches() -> Iterator[Tensor]:
        for number, batch in enumerate(data()):
            read.append(number)
            yield batch

    census = bn.inspect(fitted(), data=batches())
    assert read == list(range(8))
    assert census.passed.samples == census.passed.drift.samples == 64
    assert (census.example.origin, len(census.example.tensors[0])) == ("of the data", 4)


def test_a_loader_is_gone_through_once() -> None:
    """One with workers would start them anew each time."""
    begun = []

    class Loader:
        def __iter__(self) -> Iterator[Tensor]:
            begun.append(self)
            return iter(data())

    for model in (fitted(), nn.Sequential(nn.Conv2d(3, 4, 1)).eval()):
        census = bn.inspect(model, data=Loader())
        assert (census.example.origin, len(census.example.tensors[0])) == ("of the data", 4)
    assert len(begun) == 2


def test_nothing_is_left_behind() -> None:
    model = shifted().train()
    layer(model).eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    versions = [tensor._version for tensor in model.buffers()]
    modes = [module.training for module in model.modules()]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    bn.inspect(model, data=data())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert [tensor._version for tensor in model.buffers()] == versions
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


class Stop(nn.Module):
    """Fails on the third batch that it sees alone."""

    def forward(self, x: Tensor) -> Tensor:
        if x.max() > 50:
            raise RuntimeError("too bright")
        return x


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ([], UsageError, "there is none"),
        (3, UsageError, "expected an iterable"),
        ([{"x": 1}], UsageError, "expected tensors"),
        ([torch.randn(4, 7, 8, 8)], CaptureError, "batch 0: the model does not run on it"),
        ([*data(), data()[0] + 100], CaptureError, "batch 8: the model does not run on it"),
        ([torch.full((4, 3, 8, 8), float("nan"))], UsageError, "there is none"),
    ],
)
def test_data_that_is_none(given: Any, error: type[BntoolsError], told: str) -> None:
    model = nn.Sequential(Stop(), *fitted()).eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(error, match=told):
        bn.inspect(model, data=given)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_program_has_nothing_to_stop_at() -> None:
    program = torch.export.export(fitted(), (inputs(),), strict=False)
    with pytest.raises(UsageError, match="operators, which no pass can stop at"):
        bn.inspect(program, data=data())


def test_batches_of_any_form() -> None:
    """With labels, as a dict, as one tensor, and by a function of one's own."""
    for batches, how in (
        ([(batch, torch.zeros(len(batch))) for batch in data()], {}),
        ([{"input": batch, "label": torch.zeros(len(batch))} for batch in data()], {}),
        (torch.cat(data()), {}),
        ([{"odd": batch} for batch in data()], {"forward": lambda model, batch: model(batch["odd"])}),
    ):
        census = bn.inspect(shifted(), None if not how else inputs(), data=batches, **how)
        assert [f.layer for f in census.findings if f.rule == "BN028"] == ["1", "4"]
        assert census.passed.samples == 64


def test_what_reaches_a_layer_is_that_of_the_model_as_it_is() -> None:
    """Behind a layer that has drifted it is something else than in the copy that is put right."""
    model, seen = shifted(), []
    hook = layer(model, "4").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(torch.cat(data()))
    hook.remove()
    found = bn.inspect(model, data=data()).passed.reached["4"]
    x = seen[0].double().transpose(0, 1).flatten(1)
    assert found.values == x.shape[1]
    for ours, theirs in ((found.low, x.amin(1)), (found.high, x.amax(1))):
        assert torch.tensor(ours).allclose(theirs, rtol=1e-4, atol=1e-5)


def test_max_samples_is_where_it_stops() -> None:
    assert bn.inspect(fitted(), data=data(), max_samples=20).passed.samples == 20


def test_a_frozen_layer_drifts_too() -> None:
    model = bn.freeze(shifted()).model
    assert [f.layer for f in bn.inspect(model, data=data()).findings if f.rule == "BN028"] == ["1", "4"]


def test_a_single_sample_says_nothing_of_chance() -> None:
    """Statistics of one sample: no drift is told, for nobody knows what of it is chance."""
    census = bn.inspect(shifted(), data=data()[0][:1])
    assert rules(census) == []
    assert census.passed.drift.layers[0].mean > 0.4


def test_what_was_not_asked_is_not_silent_consent() -> None:
    asked = set(bn.inspect(fitted(), inputs()).asked)
    assert not asked & (DATA_RULES | {"BN036"})
    sgd = torch.optim.SGD(net().parameters(), lr=0.1)
    assert {*DATA_RULES, "BN036"} <= set(bn.inspect(fitted(), data=data(), optimizer=sgd).asked)


def test_random_batches_are_not_called_grouped() -> None:
    """Of 200 loaders of random batches, with channels that hang together, none is; of sorted ones all are."""
    rng = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 1), nn.BatchNorm2d(8)).eval()
    cries = []
    for ordered in (False, True):
        found = 0
        for _ in range(200 if not ordered else 20):
            samples = torch.randn(48, 1, 4, 4, generator=rng) + 3 * torch.randn(48, 1, 1, 1, generator=rng)
            if ordered:
                samples = samples[samples.mean((1, 2, 3)).argsort()]
            passed = bn.inspect(model, samples[:2], data=samples.split(6)).passed
            found += (passed.reached["1"].grouping or 0) > 2
        cries.append(found)
    assert cries == [0, 20]


class Tokens(nn.Module):
    """Each row of an image is a sample of its BatchNorm, as LeViT has it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.bn = nn.Linear(8, 8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.embed(x).flatten(0, 1))


def test_the_tokens_of_a_sample_are_no_samples() -> None:
    """They are alike, and batches of whole samples drawn at random are no trouble for it."""
    rng = torch.Generator().manual_seed(0)
    samples = torch.randn(64, 16, 8, generator=rng) + 3 * torch.randn(64, 1, 8, generator=rng)
    passed = bn.inspect(Tokens().eval(), samples[:2], data=samples.split(4)).passed
    assert passed.reached["bn"].grouping is None
    rows = bn.inspect(nn.Sequential(Tokens().bn).eval(), data=samples.flatten(0, 1).split(64)).passed
    assert rows.reached["0"].grouping > 2


# Optimizers


def test_an_optimizer_whose_state_does_not_tell_is_not_asked() -> None:
    """Two groups that decay differently, without names: which parameter is which nobody knows."""
    model = net()
    groups = [{"params": [*model[0].parameters()]}, {"params": [*model[1].parameters()], "weight_decay": 0.1}]
    state = torch.optim.SGD(groups, lr=0.1).state_dict()
    assert decays_in(state, [key for key, _ in model.named_parameters()]) is None
    assert "BN036" not in bn.inspect(model, inputs(), optimizer=state).asked


@pytest.mark.parametrize(
    "entry", [None, 3, {}, {"param_groups": 3}, {"param_groups": [{"params": 3}]}, {"param_groups": []}]
)
def test_an_entry_that_is_no_optimizer(entry: Any) -> None:
    assert states_in({"optimizer": entry, "epoch": 3}) == []


def test_what_is_no_optimizer() -> None:
    with pytest.raises(UsageError, match="or its state, got int"):
        bn.inspect(net(), inputs(), optimizer=3)  # type: ignore[arg-type]


def test_a_model_without_statistics_is_run_on_nothing() -> None:
    for model in (
        nn.Sequential(nn.Conv2d(3, 4, 1)),
        nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)),
    ):
        assert bn.inspect(model.eval(), inputs(), data=data()).passed.stops == ()


def test_the_states_of_a_checkpoint() -> None:
    state = torch.optim.SGD(net().parameters(), lr=0.1).state_dict()
    assert states_in({"optimizer": state}) == states_in({"optimizer_states": [state]}) == [state]
    assert states_in(None) == []


def test_a_shared_parameter_decays_under_each_of_its_names() -> None:
    model = net()
    layer(model, "4").weight = layer(model).weight
    optimizer = torch.optim.SGD([layer(model).weight], lr=0.1, weight_decay=0.5)
    found = bn.inspect(model, inputs(), optimizer=optimizer).findings
    assert [(f.layer, f.detail) for f in found if f.rule == "BN036"] == [
        ("1", "weight_decay 0.5 on γ"),
        ("4", "weight_decay 0.5 on γ"),
    ]

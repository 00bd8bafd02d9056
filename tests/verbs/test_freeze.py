"""A freeze that holds against everything that is done to a model, and of which nothing is left afterwards."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import bntools as bn
from bntools.norms.frozen import Frozen, freeze_
from tests.must_fold import Apply, BatchNormAct, BatchNormReLU, FrozenBatchNorm
from tests.season import season


def conv_net() -> nn.Module:
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, 2), nn.BatchNorm2d(5)]
    return season(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)))


@pytest.fixture
def net() -> nn.Module:
    return conv_net()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(6, 3, 9, 9) * 2 + 1


def alone(norm: nn.Module) -> nn.Sequential:
    return season(nn.Sequential(norm))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def moves(model: nn.Module, x: Tensor) -> bool:
    """Whether a forward in training mode goes by the batch, or moves the statistics."""
    model = copy.deepcopy(model).train()
    before = state(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    found = model(x)
    return not (torch.equal(found, model.eval()(x)) and same(state(model), before))


def reasons(surgery: bn.Surgery[Any]) -> dict[str, str]:
    return {refusal.site.name: refusal.reason.value for refusal in surgery.plan.refusals}


# What it holds against


def test_training_mode_does_not_undo_it(net: nn.Module, x: Tensor) -> None:
    expected = copy.deepcopy(net).eval()(x)
    assert moves(net, x)
    surgery = bn.freeze(net)
    assert not moves(surgery.model, x)
    assert torch.equal(surgery.model.train()(x), expected)
    assert surgery.model.training
    assert surgery.model[2].training
    assert surgery.report.statistics == ("1", "4")
    assert surgery.report.parameters == ("1.weight", "1.bias", "4.weight", "4.bias")
    assert [edit.site.name for edit in surgery.plan.edits] == ["1", "4"]


def by_file(model: nn.Module, folder: Path) -> nn.Module:
    torch.save(model, folder / "model.pt")
    return bn.load(folder / "model.pt")


def by_save(model: nn.Module, folder: Path) -> nn.Module:
    bn.save(bn.freeze(model), folder / "model.pt")
    return bn.load(folder / "model.pt")


def by_replay(model: nn.Module, folder: Path) -> nn.Module:
    bn.save(bn.freeze(bn.unfreeze(model).model), folder / "model.safetensors")
    return bn.replay(folder / "model.safetensors", conv_net())


COPIES: dict[str, Callable[[nn.Module, Path], nn.Module]] = {
    "deepcopy": lambda model, _: copy.deepcopy(model),
    "pickle": lambda model, _: pickle.loads(pickle.dumps(model)),
    "torch.save, bn.load": by_file,
    "bn.save, bn.load": by_save,
    "bn.save, bn.replay": by_replay,
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_frozen_by_itself(net: nn.Module, x: Tensor, tmp_path: Path, how: str) -> None:
    frozen = bn.freeze(net).model
    twin = COPIES[how](frozen, tmp_path).train()
    assert not moves(twin, x)
    assert not twin[1].weight.requires_grad
    assert torch.equal(twin(x), frozen.train()(x))
    bn.unfreeze(twin, inplace=True)
    assert moves(twin, x)
    assert twin[1].weight.requires_grad
    assert not moves(frozen, x)  # it was not the one that was unfrozen
    assert frozen[1].train() is frozen[1]


def test_a_state_dict_knows_nothing_of_it(net: nn.Module, x: Tensor) -> None:
    frozen = bn.freeze(net).model
    assert [*frozen.state_dict()] == [*net.state_dict()]
    assert [key for key, _ in frozen.named_modules()] == [key for key, _ in net.named_modules()]
    other = season(conv_net(), seed=1)
    other.load_state_dict(frozen.state_dict())
    frozen.load_state_dict(season(conv_net(), seed=2).state_dict())
    assert moves(other, x)
    assert not moves(frozen, x)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.usefixtures("one_process")
def test_distributed_data_parallel(net: nn.Module, x: Tensor, freeze: bool) -> None:
    if freeze:
        bn.freeze(net, inplace=True)
    model = DistributedDataParallel(net)
    model.train()
    before = state(net)
    model(x).square().sum().backward()
    torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1).step()
    norms = [key for key in before if key.split(".")[0] in ("1", "4")]
    assert all(torch.equal(state(net)[key], before[key]) for key in norms) == freeze
    assert not torch.equal(net[0].weight, before["0.weight"])
    assert bn.unfreeze(model).report.statistics == ()


@pytest.mark.usefixtures("one_process")
def test_a_frozen_one_talks_to_no_other_process(net: nn.Module, x: Tensor) -> None:
    expected = copy.deepcopy(net).eval()(x)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(net).train()
    with pytest.raises(ValueError, match="GPU"):  # that is what it would talk by
        model(x)
    assert torch.equal(bn.freeze(model).model.train()(x), expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile(net: nn.Module, x: Tensor, backend: str) -> None:
    frozen = bn.freeze(net).model.train()
    before, expected = state(frozen), frozen(x)
    model = torch.compile(frozen, backend=backend, fullgraph=True)
    for told in (model, model.eval(), model.train()):  # after the compilation, too
        torch.testing.assert_close(told(x), expected)
    assert same(state(frozen), before)
    free = torch.compile(bn.unfreeze(frozen).model.train(), backend=backend, fullgraph=True)
    assert not torch.allclose(free(x), expected)


@pytest.mark.parametrize("freeze", [True, False])
def test_torch_export(net: nn.Module, x: Tensor, freeze: bool) -> None:
    model = bn.freeze(net).model if freeze else net
    before = state(model)
    program = torch.export.export(model.train(), (x,))
    modes = [node.args[5] for node in program.graph.nodes if node.target is torch.ops.aten.batch_norm.default]
    assert modes == [not freeze, not freeze]
    assert same(state(model), before)


@pytest.mark.parametrize("freeze", [True, False])
def test_the_onnx_exporter(net: nn.Module, x: Tensor, tmp_path: Path, freeze: bool) -> None:
    """Of a model in eval: the same file, and the model is frozen afterwards as before."""
    model = (bn.freeze(net).model if freeze else net).eval()
    expected = model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        torch.onnx.export(model, (x,), tmp_path / "model.onnx", verbose=False)
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    torch.testing.assert_close(torch.from_numpy(session.run(None, {name: x.numpy()})[0]), expected)
    assert onnx.load(tmp_path / "model.onnx").graph.output[0].name
    assert moves(model, x) != freeze


# What can be frozen


class Dropping(nn.BatchNorm2d):
    """With a child that has modes of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop = nn.Dropout(0.5)

    def forward(self, v: Tensor) -> Tensor:
        return self.drop(super().forward(v))


class Rectified(nn.BatchNorm2d):
    def forward(self, v: Tensor) -> Tensor:
        return super().forward(v).relu()


class AlwaysByBatch(nn.BatchNorm2d):
    """Deaf to its mode, and it moves its statistics."""

    def forward(self, v: Tensor) -> Tensor:
        return F.batch_norm(v, self.running_mean, self.running_var, self.weight, self.bias, True, 0.1)


class ByBatchOnly(nn.BatchNorm2d):
    """It has statistics and never looks at them."""

    def forward(self, v: Tensor) -> Tensor:
        return F.batch_norm(v, None, None, self.weight, self.bias, True)


class Deaf(nn.BatchNorm2d):
    """Its mode is its own affair: it goes by the batch while its momentum is not None."""

    def forward(self, v: Tensor) -> Tensor:
        return F.batch_norm(
            v, self.running_mean, self.running_var, self.weight, self.bias, self.momentum is not None, 0.1
        )


class Collecting(nn.BatchNorm2d):
    """It returns what it does in eval, and moves its statistics by a mode of its own."""

    collects = False

    def train(self, mode: bool = True) -> nn.Module:
        self.collects = mode
        return super().train(mode)

    def forward(self, v: Tensor) -> Tensor:
        out = F.batch_norm(v, self.running_mean, self.running_var, self.weight, self.bias)
        if self.collects:
            self.running_mean.lerp_(v.detach().mean((0, 2, 3)), 0.1)
        return out


class Pair(nn.BatchNorm2d):
    def forward(self, v: Tensor) -> Any:
        return super().forward(v), v


def without_bias(norm: nn.Module) -> nn.Module:
    norm.bias = None
    return norm


def dead(norm: nn.Module) -> nn.Module:
    """As the last one of a residual branch starts, so that the branch is nothing."""
    nn.init.zeros_(norm.weight)
    return norm


def far(norm: nn.Module) -> nn.Module:
    """With the activation behind it shut, wherever inputs of around 0 come."""
    norm.bias.data.sub_(100)
    return norm


def two_d(kind: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    return season(kind(4)), torch.randn(6, 4, 5, 5) * 2 + 1


NORMS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "1d": lambda: (season(nn.BatchNorm1d(4)), torch.randn(6, 4) * 2 + 1),
    "1d of sequences": lambda: (season(nn.BatchNorm1d(4)), torch.randn(6, 4, 5) * 2 + 1),
    "2d": lambda: two_d(nn.BatchNorm2d),
    "3d": lambda: (season(nn.BatchNorm3d(4)), torch.randn(6, 4, 3, 3, 3) * 2 + 1),
    "sync": lambda: two_d(nn.SyncBatchNorm),
    "no bias": lambda: (season(without_bias(nn.BatchNorm2d(4))), two_d(nn.BatchNorm2d)[1]),
    "no affine": lambda: (season(nn.BatchNorm2d(4, affine=False)), two_d(nn.BatchNorm2d)[1]),
    "momentum None": lambda: (season(nn.BatchNorm2d(4, momentum=None)), two_d(nn.BatchNorm2d)[1]),
    "activation": lambda: two_d(BatchNormReLU),
    "shut activation": lambda: (far(season(Rectified(4))), two_d(nn.BatchNorm2d)[1] * 99),
    "γ of zeros": lambda: (dead(season(nn.BatchNorm2d(4))), two_d(nn.BatchNorm2d)[1]),
    "dropout child": lambda: two_d(Dropping),
    "float64": lambda: (season(nn.BatchNorm2d(4)).double(), two_d(nn.BatchNorm2d)[1].double()),
    "bfloat16": lambda: (season(nn.BatchNorm2d(4)).bfloat16(), two_d(nn.BatchNorm2d)[1].bfloat16()),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_every_kind_is_frozen_and_left_as_it_was(name: str, training: bool) -> None:
    norm, x = NORMS[name]()
    norm.train(training)
    before = state(norm)
    model = nn.Sequential(norm)
    if name != "sync":  # it trains on a GPU only
        assert moves(model, x)
    surgery = bn.freeze(model, inplace=True)
    assert reasons(surgery) == {}
    assert not moves(model, x)
    assert same(state(norm), before)
    assert surgery.report.parameters == tuple(f"0.{key}" for key, _ in norm.named_parameters())
    bn.unfreeze(model, inplace=True)
    assert norm.training is training
    assert all(parameter.requires_grad for parameter in norm.parameters())


def test_the_child_of_a_frozen_one_follows_the_mode() -> None:
    model = bn.freeze(alone(Dropping(4))).model.train()
    x = torch.randn(6, 4, 5, 5)
    assert model[0].drop.training
    assert (model(x) == 0).any()
    model.eval()
    assert not model[0].drop.training
    assert not (model(x) == 0).any()
    assert model[0].train().drop.training


def test_the_child_keeps_its_parameters() -> None:
    """A PReLU behind it is no part of γ and β."""
    surgery = bn.freeze(alone(BatchNormAct(4)))
    assert surgery.report.parameters == ("0.weight", "0.bias")
    assert surgery.model[0].act.weight.requires_grad


def test_one_that_is_frozen_by_itself_stays_what_it_is() -> None:
    surgery = bn.freeze(alone(FrozenBatchNorm(4)))
    assert reasons(surgery) == {}
    assert surgery.report.parameters == ()


@pytest.mark.parametrize("kind", [AlwaysByBatch, ByBatchOnly, Deaf, Collecting, Pair])
@pytest.mark.parametrize("training", [True, False])
def test_what_goes_by_the_batch_in_either_mode_is_refused(kind: type[nn.Module], training: bool) -> None:
    model = season(nn.Sequential(nn.BatchNorm2d(4), kind(4))).train(training)
    before, modes = state(model), [module.training for module in model.modules()]
    surgery = bn.freeze(model, inplace=True)
    assert reasons(surgery) == {"1": "unrecognised"}
    assert surgery.report.statistics == ("0",)
    assert same(state(model), before)
    assert model[1].weight.requires_grad
    assert "train" not in vars(model[1])
    assert model[1].training is modes[2]
    # Its γ and β can be frozen all the same.
    assert reasons(bn.freeze(model, stats=False)) == {}


def test_one_that_hears_its_mode_after_all_is_frozen() -> None:
    norm = Deaf(4, momentum=None)
    assert reasons(bn.freeze(alone(norm))) == {}


@pytest.mark.parametrize("stats", [True, False])
def test_a_train_of_somebody_else_is_left_alone(net: nn.Module, stats: bool) -> None:
    theirs = net[1].train = lambda mode=True: net[1]
    surgery = bn.freeze(net, stats=stats, inplace=True)
    assert reasons(surgery) == {"1": "unrecognised"}
    assert "its own" in surgery.plan.refusals[0].detail
    assert surgery.report.statistics == (("4",) if stats else ())
    assert net[1].train is theirs
    del net[1].train
    assert reasons(bn.freeze(net)) == {}


def test_without_statistics_there_is_nothing_to_freeze() -> None:
    model = season(nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.BatchNorm1d(4)))
    surgery = bn.freeze(model)
    assert reasons(surgery) == {"0": "no-statistics"}
    assert surgery.report.statistics == ("1",)


def test_a_module_with_two_paths_is_one(x: Tensor) -> None:
    norm = nn.BatchNorm2d(4)
    model = season(
        Apply(lambda m, v: m.again(m.norm(m.conv(v))), conv=nn.Conv2d(3, 4, 3), norm=norm, again=norm)
    )
    surgery = bn.freeze(model, "again")
    assert surgery.report.statistics == ("norm",)
    assert surgery.model.again is surgery.model.norm
    assert not moves(surgery.model, x)
    again = bn.unfreeze(surgery.model, "norm").model
    assert moves(again, x)


def tied(name: str) -> nn.Module:
    model = season(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)))
    setattr(model[2], name, getattr(model[0], name))
    model[3].bias = model[2].bias
    return model


@pytest.mark.parametrize("name", ["weight", "running_var"])
def test_what_another_layer_has_too_is_frozen_with_it_or_not_at_all(name: str) -> None:
    model = tied(name)
    surgery = bn.freeze(model, ["0", "3"])
    assert reasons(surgery) == {"0": "tied", "2": "not-selected", "3": "tied"}
    assert reasons(bn.freeze(model, ["0", "2"])) == {"0": "tied", "2": "tied", "3": "not-selected"}
    assert reasons(bn.freeze(model)) == {}
    of_affine = bn.freeze(model, "0", affine=False)
    assert reasons(of_affine).get("0") == (None if name == "weight" else "tied")
    of_stats = bn.freeze(model, "0", stats=False)
    assert reasons(of_stats).get("0") == ("tied" if name == "weight" else None)


def test_tied_ones_are_unfrozen_together() -> None:
    """A γ that one of them unfroze would not be frozen in the other."""
    model = bn.freeze(tied("weight")).model
    assert reasons(bn.unfreeze(model, "0")) == {"0": "tied", "2": "not-selected", "3": "not-selected"}
    free = bn.unfreeze(model).model
    assert all(parameter.requires_grad for parameter in free.parameters())
    # Frozen statistics are each one's own affair.
    model = bn.freeze(tied("weight"), affine=False).model
    assert "0" not in reasons(bn.unfreeze(model, "0"))


# What training does to it


def train(model: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(3):
        model(x).square().mean().backward()
        optimizer.step()


def of_norms(model: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in state(model).items() if key.split(".")[0] in ("1", "4")}


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("how", ["freeze", "nothing", "requires_grad_ and zeros"])
def test_weight_decay_and_momentum_move_nothing(net: nn.Module, x: Tensor, name: str, how: str) -> None:
    """An optimizer with a momentum from before, and gradients from before."""
    optimizer = OPTIMIZERS[name](net.parameters())
    train(net, x, optimizer)
    assert net[1].weight.grad is not None
    held = [net[1].weight, net[1].bias, net[4].weight, net[4].bias]
    if how == "freeze":
        surgery = bn.freeze(net, optimizer=optimizer, inplace=True)
        assert surgery.report.held == surgery.report.decayed == surgery.report.parameters
        assert [parameter.grad for parameter in held] == [None] * 4
    elif how == "requires_grad_ and zeros":  # as it is done by hand
        optimizer.zero_grad(set_to_none=False)
        for norm in (net[1], net[4]):
            norm.requires_grad_(False).eval()
    before, first = of_norms(net), net[0].weight.detach().clone()
    if how != "requires_grad_ and zeros":
        net.train()
    train(net, x, optimizer)
    assert same(of_norms(net), before) == (how == "freeze")
    assert not torch.equal(net[0].weight, first)
    assert [net[1].weight, net[1].bias, net[4].weight, net[4].bias] == held or how == "nothing"
    assert all(
        a is b for a, b in zip(held, (net[1].weight, net[1].bias, net[4].weight, net[4].bias), strict=True)
    )


def test_the_report_tells_what_the_optimizer_holds(net: nn.Module) -> None:
    groups = [
        {"params": [net[1].weight], "weight_decay": 0.1},
        {"params": [net[1].bias, net[0].weight], "weight_decay": 0.0},
    ]
    report = bn.freeze(net, optimizer=torch.optim.SGD(groups, 0.1), inplace=True).report
    assert report.held == ("1.weight", "1.bias")
    assert report.decayed == ("1.weight",)
    assert bn.freeze(net, inplace=True).report.held == ()
    # By identity: others look for equal values, and find those of other layers.
    twins = season(nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)))
    twins[1].load_state_dict(twins[0].state_dict())
    optimizer = torch.optim.SGD(twins[1].parameters(), 0.1, weight_decay=0.1)
    assert bn.freeze(twins, "0", optimizer=optimizer, inplace=True).report.held == ()
    assert bn.freeze(twins, "1", optimizer=optimizer, inplace=True).report.held == ("1.weight", "1.bias")
    assert [len(group["params"]) for group in optimizer.param_groups] == [2]


def test_statistics_only(net: nn.Module, x: Tensor) -> None:
    surgery = bn.freeze(net, affine=False, inplace=True)
    assert surgery.report.statistics == ("1", "4")
    assert surgery.report.parameters == ()
    before = of_norms(net)
    train(net.train(), x, torch.optim.SGD(net.parameters(), 0.1))
    after = of_norms(net)
    assert {key for key in after if not torch.equal(after[key], before[key])} == {
        "1.weight", "1.bias", "4.weight", "4.bias",
    }  # fmt: skip


def test_affine_only(net: nn.Module, x: Tensor) -> None:
    surgery = bn.freeze(net, stats=False, inplace=True)
    assert surgery.report.statistics == ()
    assert len(surgery.report.parameters) == 4
    before = of_norms(net)
    train(net.train(), x, torch.optim.SGD(net.parameters(), 0.1, weight_decay=0.1))
    after = of_norms(net)
    assert {key for key in after if torch.equal(after[key], before[key])} == {
        "1.weight", "1.bias", "4.weight", "4.bias",
    }  # fmt: skip
    assert net[1].training
    assert not net.eval()[1].training


# Which


class Backwards(nn.Module):
    """Registered in another order than they are run in; one is not run at all."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.unreached = nn.BatchNorm1d(3)
        self.body = nn.ModuleDict({"b": nn.BatchNorm1d(3), "a": nn.BatchNorm1d(3)})
        self.stem = nn.BatchNorm1d(3)

    def forward(self, v: Tensor) -> Tensor:
        return self.head(self.body["b"](self.body["a"](self.stem(v))))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"first": 1}, {"stem"}),
        ({"first": 2}, {"stem", "body.a"}),
        ({"first": 9}, {"stem", "body.a", "body.b", "head.1"}),
        ({"until": "stem"}, {"stem"}),
        ({"until": "body.a"}, {"stem", "body.a"}),
        ({"until": "head.0"}, {"stem", "body.a", "body.b"}),
        ({"until": "head"}, {"stem", "body.a", "body.b", "head.1"}),
        ({"until": "body.b", "first": 1}, {"stem"}),
        ({"first": 3, "only": "body"}, {"body.a", "body.b"}),
        ({"only": "body"}, {"body.a", "body.b"}),
        ({"only": ["body", "!body.a"]}, {"body.b"}),
        ({"only": "!stem"}, {"head.1", "unreached", "body.a", "body.b"}),
        ({"only": "*.[ab]"}, {"body.a", "body.b"}),
        ({}, {"head.1", "unreached", "body.a", "body.b", "stem"}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",  # a set has no order of its own
)
@pytest.mark.parametrize("training", [True, False])
def test_those_that_are_asked_for(options: dict[str, Any], expected: set[str], training: bool) -> None:
    model = season(Backwards()).train(training)
    before = state(model)
    surgery = bn.freeze(model, inputs=torch.randn(4, 3), **options)
    assert set(surgery.report.statistics) == expected
    assert set(reasons(surgery).values()) <= {"not-selected"}
    assert len(surgery.plan.sites) == 5
    assert same(state(model), before)
    assert {p for p, m in surgery.model.named_modules() if "train" in vars(m)} == expected


def test_until_the_last_call_of_a_module() -> None:
    norms = {name: nn.BatchNorm1d(3) for name in "abc"}
    model = season(Apply(lambda m, v: m.a(m.act(m.b(m.act(m.c(v))))), act=nn.ReLU(), **norms))
    surgery = bn.freeze(model, until="act", inputs=torch.randn(4, 3))
    assert surgery.report.statistics == ("b", "c")


def test_the_inputs_are_guessed(net: nn.Module) -> None:
    assert bn.freeze(net, first=1).report.statistics == ("1",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stats": False, "affine": False}, "both are False"),
        ({"first": 0}, "first: expected a positive number, it is 0"),
        ({"until": "layer9"}, "until: 'layer9' is not called"),
        ({"only": "layer9"}, "only: 'layer9' matches no BatchNorm"),
    ],
    ids=str,
)
def test_wrong_options_are_named(net: nn.Module, options: dict[str, Any], message: str) -> None:
    before = everything(net)
    with pytest.raises(bn.UsageError, match=message):
        bn.freeze(net, inplace=True, **options)
    assert everything(net) == before


def test_a_model_that_does_not_run_has_no_order(net: nn.Module) -> None:
    with pytest.raises(bn.CaptureError, match="does not run"):
        bn.freeze(net, first=1, inputs=torch.randn(2, 7, 9, 9))
    assert bn.freeze(net, inputs=torch.randn(2, 7, 9, 9)).report.statistics == ("1", "4")  # nobody asked


# And back


def everything(model: nn.Module) -> dict[str, Any]:
    """Every attribute of every module as it is, what it holds by identity, and every byte of its tensors."""
    found: dict[str, Any] = {}
    for path, module in nn.Module.named_modules(model, remove_duplicate=False):
        for name, value in vars(module).items():
            inner = [(key, id(each)) for key, each in value.items()] if isinstance(value, dict) else value
            found[f"{path} {name}"] = id(value), inner if isinstance(inner, list | bool | int | float) else ""
        found[f"{path} class"] = type(module)
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                found[f"{path} {name} bits"] = tensor.detach().flatten().tolist(), tensor.requires_grad
    return found


def mixed(model: nn.Module) -> nn.Module:
    model[1].eval()
    model[3].eval()
    model[4].bias.requires_grad_(False)
    return model


MODES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "train": lambda model: model.train(),
    "eval": lambda model: model.eval(),
    "mixed": lambda model: mixed(model.train()),
    "mixed in eval": lambda model: mixed(model.eval())[4].train() and model,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"stats": False}, {"only": "4"}, {"first": 1}], ids=str
)
def test_unfreeze_undoes_freeze(net: nn.Module, mode: str, options: dict[str, Any]) -> None:
    MODES[mode](net)
    net[1].register_forward_hook(lambda *_: None)
    net[1].note = "theirs"
    before = everything(net)
    bn.freeze(net, inplace=True, **options)
    assert everything(net) != before
    surgery = bn.unfreeze(net, inplace=True)
    assert everything(net) == before
    assert surgery.report == type(surgery.report)((), ())
    assert reasons(bn.unfreeze(net)) == {"1": "not-frozen", "4": "not-frozen"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "steps",
    [
        [{}, {}],
        [{"affine": False}, {"stats": False}],
        [{"stats": False}, {"affine": False}],
        [{"stats": False}, {}, {"affine": False}],
        [{"only": "1", "affine": False}, {}],
    ],
    ids=str,
)
def test_what_is_frozen_twice_is_unfrozen_once(
    net: nn.Module, x: Tensor, mode: str, steps: list[dict[str, Any]]
) -> None:
    MODES[mode](net)
    before = everything(net)
    for options in steps:
        bn.freeze(net, inplace=True, **options)
    assert not moves(net, x)
    assert not any(net[at].weight.requires_grad or net[at].bias.requires_grad for at in (1, 4))
    bn.unfreeze(net, inplace=True)
    assert everything(net) == before


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_the_mode_is_the_one_that_it_was_told_last(net: nn.Module, before: bool, told: bool) -> None:
    net.train(before)
    bn.freeze(net, inplace=True)
    net.train(not told)
    net.train(told)
    bn.freeze(net, inplace=True)  # which tries it out, and tells it this and that
    bn.unfreeze(net, inplace=True)
    assert net[1].training is net[4].training is told


def test_a_part_is_unfrozen(net: nn.Module) -> None:
    bn.freeze(net, inplace=True)
    surgery = bn.unfreeze(net, "4", inplace=True)
    assert surgery.report.statistics == ("1",)
    assert reasons(surgery) == {"1": "not-selected"}
    assert (net[1].training, net[4].training) == (False, True)


def test_train_and_eval_return_the_module(net: nn.Module) -> None:
    bn.freeze(net, inplace=True)
    for norm in (net[1], net[4]):
        assert norm.train() is norm
        assert norm.train(False) is norm
        assert norm.eval() is norm
        with pytest.raises(ValueError, match="boolean"):  # as torch does
            norm.train("yes")
    assert net.train() is net


@pytest.mark.parametrize("verb", [bn.freeze, bn.unfreeze])
def test_the_argument_is_left_alone(net: nn.Module, x: Tensor, verb: Callable[..., Any]) -> None:
    if verb is bn.unfreeze:
        bn.freeze(net, inplace=True)
    else:
        net(x).sum().backward()
    before, gradients = everything(net), [parameter.grad for parameter in net.parameters()]
    other = verb(net).model
    assert other is not net
    assert everything(net) == before
    assert all(a is b.grad for a, b in zip(gradients, net.parameters(), strict=True))
    assert verb(net, inplace=True).model is net
    assert everything(net) != before


def failing(count: int) -> Callable[..., None]:
    """`freeze_`, and Ctrl-C when it has done something to the second."""
    calls: list[nn.Module] = []

    def freeze(module: nn.Module, **options: bool) -> None:
        freeze_(module, **options)
        calls.append(module)
        if len(calls) == count:
            raise KeyboardInterrupt

    return freeze


@pytest.mark.parametrize("already", [True, False])
def test_what_ends_in_the_middle_leaves_no_trace(
    net: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch, already: bool
) -> None:
    if already:
        bn.freeze(net, stats=False, inplace=True)
        net[1].weight.requires_grad_(True)
    net(x).sum().backward()
    before, gradients = everything(net), [parameter.grad for parameter in net.parameters()]
    assert net[1].weight.grad is not None
    how = vars(net[1]).get("train")
    remembered = copy.copy(vars(how)) if isinstance(how, Frozen) else None
    with monkeypatch.context() as patch:
        patch.setattr("bntools.core.graft.freeze_", failing(2))
        with pytest.raises(KeyboardInterrupt):
            bn.freeze(net, inplace=True)
    assert everything(net) == before
    assert all(a is b.grad for a, b in zip(gradients, net.parameters(), strict=True))
    assert vars(net[1]).get("train") is how
    assert how is None or vars(how) == remembered
    bn.freeze(net, inplace=True)
    assert everything(net) != before


def test_what_was_removed_since_is_not_missed(net: nn.Module) -> None:
    bn.freeze(net, "1", inplace=True)
    net[1].bias = None
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    assert bn.freeze(net, "1", optimizer=optimizer, inplace=True).report.held == ("1.weight",)
    bn.unfreeze(net, inplace=True)
    assert net[1].weight.requires_grad


def test_a_batchnorm_without_a_model(x: Tensor) -> None:
    model = season(nn.BatchNorm2d(3))
    surgery = bn.freeze(model, inplace=True)
    assert surgery.report.statistics == ("",)
    assert surgery.report.parameters == ("weight", "bias")
    assert not moves(model, x)


# With the other verbs


def test_a_frozen_model_folds_in_training_mode(net: nn.Module, x: Tensor) -> None:
    assert len(bn.fold(net, x).plan.refusals) == 2  # it goes by the batch
    frozen = bn.freeze(net).model.train()
    before = everything(frozen)
    surgery = bn.fold(frozen, x)
    assert surgery.plan.refusals == ()
    assert surgery.report.verdict is bn.Verdict.PASSED
    torch.testing.assert_close(surgery.model(x), frozen(x))
    assert surgery.model.training
    assert everything(frozen) == before


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("include", [True, False])
def test_recalibrate_leaves_frozen_statistics_alone(
    net: nn.Module, x: Tensor, training: bool, include: bool
) -> None:
    bn.freeze(net, "1", inplace=True)
    net.train(training)
    before = of_norms(net)
    surgery = bn.recalibrate(net, [x], include_frozen=include, inplace=True)
    assert reasons(surgery) == ({} if include else {"1": "frozen"})
    after = of_norms(net)
    assert torch.equal(after["1.running_mean"], before["1.running_mean"]) != include
    assert not torch.equal(after["4.running_mean"], before["4.running_mean"])
    assert not net.train()[1].training
    net.train(training)
    bn.recalibrate(net, [x], include_frozen=include, inplace=True)  # which tells it modes of its own
    bn.unfreeze(net, inplace=True)
    assert net[1].training is training


@pytest.mark.parametrize("training", [True, False])
def test_frozen_only_in_the_affine_part_is_recalibrated(net: nn.Module, x: Tensor, training: bool) -> None:
    bn.freeze(net, stats=False, inplace=True)
    assert reasons(bn.recalibrate(net.train(training), [x])) == {}


# What others get wrong


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["1d", "2d", "3d", "no bias"])
def test_the_round_trip_keeps_what_others_lose(name: str, training: bool) -> None:
    """timm's: momentum, the count of batches, the mode, other dimensions, one of two paths, no bias."""
    norm, x = NORMS[name]()
    norm.momentum = 0.01
    model = Apply(lambda m, v: m.b(m.a(v)), a=norm, b=norm).train(training)
    parameters = [*norm.parameters()]
    bn.freeze(model, inplace=True)
    assert model.a is model.b is norm
    assert not moves(model, x)
    bn.unfreeze(model, inplace=True)
    assert model.a is model.b is norm
    assert (norm.momentum, int(norm.num_batches_tracked), norm.training) == (0.01, 77, training)
    assert all(a is b for a, b in zip(parameters, norm.parameters(), strict=True))
    assert moves(model, x)


def test_it_does_not_normalise_by_the_batch() -> None:
    """As without ``track_running_stats``, which Lightning's switches off, or with a momentum of 0."""
    model = alone(nn.BatchNorm1d(3))
    x = torch.randn(64, 3) + 5
    expected = copy.deepcopy(model).eval()(x).mean(0)
    theirs = copy.deepcopy(model).train()
    theirs[0].track_running_stats = False
    still = copy.deepcopy(model).train()
    still[0].momentum = 0.0
    for other in (theirs, still):
        assert not torch.allclose(other(x).mean(0), expected, atol=0.5)
    assert torch.equal(bn.freeze(model).model.train()(x).mean(0), expected)
    with pytest.raises(ValueError, match="more than 1 value"):
        still(x[:1])
    assert bn.freeze(model).model.train()(x[:1]).shape == (1, 3)  # a batch of one


def test_the_type_of_the_output_is_that_of_the_input() -> None:
    model = bn.freeze(alone(nn.BatchNorm2d(3)).half()).model.train()
    assert model(torch.randn(2, 3, 4, 4).half()).dtype == torch.float16

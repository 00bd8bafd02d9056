"""BatchNorms that stay and become an addition or a multiply-add: which may, and that it is right."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

import bntools as bn
from bntools.__main__ import main
from bntools.core import faster, reduce
from bntools.core.graft import graft_
from bntools.core.plan import Op
from bntools.core.planning import plan_folds
from bntools.norms import ChannelAffine
from tests import by_hand
from tests.laws.graphs import Recipe, built, example, limits
from tests.laws.test_laws import check_kept, outputs
from tests.must_fold import BatchNormReLU
from tests.season import season

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def all_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduce, "faster", lambda *kind: frozenset(Op))


class Readers(nn.Module):
    """One convolution, and two BatchNorms that read it: one at most can go."""

    def __init__(self, act: Callable[[Tensor], Tensor] = torch.relu, kind: type = nn.BatchNorm2d) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), kind(6)
        self.a, self.b, self.act = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1), act

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y: Tensor = self.a(self.act(self.one(x))) + self.b(self.act(self.two(x)))
        return y


def seasoned(net: nn.Module, *, positive: bool = False) -> nn.Module:
    torch.manual_seed(0)
    net = season(net, example=X).eval()
    if positive:
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.data.abs_()
    return net


def folded(net: nn.Module, x: Tensor = X) -> bn.Surgery:
    surgery = by_hand.folded(net, x, simplify=True)
    assert surgery.report.verdict == "passed"
    assert {site.name for site in surgery.report.sites} == {c.site.name for c in surgery.plan.changes}
    return surgery


def left(surgery: bn.Surgery) -> dict[str, Op]:
    return {reduction.site.name: reduction.op for reduction in surgery.plan.reductions}


@pytest.mark.usefixtures("all_faster")
def test_where_the_scale_passes_and_the_shift_does_not_an_addition_is_left() -> None:
    net = seasoned(Readers(), positive=True)
    surgery = folded(net)
    assert [edit.site.name for edit in surgery.plan.edits] == ["one"]
    assert left(surgery) == {"two": Op.SHIFT}
    assert [r.site.name for r in surgery.plan.refusals] == ["two"]
    shift = surgery.model.two
    assert type(shift) is ChannelAffine
    assert shift.weight is None
    kept = [torch.equal(getattr(surgery.model, name).weight, getattr(net, name).weight) for name in "ab"]
    assert not all(kept), "a reader took a scale in"


@pytest.mark.usefixtures("all_faster")
@pytest.mark.parametrize(
    "net",
    [
        pytest.param(seasoned(Readers()), id="a ReLU, and a scale of both signs"),
        pytest.param(seasoned(Readers(torch.sigmoid), positive=True), id="a sigmoid"),
    ],
)
def test_where_the_scale_does_not_pass_a_multiply_add_is_left(net: nn.Module) -> None:
    surgery = folded(net)
    stayed = {r.site.name for r in surgery.plan.refusals}
    assert stayed
    assert left(surgery) == dict.fromkeys(stayed, Op.AFFINE)
    for name in stayed:
        assert surgery.model.get_submodule(name).weight is not None


def test_nothing_changes_where_nothing_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    net = seasoned(Readers(), positive=True)
    monkeypatch.setattr(reduce, "faster", lambda *kind: frozenset())
    assert bn.fold(net, X, simplify=True).plan.to_json() == bn.fold(net, X).plan.to_json()
    monkeypatch.setattr(reduce, "faster", lambda *kind: frozenset({Op.AFFINE}))
    assert left(folded(net)) == {"two": Op.AFFINE}, "an addition is not faster, so the scale stays"


@pytest.mark.usefixtures("all_faster")
def test_what_the_module_does_besides_is_kept() -> None:
    surgery = folded(seasoned(Readers(torch.sigmoid, BatchNormReLU)))
    assert left(surgery)["two"] is Op.AFFINE
    kept: Any = surgery.model.two
    assert [name for name, _ in kept.named_children()] == ["affine", "act0"]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(torch.sigmoid(self.norm(torch.tanh(self.norm(torch.tanh(x))))))
        return y


class Once(Twice):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(torch.sigmoid(self.norm(torch.tanh(x))))
        return y


def hooked() -> nn.Module:
    net = Once()
    net.norm.register_forward_hook(lambda *a: None)
    return net


def instance() -> nn.Module:
    """Its statistics are its own; another time the input may have no batch, and channels in front."""
    net = Once()
    net.norm = nn.InstanceNorm2d(3, affine=True, track_running_stats=True)
    return net


def training() -> nn.Module:
    net = Once().eval()
    net.norm.train()
    return net


@pytest.mark.usefixtures("all_faster")
@pytest.mark.parametrize(
    ("make", "goes"), [(Once, True), (Twice, False), (hooked, False), (training, False), (instance, False)]
)
def test_only_what_is_called_once_and_by_its_own_statistics(
    make: Callable[[], nn.Module], goes: bool
) -> None:
    net = season(make(), example=X)
    net.conv.eval()
    if make is not training:
        net.eval()
    surgery = bn.fold(net, X, simplify=True)
    assert left(surgery) == ({"norm": Op.AFFINE} if goes else {})
    assert type(surgery.model.norm) is (ChannelAffine if goes else type(net.norm))


@pytest.mark.usefixtures("all_faster")
def test_nothing_can_stand_for_a_batchnorm_that_is_the_model_itself() -> None:
    alone = bn.fold(seasoned(nn.BatchNorm2d(3)), X, simplify=True)
    assert (left(alone), [r.reason for r in alone.plan.refusals]) == ({}, [bn.Reason.NO_HOST])
    assert left(folded(seasoned(nn.Sequential(nn.BatchNorm2d(3))))) == {"0": Op.AFFINE}


class WithItsReader(nn.BatchNorm2d):
    def __init__(self) -> None:
        super().__init__(3)
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = self.conv(super().forward(input))
        return y


def test_nor_for_one_that_holds_its_reader() -> None:
    surgery = bn.fold(seasoned(WithItsReader()), X)
    assert [(r.site.name, r.reason) for r in surgery.plan.refusals] == [("", bn.Reason.SUBCLASS)]
    inside = bn.fold(seasoned(nn.Sequential(WithItsReader())), X)
    assert [edit.into for edit in inside.plan.edits] == [("0.conv",)]


@pytest.mark.usefixtures("all_faster")
def test_the_parameters_are_as_those_before() -> None:
    net: Any = seasoned(Once())
    net.norm.requires_grad_(False)
    made: Any = bn.fold(net, X, simplify=True).model
    assert not any(p.requires_grad for p in made.norm.parameters())
    assert all(p.requires_grad for p in made.conv.parameters())
    bare: Any = Once()
    bare.norm = nn.BatchNorm2d(3, affine=False)
    made = bn.fold(seasoned(bare), X, simplify=True).model
    assert not any(p.requires_grad for p in made.norm.parameters())
    half: Any = bn.fold(seasoned(Once()).to(torch.bfloat16), X.bfloat16(), simplify=True).model
    assert half.norm.weight.dtype is half.norm.bias.dtype is torch.bfloat16


@pytest.mark.usefixtures("all_faster")
@settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(limits())
def test_what_folds_folds_as_before_and_the_rest_is_right(recipe: Recipe) -> None:
    model, x = built(recipe).eval(), example(recipe)
    before = outputs(copy.deepcopy(model), x)
    surgery = bn.fold(model, x, simplify=True, verify=False)
    check_kept(before, outputs(surgery.model, x))
    plain = bn.fold(model, x, verify=False).plan
    assert [e.site for e in surgery.plan.edits] == [e.site for e in plain.edits]
    assert {*left(surgery)} <= {refusal.site.name for refusal in plain.refusals}


@pytest.mark.usefixtures("all_faster")
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("act", [torch.relu, torch.sigmoid])
def test_it_is_saved_and_replayed(suffix: str, act: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    surgery = folded(seasoned(Readers(act, BatchNormReLU), positive=True))
    assert surgery.plan.reductions
    path = bn.save(surgery, tmp_path / f"net{suffix}")
    if suffix == ".pt":
        again = bn.load(path, trust=["tests", "bntools.norms"], unsafe=True)
    else:
        again = bn.replay(path, Readers(act, BatchNormReLU).eval())
    assert torch.equal(again(X), surgery.model(X))


def test_a_file_with_it_opens_safely(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 1), ChannelAffine(2))
    torch.save(net, tmp_path / "net.pt")
    assert torch.equal(bn.load(tmp_path / "net.pt")(X), net(X))


def test_it_is_about_modules() -> None:
    with pytest.raises(bn.UsageError, match="simplify"):
        bn.fold(seasoned(Readers()), X, level="program", simplify=True)


@pytest.mark.parametrize(
    ("shape", "dims"), [((4, 3), 1), ((4, 3, 5), 1), ((2, 3, 4, 5), 2), ((2, 3, 2, 4, 5), 3)]
)
def test_a_channel_affine_is_what_a_batchnorm_computes(shape: tuple[int, ...], dims: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape).double()
    norm: Any = (
        season([nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d][dims](3)).double().eval()
    )
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    layer, shift = ChannelAffine(3, dtype=torch.double), ChannelAffine(3, scale=False, dtype=torch.double)
    with torch.no_grad():
        layer.weight.copy_(scale)
        for each in (layer, shift):
            each.bias.copy_(norm.bias - scale * norm.running_mean)
    assert torch.allclose(layer(x), norm(x), rtol=1e-12, atol=1e-12)
    along = [1, 3, *[1] * (len(shape) - 2)]
    assert torch.allclose(shift(x * scale.view(along)), norm(x), rtol=1e-12, atol=1e-12)


def test_measuring_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    faster.faster((2, 3, 4, 4), (48, 16, 4, 1), torch.float32, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)


def test_faster_is_what_takes_less_than_nine_tenths(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(layer: nn.Module, x: Tensor, calls: int) -> float:
        kind = (
            ("affine" if layer.weight is not None else "shift")
            if isinstance(layer, ChannelAffine)
            else "norm"
        )
        return {"norm": 1.0, "shift": 0.89, "affine": 0.91}[kind]

    monkeypatch.setattr(faster, "_time", told)
    kind = (2, 3, 8, 8), (192, 64, 8, 1), torch.float32, torch.device("cpu")
    found: Collection[Op] = faster.faster(*kind)
    assert found == {Op.SHIFT}


@pytest.mark.usefixtures("all_faster")
@pytest.mark.parametrize(
    "wrong",
    [
        {"removes": []},
        {"removes": ["nowhere"]},
        {"removes": ["stem"]},
        {"removes": ["stem.weight"]},
        {"op": "affine"},
        {"keeps": [{"name": "affine", "op": "ReLU", "args": []}]},
        {"keeps": [{"name": "act0", "op": "Module", "args": []}]},
        {"site": {"channels": 7}},
    ],
    ids=lambda wrong: json.dumps(wrong),
)
def test_a_plan_that_does_not_fit_changes_nothing(wrong: dict[str, Any]) -> None:
    net = seasoned(Readers(), positive=True)
    plan, tensors = plan_folds(net, bn.Example((X,)), simplify=True)
    raw = json.loads(plan.to_json())
    (reduction,) = raw["reductions"]
    site = {**reduction["site"], **wrong.get("site", {})}
    raw["reductions"] = [{**reduction, **wrong, "site": site}]
    before, modules = copy.deepcopy(net.state_dict()), [*net.modules()]
    with pytest.raises(bn.PlanError):
        graft_(net, bn.Plan.from_json(json.dumps(raw)), tensors)
    assert [*net.modules()] == modules
    assert all(torch.equal(t, before[key]) for key, t in net.state_dict().items())


@pytest.mark.usefixtures("all_faster")
def test_the_command_line_says_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = nn.Sequential(nn.Sigmoid(), nn.BatchNorm2d(3), nn.Sigmoid(), nn.Conv2d(3, 2, 1))
    file = tmp_path / "net.pt"
    torch.save(seasoned(net), file)
    assert main(["fold", str(file), "--input", "2x3x8x8", "--simplify"]) == 0
    screen = capsys.readouterr().out
    assert "reduced     1 to a multiply-add for each channel: 1" in screen
    assert torch.allclose(bn.load(tmp_path / "net.folded.pt")(X), net(X), atol=1e-6)
    assert (
        main(["fold", str(file), "--input", "2x3x8x8", "--simplify", "--dry-run", "--format", "markdown"])
        == 0
    )
    assert "; it becomes a multiply-add for each channel" in capsys.readouterr().out
    assert main(["fold", str(file), "--simplify", "-o", str(tmp_path / "net.onnx")]) == 2
    assert "simplify" in capsys.readouterr().err

"""Convolutions that pad with a value for each channel, so that a BatchNorm in front of them can go."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

import bntools as bn
from bntools.__main__ import main
from bntools.core import pad
from bntools.core.faster import pad_costs
from bntools.core.graft import graft_
from bntools.core.plan import Op
from bntools.core.planning import plan_folds
from bntools.norms import PaddedConv1d, PaddedConv2d, PaddedConv3d
from bntools.norms.padded import pad_with_
from tests import by_hand
from tests.laws.graphs import Recipe, built, example, limits
from tests.laws.test_laws import check_kept, outputs
from tests.season import season

X = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pad, "pad_costs", lambda *kind: (1.0, 0.0))


def between(conv: nn.Module, dims: int = 2) -> nn.Sequential:
    """A BatchNorm that only the layer behind it could take."""
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    return season(nn.Sequential(nn.Sigmoid(), norm(3), conv)).eval()


def folded(net: nn.Module, x: Tensor = X, **more: Any) -> bn.Surgery:
    return by_hand.folded(net, x, pad_exact=True, **more)


@pytest.mark.usefixtures("pays")
@pytest.mark.parametrize(
    ("conv", "dims", "kind"),
    [
        (nn.Conv1d(3, 4, 3, padding=2), 1, PaddedConv1d),
        (nn.Conv2d(3, 4, 3, padding=1, bias=False), 2, PaddedConv2d),
        (nn.Conv2d(3, 6, (1, 3), padding=(0, 1), groups=3), 2, PaddedConv2d),
        (nn.Conv2d(3, 4, (5, 2), padding="same", dilation=2), 2, PaddedConv2d),
        (nn.Conv2d(3, 4, 3, stride=2, padding=1), 2, PaddedConv2d),
        (nn.Conv3d(3, 2, 3, padding=(1, 0, 2)), 3, PaddedConv3d),
    ],
    ids=str,
)
def test_a_batchnorm_goes_into_a_convolution_that_pads(conv: nn.Module, dims: int, kind: type) -> None:
    x = torch.randn(2, 3, *(7, 9, 6)[:dims])
    net = between(conv, dims)
    assert not bn.fold(net, x).plan.edits, "with zeros it cannot"
    surgery = folded(net, x)
    assert surgery.report.verdict == "passed"
    assert len(surgery.plan.edits) == 1
    assert type(surgery.model[2]) is kind
    assert type(net[2]) is type(conv)
    x.requires_grad_(True)
    (grad,) = torch.autograd.grad(surgery.model(x).square().sum(), x)
    (old,) = torch.autograd.grad(net(x).square().sum(), x)
    assert torch.allclose(grad, old, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("pays")
def test_channels_last_and_no_batch() -> None:
    net = between(nn.Conv2d(3, 4, 3, padding=1)).to(memory_format=torch.channels_last)
    surgery = folded(net, X.to(memory_format=torch.channels_last))
    assert len(surgery.plan.edits) == 1
    conv = surgery.model[2]
    assert torch.allclose(conv(X[0]), conv(X)[0], atol=1e-5)


class Mixer(nn.Module):
    """One BatchNorm read by a depthwise convolution that pads, and by the sum behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 2, stride=2), nn.BatchNorm2d(8)
        self.depth, self.behind = nn.Conv2d(8, 8, 5, padding="same", groups=8), nn.Conv2d(8, 8, 1)
        self.point = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(nn.functional.gelu(self.first(x)))
        x = self.behind(nn.functional.gelu(self.depth(x))) + x
        y: Tensor = self.point(x)
        return y


@pytest.mark.usefixtures("pays")
def test_what_reads_it_besides_has_to_take_the_same_map() -> None:
    net = season(Mixer(), example=X).eval()
    assert not bn.fold(net, X).plan.edits
    (edit,) = folded(net).plan.edits
    assert set(edit.into) == {"depth", "behind", "point"}


@pytest.mark.usefixtures("pays")
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(3, 4, 3, padding=1),
        type("Own", (nn.Conv2d,), {})(3, 4, 3, padding=1),
    ],
    ids=["another kind of padding", "transposed", "a class of their own"],
)
def test_only_zeros_of_torchs_own_convolutions(conv: nn.Module) -> None:
    net = between(conv)
    surgery = folded(net)
    assert type(surgery.model[2]) is type(conv)
    assert not any(host.pad for host in surgery.plan.hosts)


@pytest.mark.usefixtures("pays")
def test_a_scale_of_zero_leaves_nothing_that_could_be_padded() -> None:
    net = between(nn.Conv2d(3, 4, 3, padding=1))
    with torch.no_grad():
        net[1].weight[1] = 0.0
    assert not folded(net).plan.edits


def test_it_is_taken_only_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    net = between(nn.Conv2d(3, 4, 3, padding=1))
    for extra, goes in ((0.89, 1), (0.91, 0)):
        monkeypatch.setattr(pad, "pad_costs", lambda *kind, extra=extra: (1.0, extra))
        assert len(bn.fold(net, X, pad_exact=True).plan.edits) == goes


def test_what_is_measured_leaves_the_convolution_alone() -> None:
    conv, seen = nn.Conv2d(3, 4, 3, padding=1), []
    conv.register_forward_hook(lambda *a: seen.append(a))
    before = dict(vars(conv))
    norm, extra = pad_costs(X.shape, X.stride(), torch.zeros(3), [conv])
    assert norm > 0
    assert extra == extra
    assert not seen
    assert type(conv) is nn.Conv2d
    assert vars(conv) == before
    assert not conv._buffers


@pytest.mark.usefixtures("pays")
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_it_is_saved_and_replayed(suffix: str, tmp_path: Path) -> None:
    surgery = folded(season(Mixer(), example=X).eval())
    path = bn.save(surgery, tmp_path / f"net{suffix}")
    if suffix == ".pt":
        again: nn.Module = bn.load(path, unsafe=True)
    else:
        again = bn.replay(path, Mixer().eval())
    assert torch.equal(again(X), surgery.model(X))
    assert type(again.depth) is PaddedConv2d


@pytest.mark.usefixtures("pays")
@pytest.mark.parametrize(
    "wrong",
    [{"pad": "1.pad_value"}, {"pad": "2.weight"}, {"path": "1"}, {"path": ""}, {"pad": ""}],
    ids=lambda wrong: json.dumps(wrong),
)
def test_a_plan_that_does_not_fit_changes_nothing(wrong: dict[str, Any]) -> None:
    net = between(nn.Conv2d(3, 4, 3, padding=1))
    plan, tensors = plan_folds(net, bn.Example((X,)), pad=True)
    raw = json.loads(plan.to_json())
    raw["hosts"] = [{**raw["hosts"][0], **wrong}]
    before, modules = copy.deepcopy(net.state_dict()), [*net.modules()]
    kinds = [*map(type, modules)]
    with pytest.raises(bn.PlanError):
        graft_(net, bn.Plan.from_json(json.dumps(raw)), tensors)
    assert [*net.modules()] == modules
    assert [*map(type, modules)] == kinds
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(t, before[key]) for key, t in net.state_dict().items())


@pytest.mark.usefixtures("pays")
def test_an_attribute_of_that_name_is_left_alone() -> None:
    net: Any = between(nn.Conv2d(3, 4, 3, padding=1))
    plan, tensors = plan_folds(net, bn.Example((X,)), pad=True)
    net[2].pad_value = 7
    assert not bn.fold(net, X, pad_exact=True).plan.edits
    with pytest.raises(bn.PlanError, match=r"there is something at 2.pad_value"):
        graft_(net, plan, tensors)


@pytest.mark.usefixtures("pays")
def test_a_graft_is_undone() -> None:
    net = between(nn.Conv2d(3, 4, 3, padding=1))
    before = net(X)
    plan, tensors = plan_folds(net, bn.Example((X,)), pad=True)
    undo = graft_(net, plan, tensors)
    assert type(net[2]) is PaddedConv2d
    undo()
    assert type(net[2]) is nn.Conv2d
    assert "pad_value" not in dict(net[2].named_buffers())
    assert torch.equal(net(X), before)


@pytest.mark.usefixtures("pays")
def test_together_with_what_is_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bntools.core.reduce.faster", lambda *kind: frozenset(Op))
    norms, conv = [nn.BatchNorm2d(3), nn.BatchNorm2d(3)], nn.Conv2d(3, 4, 3, padding=1)
    net = season(nn.Sequential(nn.Sigmoid(), norms[0], nn.Tanh(), norms[1], conv)).eval()
    surgery = folded(net, simplify=True)
    assert [e.site.name for e in surgery.plan.edits] == ["3"]
    assert [r.site.name for r in surgery.plan.reductions] == ["1"]


def test_a_padded_convolution_is_one_of_padded_values() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, (3, 2), padding=(1, 2), bias=False)
    value, x = torch.tensor([3.0, -2.0]), torch.randn(2, 2, 4, 5)
    wide = value.view(1, 2, 1, 1).expand(2, 2, 6, 9).clone()
    wide[..., 1:-1, 2:-2] = x
    expected = nn.functional.conv2d(wide, conv.weight)
    pad_with_(conv, value)
    assert torch.allclose(conv(x), expected, atol=1e-6)


def test_it_is_about_modules() -> None:
    with pytest.raises(bn.UsageError, match="pad_exact"):
        bn.fold(between(nn.Conv2d(3, 4, 3, padding=1)), X, level="program", pad_exact=True)


@pytest.mark.usefixtures("pays")
def test_the_command_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(between(nn.Conv2d(3, 4, 3, padding=1)), tmp_path / "net.pt")
    command = ["fold", str(tmp_path / "net.pt"), "--input", "2x3x7x9", "--pad-exact"]
    assert main(command) == 0
    assert "padded      1 with a value for each channel: 2" in capsys.readouterr().out
    assert type(bn.load(tmp_path / "net.folded.pt")[2]) is PaddedConv2d


@pytest.mark.usefixtures("pays")
@settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(limits())
def test_on_random_graphs_it_is_right_and_never_folds_less(recipe: Recipe) -> None:
    model, x = built(recipe).eval(), example(recipe)
    before = outputs(copy.deepcopy(model), x)
    surgery = bn.fold(model, x, pad_exact=True, verify=False)
    check_kept(before, outputs(surgery.model, x))
    assert len(surgery.plan.edits) >= len(bn.fold(model, x, verify=False).plan.edits)

"""What must fold, what must not, and the manners of a fold."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bntools as bn
from bntools.core.capture import fingerprint
from tests.must_fold import CASES as MUST
from tests.must_fold import Case as Must
from tests.must_fold import finished, x
from tests.must_not_fold import CASES as MUST_NOT
from tests.must_not_fold import Case as MustNot
from tests.season import season


def state(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that a verb must leave alone."""
    return {
        **{f"mode {n}": m.training for n, m in model.named_modules()},
        **{f"class {n}": type(m) for n, m in model.named_modules()},
        **{f"hooks {n}": len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in model.named_modules()},
        **{
            n: (id(t), t.detach().clone(), t.requires_grad)
            for n, t in model.named_parameters(remove_duplicate=False)
        },
        **{n: (id(t), t.clone(), False) for n, t in model.named_buffers(remove_duplicate=False)},
    }


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    def equal(one: Any, two: Any) -> bool:
        if not isinstance(one, tuple):
            return bool(one == two)
        return (
            one[0] == two[0] and torch.equal(one[1].nan_to_num(7), two[1].nan_to_num(7)) and one[2] == two[2]
        )

    return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)


def prepared(case: Must | MustNot) -> nn.Module:
    model = case.build()
    if isinstance(case, MustNot):
        model.train(case.train)
    elif case.name != "frozen-bn-in-training-model":
        model.eval()
    return finished(season(model))


@pytest.mark.parametrize("case", MUST, ids=lambda c: c.name)
def test_must_fold(case: Must) -> None:
    model = prepared(case)
    before, rng = state(model), torch.get_rng_state()
    surgery = bn.fold(model, case.inputs, bake=case.bake)
    assert len(surgery.plan.edits) == case.fold, surgery.plan.refusals
    assert len(surgery.plan.refusals) == case.stay
    assert surgery.report.verdict is bn.Verdict.PASSED, surgery.report.why
    assert surgery.report.error <= 1e-12
    assert all(site.error <= 1e-12 and site.power > 1e-3 for site in surgery.report.sites)
    assert same(before, state(model)), "the argument was touched"
    assert torch.equal(rng, torch.get_rng_state())
    for edit in surgery.plan.edits:
        gone = surgery.model.get_submodule(edit.removes[0])
        assert type(gone) in (nn.Identity, nn.Sequential)
        assert not hasattr(gone, "running_mean")
    again = bn.fold(surgery.model, case.inputs)
    assert not again.plan.edits
    assert len(again.plan.refusals) == case.stay


@pytest.mark.parametrize("case", MUST_NOT, ids=lambda c: c.name)
def test_must_not_fold(case: MustNot) -> None:
    model = prepared(case)
    before = state(model)
    surgery = bn.fold(model, case.inputs, bake=case.bake)
    assert {r.site.name: r.reason for r in surgery.plan.refusals} == case.refuse
    assert tuple(e.site.name for e in surgery.plan.edits) == case.fold
    assert all(r.detail and r.remedy for r in surgery.plan.refusals)
    assert same(before, state(model))
    if not case.fold:
        assert surgery.report.verdict is bn.Verdict.SKIPPED
        assert [type(m) for m in surgery.model.modules()] == [type(m) for m in model.modules()]


def test_every_reason_is_shown_by_a_case() -> None:
    shown = {reason for case in MUST_NOT for reason in case.refuse.values()}
    elsewhere = {bn.Reason.NOT_CAPTURED, bn.Reason.OVERFLOW}
    others = {"frozen", "not-selected", "tied", "not-frozen", "one-value", "groups", "already", "no-data"}
    assert shown | elsewhere | {bn.Reason(value) for value in others} == set(bn.Reason)
    assert not shown & others


def conv_bn(dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
    net = (
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=False, **options), nn.BatchNorm2d(4), nn.ReLU())
        .to(dtype)
        .eval()
    )
    return season(net)


def test_weights_are_rounded_once_from_float64() -> None:
    net = conv_bn(torch.bfloat16)
    conv, norm = copy.deepcopy(net[0]).double(), copy.deepcopy(net[1]).double()
    folded = bn.fold(net, x(2, 3, 6, 6).bfloat16()).model
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    assert torch.equal(folded[0].weight, (conv.weight * scale.reshape(-1, 1, 1, 1)).bfloat16())
    assert torch.equal(folded[0].bias, (norm.bias - norm.running_mean * scale).bfloat16())


def test_a_new_bias_is_like_its_weight() -> None:
    for grad in (True, False):
        net = conv_bn(torch.float64)
        net[0].weight.requires_grad_(grad)
        bias = bn.fold(net, x(2, 3, 6, 6).double()).model[0].bias
        assert isinstance(bias, nn.Parameter)
        assert (bias.requires_grad, bias.dtype, bias.device) == (grad, torch.float64, net[0].weight.device)


def test_an_old_bias_keeps_its_own_ways() -> None:
    net = season(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval())
    net[0].bias.requires_grad_(False)
    folded = bn.fold(net, x(2, 3, 6, 6)).model
    assert not folded[0].bias.requires_grad
    assert folded[0].weight.requires_grad


def test_memory_format_is_kept() -> None:
    net = conv_bn().to(memory_format=torch.channels_last)
    folded = bn.fold(net, x(2, 3, 6, 6)).model
    assert folded[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_inplace_changes_the_argument_and_only_then() -> None:
    net = conv_bn()
    conv, old = net[0], net[0].weight
    surgery = bn.fold(net, x(2, 3, 6, 6), inplace=True)
    assert surgery.model is net
    assert net[0] is conv
    assert net[0].weight is not old
    assert isinstance(net[1], nn.Identity)


def test_tied_weights_stay_tied() -> None:
    case = next(c for c in MUST if c.name == "tied-weight-same-bn")
    folded = bn.fold(prepared(case), case.inputs).model
    assert folded.a.weight is folded.b.weight
    assert folded.a.bias is not folded.b.bias


def test_aliases_stay_aliases() -> None:
    case = next(c for c in MUST if c.name == "aliases")
    folded = bn.fold(prepared(case), case.inputs).model
    assert folded.conv is folded.twin
    assert folded.bn is folded.again


def test_a_subclass_keeps_its_activation_and_its_keys() -> None:
    case = next(c for c in MUST if c.name == "subclass-with-act-child")
    folded = bn.fold(prepared(case), case.inputs).model
    assert "1.act.weight" in folded.state_dict()
    assert [type(m).__name__ for m in folded[1]] == ["PReLU"]


def test_overflow_is_a_refusal() -> None:
    net = conv_bn(torch.float16)
    with torch.no_grad():
        net[1].running_var[2] = 1e-7
        net[1].weight[2] = 6e4
    surgery = bn.fold(net, x(2, 3, 6, 6).half())
    assert [r.reason for r in surgery.plan.refusals] == [bn.Reason.OVERFLOW]
    assert isinstance(surgery.model[1], nn.BatchNorm2d)


def test_an_integer_weight_is_a_refusal() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.arange(12).reshape(3, 4))

        def forward(self, ids: Tensor) -> Tensor:
            return nn.functional.embedding(ids, self.weight)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.bn = Table(), nn.BatchNorm1d(4).double()

        def forward(self, ids: Tensor) -> Tensor:
            return self.bn(self.table(ids).double())

    surgery = bn.fold(season(Net().eval()), torch.tensor([0, 2]))
    assert [r.reason for r in surgery.plan.refusals] == [bn.Reason.BLOCKED]


def test_a_model_that_does_not_run_has_every_site_refused() -> None:
    surgery = bn.fold(conv_bn(), x(2, 5, 6, 6))
    assert [r.reason for r in surgery.plan.refusals] == [bn.Reason.NOT_CAPTURED]
    assert "2x5x6x6" in surgery.plan.refusals[0].detail
    assert "channels" in surgery.plan.refusals[0].detail


def test_a_forgotten_eval_is_told() -> None:
    surgery = bn.fold(conv_bn().train(), x(2, 3, 6, 6))
    assert [r.reason for r in surgery.plan.refusals] == [bn.Reason.TRAINING]
    assert "eval()" in surgery.plan.refusals[0].remedy


def test_training_mode_leaves_no_trace() -> None:
    net = conv_bn().train()
    before = state(net)
    bn.fold(net, x(2, 3, 6, 6))
    assert same(before, state(net))


def test_baking_leaves_the_original_alone() -> None:
    """torch's own remover deletes a property of the class, which a copy shares with the original."""
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)).eval()
    season(net)
    inputs = x(2, 3, 6, 6)
    before = net(inputs)
    folded = bn.fold(net, inputs, bake=True).model
    assert torch.equal(net(inputs), before)
    assert type(folded[0]) is nn.Conv2d
    assert set(folded.state_dict()) == {"0.weight", "0.bias"}


def test_baking_one_of_two_parametrised_tensors() -> None:
    conv = nn.utils.parametrizations.weight_norm(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), "bias", dim=None
    )
    net = season(nn.Sequential(conv, nn.BatchNorm2d(4)).eval())
    surgery = bn.fold(net, x(2, 3, 6, 6), bake=True)
    assert [r.reason for r in surgery.plan.refusals] == [bn.Reason.COMPUTED_WEIGHT]


def test_a_scripted_or_compiled_model_is_an_error_that_helps() -> None:
    net = conv_bn()
    with pytest.raises(bn.UsageError, match="_orig_mod"):
        bn.fold(torch.compile(net, backend="eager"), x(2, 3, 6, 6))
    with pytest.raises(bn.UsageError, match=r"expected a torch\.nn\.Module"):
        bn.fold([net], x(2, 3, 6, 6))  # type: ignore[arg-type]


def test_control_flow_is_noted_and_its_twin_is_not() -> None:
    case = next(c for c in MUST if c.name == "control-flow-on-data")
    assert "control flow" in bn.fold(prepared(case), case.inputs).plan.notes[0]
    assert not bn.fold(conv_bn(), x(2, 3, 6, 6)).plan.notes


def test_fold_twice_called_models_keep_one_fingerprint() -> None:
    assert fingerprint(conv_bn()) == fingerprint(conv_bn(torch.bfloat16))
    assert fingerprint(conv_bn()) != fingerprint(
        conv_bn(groups=1, padding_mode="zeros").append(nn.Linear(1, 1))
    )

"""Folding the captured program: all that folds in modules, what only a program can, and nothing wrong."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

import bntools as bn
from bntools.core.example import Example
from tests.beside import CASES as BESIDE
from tests.beside import Case as Beside
from tests.must_fold import CASES as MUST
from tests.must_fold import Case as Must
from tests.must_fold import x
from tests.must_not_fold import CASES as MUST_NOT
from tests.must_not_fold import Case as MustNot
from tests.season import season
from tests.verbs.test_fold import prepared, same, state

pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")  # torch's, on copying

REFUSED = {
    # torch.export takes no branch on data, no output that is not a tensor or a container of them, no
    # TorchScript, nothing that looks at a tensor's memory.
    "control-flow-on-data",
    "returned-in-a-closure",
    "returned-in-a-record",
    "returned-in-an-object",
    "read-through-data",
    "statistics-are-read",
    "conv-is-torchscript",
    "bn-is-torchscript",
    "view-of-what-bn-lays-out",
    "view-behind-other-operators",
}
OF_MODULES = {
    # What is about modules, about tensors that calls share, or about who else looks from outside.
    bn.Reason.HOOKED,
    bn.Reason.NO_BIAS,
    bn.Reason.NO_MODULE,
    bn.Reason.RETURNED,
    bn.Reason.SHARED_BN,
    bn.Reason.SHARED_HOST,
    bn.Reason.SIBLING,
    bn.Reason.SUBCLASS,
    bn.Reason.WRITTEN_IN_PLACE,
    # A tied tensor and a layer without a bias stand behind these, and are no obstacle in a program.
    bn.Reason.BLOCKED,
}


def apart(model: nn.Module, other: nn.Module, inputs: object) -> float:
    """max|Δ|/max|reference| in float64, of all outputs."""
    example = Example.of(inputs, model)
    worst = 0.0
    for name in ("own", "double"):
        if name == "double":
            model, other, example = (
                copy.deepcopy(model).double(),
                copy.deepcopy(other).double(),
                example.map(lambda t: t.double() if t.is_floating_point() else t),
            )
        with torch.no_grad():
            ours, theirs = (
                [
                    t
                    for t in pytree.tree_leaves(m(*example.args, **example.kwargs))
                    if isinstance(t, torch.Tensor)
                ]
                for m in (model, other)
            )
        assert [(t.shape, t.dtype) for t in ours] == [(t.shape, t.dtype) for t in theirs]
        worst = max(
            float((a - b).abs().max() / a.abs().max().clamp_min(1e-30))
            for a, b in zip(ours, theirs, strict=True)
        )
    return worst


@pytest.mark.parametrize("case", MUST, ids=lambda c: c.name)
def test_what_folds_in_modules_folds_in_a_program(case: Must) -> None:
    model = prepared(case)
    before = state(model)
    if case.name in REFUSED:
        with pytest.raises(bn.CaptureError):
            bn.fold(model, case.inputs, level="program")
        return
    surgery = bn.fold(model, case.inputs, level="program")
    assert same(before, state(model)), "the argument was touched"
    if case.bake:  # a parametrised weight is computed by the program
        assert {r.reason for r in surgery.plan.refusals} == {bn.Reason.COMPUTED_WEIGHT}
        return
    assert isinstance(surgery.model, fx.GraphModule)
    assert len(surgery.plan.edits) >= case.fold, surgery.plan.refusals
    assert surgery.report.verdict is bn.Verdict.PASSED, surgery.report.why
    assert surgery.report.error <= 1e-12
    assert all(site.error <= 1e-12 and site.power > 1e-3 for site in surgery.report.sites)


@pytest.mark.parametrize("case", MUST_NOT, ids=lambda c: c.name)
def test_what_must_stay_stays_unless_only_its_module_was_in_the_way(case: MustNot) -> None:
    model = prepared(case)
    if case.name in REFUSED:
        with pytest.raises(bn.CaptureError):
            bn.fold(model, case.inputs, level="program")
        return
    surgery = bn.fold(model, case.inputs, level="program")
    gone = {edit.site.module for edit in surgery.plan.edits}
    for site, reason in case.refuse.items():
        assert site not in gone or reason in OF_MODULES
    if surgery.plan.edits:
        assert surgery.report.verdict is bn.Verdict.PASSED, surgery.report.why
        assert surgery.report.error <= 1e-12
    else:
        assert surgery.report.verdict is bn.Verdict.SKIPPED


@pytest.mark.parametrize("case", BESIDE, ids=lambda c: c.name)
def test_layers_side_by_side(case: Beside) -> None:
    model = season(case.build().eval())
    inputs = x(*case.shape)
    surgery = bn.fold(model, inputs, level="program")
    assert {edit.site.module for edit in surgery.plan.edits} == set(case.fold.split())
    assert {refusal.site.module for refusal in surgery.plan.refusals} == set(case.stay.split())
    assert apart(model, surgery.model, inputs) <= 1e-5
    assert case.stay or surgery.report.error <= 1e-12
    left = [m for m in surgery.model.modules() if "batch_norm" in str(getattr(m, "target", ""))]
    assert len(left) == len(case.stay.split())


def test_a_module_says_what_its_program_would_fold() -> None:
    case = next(case for case in BESIDE if case.name == "conv-and-bn")
    plan = bn.fold(season(case.build().eval()), x(*case.shape)).plan
    assert [refusal.reason for refusal in plan.refusals] == [bn.Reason.SIBLING]
    assert "level='program'" in plan.refusals[0].remedy


def test_a_wrong_kernel_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof of a program can fail: a 1 that stands one place beside the middle is found."""
    from bntools.core import merge

    case = next(case for case in BESIDE if case.name == "conv-and-bn")
    right = merge.offset_of
    monkeypatch.setattr(merge, "offset_of", lambda t, h: tuple(o and o - 1 for o in right(t, h) or ()))
    with pytest.raises(bn.PromiseError):
        bn.fold(season(case.build().eval()), x(*case.shape), level="program")


@pytest.mark.parametrize("kwargs", [{"inplace": True}, {"bake": True}], ids=str)
def test_what_is_about_modules_is_refused(kwargs: dict[str, bool]) -> None:
    net = season(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval())
    with pytest.raises(bn.UsageError, match="module"):
        bn.fold(net, x(2, 3, 6, 6), level="program", **kwargs)  # type: ignore[arg-type]


def test_a_level_that_is_none_is_refused() -> None:
    with pytest.raises(bn.UsageError, match="level"):
        bn.fold(nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2), level="graph")  # type: ignore[arg-type]


def test_a_program_takes_other_batches_and_a_batch_of_one_does_too() -> None:
    net = season(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2)).eval())
    surgery = bn.fold(net, x(2, 3, 6, 6), level="program")
    assert [surgery.model(x(n, 3, 6, 6)).shape[0] for n in (1, 2, 5)] == [1, 2, 5]
    alone = bn.fold(net, x(1, 3, 6, 6), level="program")
    assert alone.report.verdict is bn.Verdict.PASSED
    assert alone.model(x(1, 3, 6, 6)).shape == (1, 2)


def test_without_the_proof_it_is_skipped() -> None:
    net = season(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval())
    surgery = bn.fold(net, x(2, 3, 6, 6), level="program", verify=False)
    assert surgery.report.verdict is bn.Verdict.SKIPPED
    assert apart(net, surgery.model, x(2, 3, 6, 6)) <= 1e-6


def test_keywords_and_dicts_keep_their_names() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, image: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
            y = self.bn(self.conv(image))
            return {"map": y * scale, "mean": y.mean((2, 3))}

    net = season(Net().eval())
    inputs = {"image": x(2, 3, 6, 6), "scale": torch.full((2, 1, 1, 1), 0.5)}
    surgery = bn.fold(net, inputs, level="program")
    assert surgery.report.verdict is bn.Verdict.PASSED
    assert set(surgery.model(**inputs)) == {"map", "mean"}

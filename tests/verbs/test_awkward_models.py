"""Models whose code keeps things, counts calls, or looks at its BatchNorm: nothing is lost or wrong."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bntools as bn
from bntools.core.untouched import restore
from tests.must_fold import Apply, x
from tests.must_not_fold import compiled
from tests.season import season


def net(forward: Callable[..., Tensor]) -> Any:
    return season(Apply(forward, conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)).eval())


class Borrowed(nn.Module):
    """A layer without a bias, whose weight is read by a function as well, and the bias that is none."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.bn, self.lin, self.back = nn.BatchNorm1d(4), nn.Linear(4, 3, bias=False), nn.Linear(3, 4)
        self.first = first

    def forward(self, v: Tensor) -> Tensor:
        def borrow(v: Tensor) -> Tensor:
            return torch.nn.functional.linear(v, self.lin.weight, self.lin.bias)

        if self.first:
            return self.lin(self.bn(self.back(borrow(v)).sigmoid()))
        return borrow(self.back(self.lin(self.bn(v))))


@pytest.mark.parametrize("first", [True, False])
def test_no_bias_is_made_that_somebody_else_would_read(first: bool) -> None:
    model = season(Borrowed(first)).eval()
    surgery = bn.fold(model, torch.randn(5, 4))
    assert not surgery.plan.edits
    assert surgery.model.lin.bias is None


def test_attributes_that_the_forward_sets_are_as_they_were() -> None:
    def forward(m: Any, v: Tensor) -> Tensor:
        m.calls += 1
        m.seen = v.shape
        m.mask = torch.ones(1)
        return m.bn(m.conv(v)) * m.calls * m.mask

    model = net(forward)
    model.calls = 0
    model.register_buffer("mask", mask := torch.zeros(1))
    surgery = bn.fold(model, x(2, 3, 6, 6))
    assert surgery.report.verdict is bn.Verdict.PASSED
    for each in (model, surgery.model):
        assert each.calls == 0
        assert not hasattr(each, "seen")
        assert each.mask.item() == 0
    assert model.mask is mask


def test_a_cache_that_the_forward_fills_is_ordinary_afterwards() -> None:
    """What a model keeps from the capture must serve in training too: no inference tensors, no float64."""

    def forward(m: Any, v: Tensor) -> Tensor:
        if "sum" not in m.cache:
            m.cache["sum"] = m.conv.weight.sum()
        return m.bn(m.conv(v)) * m.cache["sum"]

    model = net(forward)
    model.cache = {}
    surgery = bn.fold(model, x(2, 3, 6, 6))
    assert not surgery.plan.edits, "the sum reads the weight"
    assert not model.cache["sum"].is_inference()
    assert model.cache["sum"].dtype is torch.float32
    model.train()(x(2, 3, 6, 6)).sum().backward()


def test_a_tensor_that_is_kept_with_its_history_is_copied() -> None:
    model = net(lambda m, v: m.bn(m.conv(v)) * m.kept.mean())
    model.kept = model.bn.bias * 2
    with pytest.raises(RuntimeError):
        copy.deepcopy(model)
    inputs = x(2, 3, 6, 6)
    surgery = bn.fold(model, inputs)
    assert surgery.report.verdict is bn.Verdict.PASSED
    assert torch.allclose(surgery.model(inputs), model(inputs), atol=1e-5)


@pytest.mark.parametrize("name", ["eps", "num_features"])
def test_code_that_asks_a_folded_batchnorm_is_an_error_and_no_crash(name: str) -> None:
    """The Identity that stands there has none of these."""
    model = net(lambda m, v: m.bn(m.conv(v)) + torch.as_tensor(getattr(m.bn, name)).sum())
    kept = dict(vars(model), **model._modules)
    with pytest.raises(bn.PromiseError, match=f"does not run: AttributeError: .*{name}") as caught:
        bn.fold(model, x(2, 3, 6, 6), inplace=True)
    assert caught.value.report.verdict is bn.Verdict.FAILED
    assert dict(vars(model), **model._modules) == kept


def test_code_that_asks_for_the_class_is_found_out() -> None:
    model = net(lambda m, v: m.bn(m.conv(v)) if isinstance(m.bn, nn.BatchNorm2d) else m.conv(v) * 2)
    with pytest.raises(bn.PromiseError):
        bn.fold(model, x(2, 3, 6, 6))


WEIGHTS: list[Tensor] = []


def test_a_weight_that_is_read_from_a_global_is_found_out() -> None:
    model = net(lambda m, v: m.bn(nn.functional.conv2d(v, WEIGHTS[-1], m.conv.bias))).double()
    WEIGHTS.append(model.conv.weight)
    with pytest.raises(bn.PromiseError):
        bn.fold(model, x(2, 3, 6, 6).double())


def test_a_branch_on_the_batch_size_is_found_out() -> None:
    model = net(lambda m, v: m.bn(m.conv(v)) if len(v) > 1 else m.conv(v))
    with pytest.raises(bn.PromiseError):
        bn.fold(model, x(2, 3, 6, 6))


def test_torchscript_inside_an_eager_model_stays_and_the_rest_folds() -> None:
    script = compiled(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), script)
    surgery = bn.fold(season(model.eval()), x(2, 3, 6, 6))
    assert [edit.site.name for edit in surgery.plan.edits] == ["1"]
    assert len(surgery.plan.refusals) == 1
    assert surgery.report.verdict is bn.Verdict.PASSED


def test_what_has_no_values_is_no_model_yet() -> None:
    with pytest.raises(bn.UsageError, match="meta device"):
        bn.fold(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).to("meta").eval(), x(2, 3))
    with pytest.raises(bn.UsageError, match="no shape yet"):
        bn.fold(nn.Sequential(nn.LazyLinear(4), nn.BatchNorm1d(4)).eval(), x(2, 3))


def test_a_sparse_weight_stays() -> None:
    model = season(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)).eval())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is in beta
        model[0].weight = nn.Parameter(model[0].weight.detach().to_sparse_csr())
    surgery = bn.fold(model, x(2, 6), inplace=True)  # torch cannot copy it
    assert [r.reason for r in surgery.plan.refusals] == [bn.Reason.UNSUPPORTED_TYPE]


def test_a_fold_in_inference_mode_can_be_trained_afterwards() -> None:
    model = net(lambda m, v: m.bn(m.conv(v)))
    with torch.inference_mode():
        bn.fold(model, x(2, 3, 6, 6), inplace=True)
    assert not model.conv.weight.is_inference()
    model.train()(x(2, 3, 6, 6)).sum().backward()


def test_a_model_made_in_inference_mode_folds() -> None:
    with torch.inference_mode():
        model = net(lambda m, v: m.bn(m.conv(v)))
        inputs = x(2, 3, 6, 6)
    surgery = bn.fold(model, inputs)
    assert surgery.report.verdict is bn.Verdict.PASSED
    with torch.no_grad():
        assert torch.allclose(surgery.model(inputs), model(inputs), atol=1e-4)


def test_what_copies_share_is_not_changed_behind_the_back() -> None:
    """A backbone whose copies are itself would be folded in the original too."""

    class Shared(nn.Sequential):
        def __deepcopy__(self, memo: Any) -> Any:
            return self

    model = season(nn.Sequential(Shared(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.ReLU()).eval())
    for verify in (True, False):
        with pytest.raises(bn.CaptureError, match=r"copy\.deepcopy leaves 0 shared with the original"):
            bn.fold(model, x(2, 3, 6, 6), verify=verify)
    assert isinstance(model[0][1], nn.BatchNorm2d)


def test_threads_fold_one_after_the_other() -> None:
    """Random state and default dtype are of the process."""
    inputs = x(2, 3, 6, 6)
    models = [net(lambda m, v: m.bn(m.conv(v))) for _ in range(16)]

    def work(model: nn.Module) -> bn.Verdict:
        return bn.fold(model, inputs).report.verdict

    state = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(work, models)) == {bn.Verdict.PASSED}
    assert torch.get_default_dtype() is torch.float32
    assert torch.equal(torch.get_rng_state(), state)


def test_a_bare_list_is_one_argument() -> None:
    """As torchvision's detectors take their images; a tuple is a row of arguments."""
    model = net(lambda m, images: [m.bn(m.conv(v)) for v in images])
    surgery = bn.fold(model, [x(2, 3, 6, 6), x(1, 3, 5, 5)])
    assert [e.site.name for e in surgery.plan.edits] == ["bn", "bn#2"]
    assert surgery.report.verdict is bn.Verdict.PASSED


def test_an_input_that_the_forward_writes_is_as_it_was() -> None:
    model = net(lambda m, v: m.bn(m.conv(v.div_(255))))
    inputs = x(2, 3, 6, 6)
    before = inputs.clone()
    assert bn.fold(model, inputs).report.verdict is bn.Verdict.PASSED
    assert torch.equal(inputs, before)


def test_a_tensor_attribute_that_the_forward_writes_is_as_it_was() -> None:
    model = net(lambda m, v: m.bn(m.conv(v)) + m.cache.add_(1))
    model.cache = torch.zeros(1)
    surgery = bn.fold(model, x(2, 3, 6, 6))
    assert model.cache.item() == surgery.model.cache.item() == 0


class Interrupting(dict[str, int]):
    """Ctrl-C at the worst moment: as soon as something is taken out."""

    def __delitem__(self, key: str) -> None:
        raise KeyboardInterrupt

    def clear(self) -> None:
        raise KeyboardInterrupt


def test_what_is_put_back_is_never_missing_in_between() -> None:
    now = Interrupting(a=2, new=3)
    with pytest.raises(KeyboardInterrupt):
        restore(now, {"a": 1, "b": 2})
    assert now["a"] == 1
    assert now["b"] == 2


def test_a_backward_that_is_pending_still_runs() -> None:
    """What a graph has saved has the same values afterwards, and must count as unchanged."""
    model = net(lambda m, v: m.other(m.bn(m.conv(v))) + m.count.add_(1))
    model.other = season(nn.BatchNorm2d(4)).train()
    model.register_buffer("count", torch.zeros(1))
    loss = model(x(2, 3, 6, 6)).sum() * model.count
    bn.fold(model, x(2, 3, 6, 6))
    loss.sum().backward()
    assert model.conv.weight.grad is not None


class Picky(nn.Sequential):
    """A backbone that hides some of its parameters from optimisers, and saves less than it holds."""

    def parameters(self, recurse: bool = True) -> Any:
        return iter([self[1].weight])

    def named_parameters(self, *_: Any, **__: Any) -> Any:
        return iter([("1.weight", self[1].weight)])

    def state_dict(self) -> Any:  # type: ignore[override]
        return {}


def test_a_model_that_lists_only_some_of_its_parameters_folds() -> None:
    model = Picky(nn.Conv2d(3, 4, 3), season(nn.BatchNorm2d(4))).eval()
    surgery = bn.fold(model, x(2, 3, 6, 6))
    assert surgery.report.verdict is bn.Verdict.PASSED
    assert len(surgery.plan.edits) == 1


class Running(nn.Module):
    """Statistics of another kind, with an eps that is no number."""

    eps = None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))

    @property
    def momentum(self) -> float:
        raise RuntimeError("not yet")

    def forward(self, v: Tensor) -> Tensor:
        return v - self.running_mean.view(-1, 1, 1)


def test_statistics_of_another_kind_are_no_crash() -> None:
    model = nn.Sequential(Running(), nn.Conv2d(3, 4, 3), season(nn.BatchNorm2d(4))).eval()
    surgery = bn.fold(model, x(2, 3, 6, 6))
    assert [e.site.name for e in surgery.plan.edits] == ["2"]
    assert [r.reason for r in surgery.plan.refusals] == [bn.Reason.UNRECOGNISED]


def test_a_default_device_is_nothing_to_us() -> None:
    model, inputs = net(lambda m, v: m.bn(m.conv(v))), x(2, 3, 6, 6)
    with torch.device("meta"):
        assert bn.fold(model, inputs).report.verdict is bn.Verdict.PASSED


def test_a_sparse_output_is_compared() -> None:
    model = net(lambda m, v: m.bn(m.conv(v)).flatten(1).to_sparse())
    assert bn.fold(model, x(2, 3, 6, 6)).report.verdict is bn.Verdict.PASSED


def test_what_hangs_on_a_parameter_stays_on_it() -> None:
    model = net(lambda m, v: m.bn(m.conv(v)))
    model.conv.weight.no_decay = True
    assert bn.fold(model, x(2, 3, 6, 6)).model.conv.weight.no_decay

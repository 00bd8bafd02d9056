"""Recalibration: the statistics of one batch of everything, at any batch size; and nothing else changes."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bntools as bn
from bntools import recalibrate
from bntools.core import memory
from tests.must_fold import Apply, BatchNormAct, BatchNormReLU, FrozenBatchNorm
from tests.season import season
from tests.zoo import build


def whole_batch(
    model: nn.Module, data: Tensor, run: Callable[[nn.Module, Tensor], Any] | None = None
) -> nn.Module:
    """The reference, by torch itself: one training-mode batch of everything, all else in eval, momentum 1."""
    twin = copy.deepcopy(model).eval()
    for module in twin.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
            module.momentum = 1.0
    with torch.no_grad():
        (run or (lambda m, x: m(x)))(twin, data)
    return twin


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.double() for k, v in model.state_dict().items() if "running" in k}


def apart(one: nn.Module, two: nn.Module) -> float:
    """The largest difference: of a mean in units of its σ, of a variance as a share of it."""
    a, b = statistics(one), statistics(two)
    worst = 0.0
    for key, value in b.items():
        size = b[key.replace("running_mean", "running_var")]
        size = size.sqrt() if key.endswith("running_mean") else size
        worst = max(worst, float(((a[key] - value).abs() / size.clamp_min(1e-6)).max()))
    return worst


def mlp() -> nn.Module:
    layers = [nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(16, 8), nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 3))


@cache
def trained() -> tuple[nn.Module, Tensor]:
    """The network of the examples, on images that its statistics are not of."""
    sys.path.append(str(Path(__file__).parents[2] / "examples"))  # they are scripts, no package
    from nets import ResidualNet
    from training import digits, fit

    images, _, labels, _ = digits()
    model, threads = ResidualNet(), torch.get_num_threads()
    fit(model, images[:512], labels[:512], epochs=2)
    torch.set_num_threads(threads)  # which it has set to its own
    return model, 1 - images[:64]


NETS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "mlp": lambda: (season(mlp()), torch.randn(64, 6)),
    "digits": trained,
    "resnet18": lambda: (build("torchvision:resnet18")[0], torch.randn(24, 3, 48, 48)),
    "efficientnet_b0": lambda: (build("torchvision:efficientnet_b0")[0], torch.randn(12, 3, 64, 64)),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("size", [1, 3, 8, 64])
def test_it_is_what_one_batch_of_everything_gives(name: str, size: int) -> None:
    torch.manual_seed(0)
    model, data = NETS[name]()
    model, data = copy.deepcopy(model).double(), data.double()
    order = torch.randperm(len(data))
    surgery = recalibrate(model, data[order].split(size), virtual_batch="all")
    assert apart(surgery.model, whole_batch(model, data)) <= 1e-9
    assert surgery.report.groups == 1
    assert surgery.report.samples == len(data)
    assert len(surgery.plan.edits) == sum(
        isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()
    )


def conv_net() -> nn.Module:
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, 2), nn.BatchNorm2d(5)]
    return season(nn.Sequential(*layers, nn.Flatten(), nn.Linear(45, 3)))


def batches(n: int = 20, size: int = 4, seed: int = 0) -> list[Tensor]:
    return list(torch.randn(n, 3, 9, 9, generator=torch.Generator().manual_seed(seed)).split(size))


@pytest.fixture
def net() -> nn.Module:
    return conv_net()


# What others get wrong


def test_a_sorted_loader_gives_the_variance_of_all() -> None:
    """Means of variances of batches would be far too small."""
    data = torch.cat(
        [torch.randn(32, 3, generator=torch.Generator().manual_seed(k)) + 5 * k for k in range(3)]
    )
    model = nn.Sequential(nn.BatchNorm1d(3))
    found = recalibrate(model, data.split(8)).model[0]
    torch.testing.assert_close(found.running_var, data.var(0))
    torch.testing.assert_close(found.running_mean, data.mean(0))


@pytest.mark.parametrize("sizes", [[49, 49, 2], [99, 1]])
def test_a_short_last_batch_counts_as_much_as_it_holds(sizes: list[int]) -> None:
    data = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) ** 3
    found = recalibrate(nn.Sequential(nn.BatchNorm1d(3)), data.split(sizes)).model[0]
    torch.testing.assert_close(found.running_mean, data.mean(0))
    torch.testing.assert_close(found.running_var, data.var(0))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_mean_far_from_zero_leaves_the_variance_its_digits(layout: torch.memory_format) -> None:
    data = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.1 + 1000
    data = data.contiguous(memory_format=layout)
    found = recalibrate(nn.Sequential(nn.BatchNorm2d(3)), data.split(8)).model[0]
    rows = data.double().transpose(0, 1).flatten(1)
    assert (found.running_var / rows.var(1) - 1).abs().max() <= 1e-6
    assert (found.running_mean - rows.mean(1)).abs().max() <= 1e-4  # as far as float32 goes at 1000


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_buffers_in_half_precision(kind: torch.dtype) -> None:
    data = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) * 3 + 2
    found = recalibrate(nn.Sequential(nn.BatchNorm1d(3)).to(kind), data.split(8)).model[0]
    assert found.running_mean.dtype == kind
    torch.testing.assert_close(found.running_mean.float(), data.mean(0), rtol=0.02, atol=0.02)
    torch.testing.assert_close(found.running_var.float(), data.var(0), rtol=0.02, atol=0.02)


def state_of(model: nn.Module) -> list[object]:
    """Everything that could have been changed, tensors by identity and by value."""
    found: list[object] = []
    for path, module in model.named_modules():
        held = {k: v for k, v in vars(module).items() if not k.startswith("_")}
        found.append((path, held, [*module._forward_pre_hooks], [*module._forward_hooks]))
        found += [(k, id(t), t.tolist()) for k, t in module._buffers.items() if t is not None]
    return [found, torch.get_rng_state().tolist(), torch.is_grad_enabled()]


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("way", ["shape", "data", "interrupt", "nan", "inside", "empty", "one"])
def test_whatever_goes_wrong_the_model_is_as_it_was(
    net: nn.Module, inplace: bool, training: bool, way: str
) -> None:
    net.train(training)
    good = batches()
    inside = net[2].register_forward_hook(
        lambda m, a, out: out / 0 if way == "inside" and out.sum() > 0 else None
    )

    def data() -> Any:
        if way in ("empty", "one"):
            if way == "one":
                yield good[0][:1, :, :5, :5]  # one value a channel in the last layer
            return
        yield good[0]
        if way == "shape":
            yield torch.randn(2, 5, 9, 9)
        if way == "data":
            raise Interrupted
        if way == "interrupt":
            raise KeyboardInterrupt
        if way == "nan":
            yield good[1].index_fill(0, torch.tensor([1]), float("nan"))
        yield good[2]

    if way == "one":
        net[5] = nn.Identity()
        net[6] = nn.Identity()
    before = state_of(net)
    with pytest.raises(KeyboardInterrupt if way == "interrupt" else bn.BntoolsError):
        recalibrate(net, data(), inplace=inplace, virtual_batch="all")
    assert state_of(net) == before
    inside.remove()


def test_an_error_in_the_middle_of_a_forward_ends_the_others(net: nn.Module) -> None:
    open_blocks = []

    class Block:
        def __enter__(self) -> None:
            open_blocks.append(self)

        def __exit__(self, *_: object) -> None:
            open_blocks.remove(self)

    def forward(model: Any, batch: Tensor) -> Tensor:
        with Block():
            out = model(batch)
            if len(batch) == 3:
                raise Interrupted
            return out

    with pytest.raises(bn.CaptureError, match="batch 2"):
        recalibrate(net, [*batches(8), torch.randn(3, 3, 9, 9)], forward=forward, virtual_batch="all")
    assert not open_blocks


def test_what_no_batch_reaches_keeps_its_statistics() -> None:
    model = season(Apply(lambda m, v: m.a(v), a=nn.BatchNorm1d(3), b=nn.BatchNorm1d(3)))
    before = statistics(model)
    surgery = recalibrate(model, [torch.randn(8, 3)])
    after = statistics(surgery.model)
    assert (after["b.running_mean"] == before["b.running_mean"]).all()
    assert (after["a.running_mean"] != before["a.running_mean"]).all()
    assert [(r.site.name, r.reason) for r in surgery.plan.refusals] == [("b", bn.Reason.UNREACHED)]


def test_two_calls_of_one_are_taken_together() -> None:
    model = Apply(lambda m, v: m.bn(m.bn(v) * 3 + 1), bn=nn.BatchNorm1d(2))
    data = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)) * 2 + 5
    surgery = recalibrate(model, data.split(7))
    second = (data - data.mean(0)) / (data.var(0, correction=0) + 1e-5).sqrt() * 3 + 1
    both = torch.cat((data, second))
    torch.testing.assert_close(surgery.model.bn.running_mean, both.mean(0))
    torch.testing.assert_close(surgery.model.bn.running_var, both.var(0))
    assert [layer.calls for layer in surgery.report.layers] == [2]


@pytest.mark.parametrize("how", ["eval in training", "momentum", "class"])
@pytest.mark.parametrize("include", [True, False])
def test_frozen_ones_stay_unless_they_are_asked_for(how: str, include: bool) -> None:
    frozen: nn.Module = FrozenBatchNorm(3) if how == "class" else nn.BatchNorm2d(3)
    model = season(nn.Sequential(nn.BatchNorm2d(3), frozen)).train()
    if how == "momentum":
        model[1].momentum = 0.0
    if how == "eval in training":
        model[1].eval()
    before = statistics(model)["1.running_mean"]
    surgery = recalibrate(model, batches(), include_frozen=include)
    assert torch.equal(statistics(surgery.model)["1.running_mean"], before) is not include
    assert [r.reason for r in surgery.plan.refusals] == ([] if include else [bn.Reason.FROZEN])
    assert surgery.model[1].training is (how != "eval in training")


def test_batches_with_nan_are_left_out_if_asked(net: nn.Module) -> None:
    good = batches()
    bad = [*good[:2], good[2] * float("inf"), *good[3:]]
    surgery = recalibrate(net, bad, skip=True)
    assert surgery.report.skipped == (2,)
    assert apart(surgery.model, recalibrate(net, [*good[:2], *good[3:]]).model) <= 1e-6


@pytest.mark.parametrize("form", ["pair", "list", "dict", "labelled dict", "generator", "nested", "example"])
def test_batches_of_any_form(net: nn.Module, form: str) -> None:
    data = batches()

    def shaped(x: Tensor) -> Any:
        forms: dict[str, Any] = {
            "pair": (x, torch.zeros(len(x))),
            "list": [x, torch.zeros(len(x))],
            "dict": {"input": x},
            "labelled dict": {"input": x, "labels": torch.zeros(len(x))},
            "generator": x,
            "nested": {"deep": [(x, 1)]},
            "example": bn.Example((x,)),
        }
        return forms[form]

    forward = (lambda m, b: m(b["deep"][0][0])) if form == "nested" else None
    surgery = recalibrate(net, (shaped(x) for x in data), forward=forward)
    assert apart(surgery.model, recalibrate(net, data).model) == 0


def test_buffers_are_written_in_place(net: nn.Module) -> None:
    held = net[1].running_mean
    surgery = recalibrate(net, batches(), inplace=True)
    assert surgery.model is net
    assert net[1].running_mean is held
    assert net[1].num_batches_tracked == 5
    assert net[1].momentum == 0.1


# The options


def test_groups_bound_the_memory_and_are_pooled(net: nn.Module) -> None:
    data = batches(40)
    whole = recalibrate(net, data, virtual_batch="all")
    parts = recalibrate(net, data, virtual_batch=16, stop=False)
    assert (parts.report.groups, parts.report.virtual_batch) == (3, 16)
    # The first layer sees the same in both; behind it each group is normalised by its own.
    assert apart(whole.model[:2], parts.model[:2]) <= 1e-6
    assert 1e-6 < apart(whole.model, parts.model) < 0.2


def test_the_size_of_a_group_comes_from_the_memory(net: nn.Module) -> None:
    data = batches(40)
    small = recalibrate(net, data, memory=60_000, stop=False).report
    large = recalibrate(net, data, memory=1 << 30).report
    assert 1 < small.groups < 10
    assert small.memory == 60_000
    assert large.groups == 1


def test_it_stops_when_more_data_would_change_nothing() -> None:
    data = [*torch.randn(200, 64, 3, generator=torch.Generator().manual_seed(0))]
    model = nn.Sequential(nn.BatchNorm1d(3))
    surgery = recalibrate(model, data, virtual_batch=64, max_samples=None)
    assert surgery.report.converged
    assert 64 * 20 < surgery.report.samples < 64 * 200
    assert surgery.report.layers[0].error_mean < 0.01
    assert (surgery.model[0].running_mean.abs() < 0.05).all()
    whole = recalibrate(model, data, virtual_batch=64, max_samples=None, stop=False)
    assert whole.report.samples == 64 * 200


def test_no_more_samples_than_asked(net: nn.Module) -> None:
    data = batches(20)
    surgery = recalibrate(net, data, max_samples=10)
    assert surgery.report.samples == 10
    assert apart(surgery.model, recalibrate(net, [torch.cat(data)[:10]]).model) <= 1e-6


def test_a_prior_counts_as_so_many_samples() -> None:
    old, new = torch.randn(30, 3) * 2 + 4, torch.randn(10, 3)
    model = nn.Sequential(nn.BatchNorm1d(3))
    model[0].running_mean.copy_(old.mean(0))
    model[0].running_var.copy_(old.var(0, correction=0))
    found = recalibrate(model, new.split(5), prior=30).model[0]
    both = torch.cat((old, new))
    torch.testing.assert_close(found.running_mean, both.mean(0))
    torch.testing.assert_close(found.running_var, both.var(0))


def test_a_moving_average_is_what_training_would_leave(net: nn.Module) -> None:
    net[4].momentum = None
    net[4].reset_running_stats()
    reference = copy.deepcopy(net).eval()
    for at in (1, 4):
        reference[at].train()
    with torch.no_grad():
        for x in batches():
            reference(x)
    surgery = recalibrate(net, batches(), method="ema")
    assert apart(surgery.model, reference) <= 1e-5
    assert surgery.model[1].num_batches_tracked == reference[1].num_batches_tracked


def test_only_those_that_are_asked_for(net: nn.Module) -> None:
    before = statistics(net)
    after = statistics(recalibrate(net, batches(), only="4").model)
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"4"}
    same = recalibrate(net, batches(), only=["*", "!1"]).model
    assert apart(same, recalibrate(net, batches(), only="4").model) == 0
    with pytest.raises(bn.UsageError, match="'7' matches no BatchNorm"):
        recalibrate(net, batches(), only="7")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"virtual_batch": 0}, "virtual_batch: 0 is none"),
        ({"virtual_batch": "half"}, "virtual_batch: 'half' is none"),
        ({"method": "precise"}, "method: 'precise' is none"),
        ({"prior": -1.0}, "prior"),
        ({"max_samples": 0}, "max_samples"),
        ({"memory": -5}, "memory"),
    ],
)
def test_wrong_options_are_named(net: nn.Module, options: dict[str, Any], message: str) -> None:
    with pytest.raises(bn.UsageError, match=message):
        recalibrate(net, batches(), **options)


@pytest.mark.parametrize("data", [[], iter(()), [torch.zeros(0, 3, 9, 9)], ["words"], [None], None])
def test_no_data_is_an_error(net: nn.Module, data: Any) -> None:
    with pytest.raises(bn.UsageError, match=r"data: expected (an iterable of )?batches|expected tensors"):
        recalibrate(net, data)


# Forwards that take different ways


class Ways(nn.Module):
    """Two branches that the batch decides between, with a BatchNorm before, in each, and behind."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        if first:  # registered before what runs before it
            self.tail = nn.BatchNorm1d(3)
        self.head, self.a, self.b = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        if not first:
            self.tail = nn.BatchNorm1d(3)

    def forward(self, v: Tensor) -> Tensor:
        side = self.a if v[0, 0] > 0 else self.b
        return self.tail(side(self.head(v)))


@pytest.mark.parametrize("first", [True, False])
def test_forwards_that_part_meet_again(first: bool) -> None:
    one, two = torch.randn(8, 3), torch.randn(12, 3)
    one[0, 0], two[0, 0] = 1, -1
    surgery = recalibrate(Ways(first), [one, two, one + 0.5, two - 0.5])
    head = torch.cat((one, two, one + 0.5, two - 0.5))
    normal = [part - head.mean(0) for part in (one, one + 0.5, two, two - 0.5)]
    normal = [part / (head.var(0, correction=0) + 1e-5).sqrt() for part in normal]
    a, b = torch.cat(normal[:2]), torch.cat(normal[2:])
    torch.testing.assert_close(surgery.model.a.running_mean, a.mean(0))
    torch.testing.assert_close(surgery.model.b.running_var, b.var(0))
    tail = torch.cat([(each - each.mean(0)) / (each.var(0, correction=0) + 1e-5).sqrt() for each in (a, b)])
    torch.testing.assert_close(surgery.model.tail.running_var, tail.var(0))
    order = [layer.path for layer in surgery.report.layers]
    assert (order[0], {*order[1:3]}, order[3]) == ("head", {"a", "b"}, "tail")


def test_what_torch_keeps_for_a_thread_is_each_forwards_own() -> None:
    def forward(m: Any, v: Tensor) -> Tensor:
        inside = len(v) == 3
        with torch.autocast("cpu", torch.bfloat16, enabled=inside), torch.set_grad_enabled(inside):
            v = m.a(m.fc(v))
            assert torch.is_autocast_enabled("cpu") is inside
            assert torch.is_grad_enabled() is inside
        assert not torch.is_autocast_enabled("cpu")
        assert not torch.is_grad_enabled()
        return m.b(v.float())

    model = season(Apply(forward, fc=nn.Linear(3, 3), a=nn.BatchNorm1d(3), b=nn.BatchNorm1d(3)))
    recalibrate(model, [torch.randn(n, 3) for n in (4, 3, 4, 3, 3, 4)])
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_many_batches_need_no_threads() -> None:
    import threading

    seen = []
    model = Apply(lambda m, v: seen.append(threading.active_count()) or m.bn(v), bn=nn.BatchNorm1d(2))
    recalibrate(model, torch.randn(600, 2).split(1))
    assert set(seen) == {threading.active_count()}


@pytest.mark.parametrize("how", ["thread", "mode"])
def test_what_cannot_wait_is_an_error(how: str) -> None:
    def forward(m: Any, v: Tensor) -> Tensor:
        if how == "mode":
            with torch.device("cpu"):
                return m.bn(v)
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(m.bn, v).result()

    model = Apply(forward, bn=nn.BatchNorm1d(2))
    with pytest.raises(bn.CaptureError, match="bn: it is called in"):
        recalibrate(model, [torch.randn(4, 2)])


def test_what_is_made_in_inference_mode_can_be_trained(net: nn.Module) -> None:
    with torch.inference_mode():
        found = recalibrate(net, [x.clone() for x in batches()]).model
    assert not any(t.is_inference() for t in (*found.parameters(), *found.buffers()))


def test_ctrl_c_inside_a_forward(net: nn.Module) -> None:
    seen = []

    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        out = model[:2](batch)
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return model[2:](out)

    before = state_of(net)
    with pytest.raises(KeyboardInterrupt):
        recalibrate(net, batches(), forward=forward, inplace=True)
    assert state_of(net) == before


def test_autocast_runs_the_forwards_in_that_type(net: nn.Module) -> None:
    seen = set()
    net[1].register_forward_pre_hook(lambda m, args: seen.add(args[0].dtype))
    surgery = recalibrate(net, batches(), autocast=torch.bfloat16, inplace=True)
    assert seen == {torch.bfloat16}
    assert apart(surgery.model, recalibrate(net, batches()).model) < 0.05


# What is no BatchNorm of its input


class Rectified(nn.BatchNorm2d):
    def forward(self, v: Tensor) -> Tensor:
        return super().forward(v.relu())


class Batchwise(nn.BatchNorm2d):
    def forward(self, v: Tensor) -> Tensor:
        return F.batch_norm(v, None, None, self.weight, self.bias, True)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (BatchNormAct, None),
        (BatchNormReLU, None),
        (nn.SyncBatchNorm, None),
        (Rectified, bn.Reason.UNRECOGNISED),
        (Batchwise, bn.Reason.UNRECOGNISED),
        (lambda c: nn.InstanceNorm2d(c, track_running_stats=True), bn.Reason.UNRECOGNISED),
        (lambda c: nn.BatchNorm2d(c, track_running_stats=False), bn.Reason.NO_STATISTICS),
    ],
)
def test_layers_are_judged_by_what_they_do(
    layer: Callable[[int], nn.Module], reason: bn.Reason | None
) -> None:
    model = season(nn.Sequential(layer(3)))
    surgery = recalibrate(model, batches())
    assert [r.reason for r in surgery.plan.refusals] == ([] if reason is None else [reason])
    if reason is None:
        data = torch.cat(batches()).transpose(0, 1).flatten(1)
        torch.testing.assert_close(surgery.model[0].running_mean, data.mean(1))
        torch.testing.assert_close(surgery.model[0].running_var, data.var(1))
    else:
        assert apart(surgery.model, model) == 0


# What is said


def test_the_report_says_what_moved(net: nn.Module) -> None:
    exact = recalibrate(net, batches(200)).model
    again = recalibrate(exact, batches(200))
    assert again.report.first is None
    assert max(layer.divergence for layer in again.report.layers) < 1e-6
    assert again.report.gap_after < 0.02
    moved = copy.deepcopy(exact)
    moved[4].running_mean += 2 * moved[4].running_var.sqrt()
    moved[4].running_var *= 4
    report = recalibrate(moved, batches(200)).report
    assert report.first == "4"
    layer = report.layers[1]
    assert layer.mean == pytest.approx(1.0, rel=1e-3)  # 2 σ of the new, 1 σ of the old
    assert layer.var == pytest.approx(1.386, rel=1e-3)
    # ½·((σ² + δ²)/σ'² + (σ'² + δ²)/σ² − 2) with σ² = 4, δ² = 4, σ'² = 1
    assert layer.divergence == pytest.approx(0.5 * (8 + 5 / 4 - 2), rel=1e-2)
    assert report.gap_before > 10 * report.gap_after
    assert 0 < layer.error_mean < 0.2


def test_drift_is_the_same_in_float64(net: nn.Module) -> None:
    """There a buffer is not converted, and what it held before must not be lost."""
    narrow = recalibrate(net, batches()).report
    wide = recalibrate(net.double(), batches()).report
    for one, two in zip(narrow.layers, wide.layers, strict=True):
        assert one.divergence == pytest.approx(two.divergence, rel=1e-3)
    assert wide.first == "1"


def test_statistics_that_were_none_have_drifted(net: nn.Module) -> None:
    exact = recalibrate(net, batches()).model
    exact[4].running_mean[0] = float("nan")
    report = recalibrate(exact, batches()).report
    assert report.first == "4"
    assert recalibrate(nn.BatchNorm1d(3), [torch.randn(9, 3) + 5]).report.first == ""  # the model itself


def test_outputs_that_are_no_numbers_have_no_gap(net: nn.Module) -> None:
    report = recalibrate(net, batches(), forward=lambda m, x: (m(x), None)[1]).report
    assert (report.gap_before, report.gap_after) == (None, None)
    report = recalibrate(net, batches(), forward=lambda m, x: m(x)[:, :0]).report
    assert (report.gap_before, report.gap_after) == (None, None)


def test_the_memory_of_a_container_counts(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    4000 kB\n"}
    monkeypatch.setattr(memory, "_read", lambda path: files.get(path, ""))
    assert memory.free(torch.device("cpu")) == 2_048_000
    files["/sys/fs/cgroup/memory.max"], files["/sys/fs/cgroup/memory.current"] = "max\n", "9\n"
    assert memory.free(torch.device("cpu")) == 2_048_000
    files["/sys/fs/cgroup/memory.max"] = "1009\n"
    assert memory.free(torch.device("cpu")) == 500
    files.clear()
    assert memory.free(torch.device("cpu")) == 1 << 32


def test_the_result_is_saved_and_replayed(net: nn.Module, tmp_path: Any) -> None:
    surgery = recalibrate(net, batches())
    assert surgery.plan.promise is bn.Promise.MOVED
    file = bn.save(surgery, tmp_path / "net.safetensors")
    assert apart(bn.replay(file, conv_net()), surgery.model) == 0

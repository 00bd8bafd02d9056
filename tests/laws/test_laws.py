"""What holds for every network, tried on random ones.

``BNTOOLS_EXAMPLES=3000 pytest tests/laws`` tries that many, other ones each time.
"""

from __future__ import annotations

import copy
import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import bntools as bn
from bntools.core import graft
from bntools.core.example import Example
from bntools.core.planning import plan_folds
from tests.laws.graphs import Recipe, Step, built, chains, example, is_norm, must_fold, recipes

MANY = os.environ.get("BNTOOLS_EXAMPLES")
law = settings(
    derandomize=MANY is None,
    database=None,
    deadline=None,
    max_examples=int(MANY or 60),
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
)
dtypes = st.sampled_from([torch.float32, torch.float64])


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return list(model(x.clone()))


def check_kept(before: list[Tensor], after: list[Tensor]) -> None:
    """Outputs in float64 are what they were."""
    for old, new in zip(before, after, strict=True):
        assert old.shape == new.shape
        assert (new - old).abs().max() <= 1e-8 * old.abs().max()


def parts(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that can be told apart: tensors and modules by identity, values by bits."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        found[f"module {path}"] = (id(module), type(module), module.training)
        for name, held in vars(module).items():
            if isinstance(held, dict):
                found[f"dict {path} {name}"] = (id(held), [(k, id(v)) for k, v in held.items()])
    for key, t in model.state_dict(keep_vars=True).items():
        found[f"tensor {key}"] = (t.requires_grad, t.grad, t.dtype, t.stride(), bits(t))
    return found


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


def saved(surgery: bn.Surgery) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return bn.save(surgery, Path(folder) / "m.safetensors").read_bytes()


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(
        x.shape == y.shape and bits(x) == bits(y) for x, y in zip(a, b, strict=True)
    )


@law
@given(recipes())
def test_a_fold_keeps_the_outputs(recipe: Recipe) -> None:
    """In float64 throughout, so that what a fold rounds cannot hide what it gets wrong."""
    model, x = built(recipe), example(recipe)
    before = outputs(copy.deepcopy(model), x)
    check_kept(before, outputs(bn.fold(model, x.clone()).model, x))


@law
@given(recipes())
def test_every_site_is_answered_once(recipe: Recipe) -> None:
    model, x = built(recipe), example(recipe)
    counted, calls = copy.deepcopy(model), Counter[str]()
    norms = {path: m for path, m in counted.named_modules() if is_norm(m)}
    for path, module in norms.items():
        module.register_forward_hook(lambda *_, path=path: calls.update([path]))
    outputs(counted, x)
    expected = [path if n == 0 else f"{path}#{n + 1}" for path in norms for n in range(max(1, calls[path]))]
    plan = bn.fold(model, x).plan
    assert sorted(site.name for site in plan.sites) == sorted(expected)
    assert len(plan.sites) == len(plan.edits) + len(plan.refusals)
    assert all((site.at is None) == (calls[site.module or ""] == 0) for site in plan.sites)


@law
@given(recipes(), st.booleans())
def test_the_argument_is_left_alone(recipe: Recipe, train: bool) -> None:
    model, x = built(recipe), example(recipe)
    model.train(train)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before, rng = parts(model), _random_states()
    bn.fold(model, x)
    assert parts(model) == before
    assert _random_states() == rng


def _random_states() -> tuple[Any, ...]:
    return bits(torch.get_rng_state()), random.getstate(), str(np.random.get_state())


@law
@given(recipes(), dtypes)
def test_folding_twice_changes_nothing(recipe: Recipe, dtype: torch.dtype) -> None:
    x = example(recipe, dtype)
    once = bn.fold(built(recipe, dtype=dtype), x)
    twice = bn.fold(once.model, x)
    assert not twice.plan.edits
    # Where a BatchNorm has gone, another neighbour may be the first in the way.
    assert {r.site.name for r in twice.plan.refusals} == {r.site.name for r in once.plan.refusals}
    if not once.plan.edits:
        assert twice.plan.refusals == once.plan.refusals
    one, two = once.model.state_dict(), twice.model.state_dict()
    assert list(one) == list(two)
    assert all(bits(one[key]) == bits(two[key]) for key in one)


@law
@given(recipes(), dtypes)
def test_a_replay_is_the_fold(recipe: Recipe, dtype: torch.dtype) -> None:
    x = example(recipe, dtype)
    live = bn.fold(built(recipe, dtype=dtype), x)
    fresh = built(recipe, seed=5, dtype=dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = bn.save(live, Path(folder) / "m.safetensors")
        assert path.read_bytes() == saved(live)
        again = bn.replay(path, fresh)
        bn.replay(path, fresh, inplace=True)
    for model in (again, fresh):
        old, new = live.model.state_dict(), model.state_dict()
        assert list(old) == list(new)
        assert all(old[k].dtype == new[k].dtype and bits(old[k]) == bits(new[k]) for k in old)
        assert [type(m) for m in model.modules()] == [type(m) for m in live.model.modules()]
        assert same_bits(outputs(live.model, x), outputs(model, x))


@law
@given(recipes(), st.integers(0, 10**6))
def test_an_undone_graft_leaves_nothing(recipe: Recipe, at: int) -> None:
    model, x = built(recipe), example(recipe)
    plan, tensors = plan_folds(model, Example((x,)))
    assume(plan.edits)
    before, out = parts(model), outputs(model, x)
    undo = bn.graft_(model, plan, tensors)
    assert parts(model) != before
    undo()
    assert parts(model) == before

    lines = _interrupted(lambda: graft.graft_(copy.deepcopy(model), plan, tensors), None)
    with pytest.raises(KeyboardInterrupt):
        _interrupted(lambda: graft.graft_(model, plan, tensors), at % lines)
    assert parts(model) == before
    assert same_bits(outputs(model, x), out)


def _interrupted(run: Any, at: int | None) -> int:
    """Raise a Ctrl-C in front of the line number *at* that the knife runs; how many lines it ran."""
    inside = {"_write", "_put", "_rest", "_made", "bypass_"}
    lines = 0

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal lines
        if frame.f_code.co_filename != graft.__file__ or frame.f_code.co_name not in inside:
            return None
        if event == "line":
            lines += 1
            if lines - 1 == at:
                raise KeyboardInterrupt
        return trace

    old = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(old)
    return lines


@law
@given(chains())
def test_no_fold_of_a_chain_is_missed(recipe: Recipe) -> None:
    model = built(recipe)
    norms = [path for path, m in model.named_modules() if is_norm(m)]
    assert [e.site.name for e in bn.fold(model, example(recipe)).plan.edits] == norms


@law
@given(recipes())
def test_no_plain_pair_is_missed(recipe: Recipe) -> None:
    model = built(recipe)
    plan = bn.fold(model, example(recipe)).plan
    assert must_fold(recipe, model) <= {e.site.name for e in plan.edits}


def test_the_inputs_are_left_alone() -> None:
    recipe = Recipe(
        (2, 3, 5, 4),
        (("conv", "Conv2d", (3, 2, 3), ()), ("bn", "BatchNorm2d", (2,), ())),
        (Step("relu_", (0,)), Step("host", (1,), "conv"), Step("norm", (2,), "bn")),
    )
    x = example(recipe)
    before = x.clone()
    bn.fold(built(recipe), x)
    assert torch.equal(x, before)

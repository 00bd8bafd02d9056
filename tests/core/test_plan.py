"""A plan is data: it survives JSON unchanged, and its bytes stay what they were.

After a change of the format on purpose: ``python -m tests.golden.make``.
"""

from __future__ import annotations

import dataclasses
import json
from enum import StrEnum
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bntools as bn
from bntools.core import store
from bntools.core.plan import Plan
from bntools.core.reasons import Reason
from tests.golden import make
from tests.must_fold import CASES, Case, finished
from tests.season import season


def any_of(kind: Any) -> st.SearchStrategy[Any]:
    """Values of the type that a field declares."""
    of = get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        fields = {name: any_of(hint) for name, hint in get_type_hints(kind).items() if name != "maps"}
        return st.builds(kind, **fields)
    if get_origin(kind) is tuple:
        return (
            st.lists(any_of(of[0]), max_size=3).map(tuple) if of[-1] is ... else st.tuples(*map(any_of, of))
        )
    if of:
        return st.one_of(*map(any_of, of))
    if issubclass(kind, StrEnum):
        return st.sampled_from(list(kind))
    values = {str: st.text(max_size=8), int: st.integers(), float: st.floats(allow_nan=False)}
    return {**values, bool: st.booleans(), type(None): st.none()}[kind]


@settings(derandomize=True, deadline=None, max_examples=200, database=None)
@given(any_of(Plan))
def test_a_plan_survives_json(plan: Plan) -> None:
    text = plan.to_json()
    assert "\n" not in text
    assert Plan.from_json(text) == plan
    assert Plan.from_json(text).to_json() == text


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_plans_of_real_folds_survive_json(case: Case) -> None:
    model = case.build() if case.name == "frozen-bn-in-training-model" else case.build().eval()
    plan = bn.fold(finished(season(model)), case.inputs, bake=case.bake).plan
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.sites == plan.sites
    assert hash(again) == hash(plan)
    assert json.loads(plan.to_json())["version"] == 5


def test_every_reason_survives_and_has_a_remedy() -> None:
    site = bn.Site("bn", "bn", "BatchNorm2d", 4, None)
    refusals = tuple(bn.Refusal(site, reason, "because") for reason in Reason)
    plan = Plan("fold", (), refusals, "")
    assert [r.reason for r in Plan.from_json(plan.to_json()).refusals] == list(Reason)
    assert all(r.remedy for r in refusals)


def test_sites_are_in_order_of_execution() -> None:
    def site(name: str, at: int | None) -> bn.Site:
        return bn.Site(name, name, "BatchNorm2d", 4, 1e-5, at=at)

    edits = (bn.Edit(site("c", 3)), bn.Edit(site("a", 0)))
    refusals = tuple(bn.Refusal(site(n, at), Reason.BLOCKED, "") for n, at in (("z", None), ("b", 2)))
    assert [s.name for s in Plan("fold", edits, refusals, "").sites] == ["a", "b", "c", "z"]


def _host() -> Any:
    from bntools.core.plan import Host

    return Host("conv", "conv2d", "rows")


def test_keys_of_a_host() -> None:
    host = dataclasses.replace(_host(), weight=("a", "b"), new_bias="c")
    assert (host.weight_key, host.bias_key) == ("a", "c")
    assert (_host().weight_key, _host().bias_key) == ("", "")


# Golden bytes


def test_todays_code_writes_the_golden_bytes(tmp_path: Any) -> None:
    surgery = bn.fold(make.build(), make.INPUTS)
    assert surgery.report.verdict is bn.Verdict.PASSED
    assert surgery.plan.to_json() + "\n" == make.PLAN.read_text(encoding="utf-8")
    path = bn.save(surgery, tmp_path / "another-name.safetensors")
    assert path.read_bytes() == make.ARTEFACT.read_bytes()


def test_todays_code_reads_the_golden_files() -> None:
    plan = Plan.from_json(make.PLAN.read_text(encoding="utf-8"))
    assert [e.site.name for e in plan.edits] == ["bn", "bn#2", "act"]
    assert [r.site.name for r in plan.refusals] == ["last"]
    artefact = store.read(make.ARTEFACT)
    assert artefact.plan == plan
    assert artefact.tensors["b.weight"] is artefact.tensors["a.weight"]
    assert artefact.tensors["a.bias"].tolist() == [1.0, 1.1875]
    assert artefact.tensors["c.bias"].tolist() == [0.75, -0.875, -0.75]


def test_the_golden_artefact_replays() -> None:
    fresh = make.Tied().eval()
    again = bn.replay(make.ARTEFACT, fresh)
    with torch.no_grad():
        assert torch.equal(again(make.INPUTS), bn.fold(make.build(), make.INPUTS).model(make.INPUTS))
        assert torch.allclose(again(make.INPUTS), make.build()(make.INPUTS))

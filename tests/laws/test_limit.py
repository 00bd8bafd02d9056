"""The largest set that the algebra allows, and nothing wrong in it: on random graphs of operators that carry
maps.

``BNTOOLS_GRAPHS=50000 pytest tests/laws/test_limit.py`` (`make deep`) tries that many.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import bntools as bn
from bntools.core import find, settle
from tests.laws.graphs import Graph, Recipe, built, example, is_norm, limits
from tests.laws.oracle import largest
from tests.laws.test_laws import check_kept, outputs

GRAPHS = int(os.environ.get("BNTOOLS_GRAPHS", "1000"))
PARTS = 16


@pytest.mark.parametrize("part", range(PARTS))
def test_the_largest_set_folds_and_is_right(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is refused for its digits is a matter of precision, not of algebra.
    monkeypatch.setattr(settle, "AMPLIFIED", np.inf)
    monkeypatch.setattr(settle, "SPREAD", np.inf)
    found: dict[str, Any] = {}
    solved = find._solved

    def spy(flow: Any, able: Any, level: Any) -> Any:
        found.update(flow=flow, items=find._items(flow, able), lost=find._split(flow, able))
        result = solved(flow, able, level)
        found["barred"] = result[3]
        return result

    monkeypatch.setattr(find, "_solved", spy)

    @seed(part)
    @settings(
        database=None,
        deadline=None,
        max_examples=GRAPHS // PARTS,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(limits(), st.sampled_from(["both", "both", "positive", "unshifted"]))
    def law(recipe: Recipe, norms: str) -> None:
        model, x = _built(recipe, norms), example(recipe)
        before = outputs(copy.deepcopy(model), x)
        surgery = bn.fold(model, x, verify=False)
        _check_size(surgery, found)
        check_kept(before, outputs(surgery.model, x))
        assert len(surgery.plan.sites) == len(surgery.plan.edits) + len(surgery.plan.refusals)
        assert not bn.fold(surgery.model, x, verify=False).plan.edits, "folding twice changes something"

    law()


def _check_size(surgery: bn.Surgery, found: dict[str, Any]) -> None:
    flow, barred = found["flow"], found["barred"]
    norms = flow.graph.capture.norms
    items = [item for item in found["items"] if not set(item.calls) & barred.keys()]
    maps = {index: (norms[index].scale, norms[index].shift) for index in flow.edges}
    gone = {edit.site.name for edit in surgery.plan.edits}
    count = sum(all(_name(surgery, call) in gone for call in item.calls) for item in items)
    if len(items) <= 6:
        assert largest(flow, maps, items, count) == count, "a larger set could go"


def _name(surgery: bn.Surgery, call: int) -> str:
    return next(site.name for site in surgery.plan.sites if site.at == call)


def _built(recipe: Recipe, norms: str) -> Graph:
    model = built(recipe)
    with torch.no_grad():
        for module in model.modules():
            if is_norm(module):
                if norms != "both" and module.weight is not None:
                    module.weight.abs_()
                if norms == "unshifted":
                    module.running_mean.zero_()
                    if module.bias is not None:
                        module.bias.zero_()
    return model

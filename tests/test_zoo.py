"""Real architectures: each is folded as a module and as a program; those of the sample also as a pickle
that the command line opens.

The sample runs with the other tests; `make zoo` runs all of them and adds up what it found.
"""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import bntools as bn
from bntools.__main__ import main
from bntools.core.example import Example
from bntools.core.plan import Plan
from bntools.core.reasons import REMEDIES
from tests import zoo_rows
from tests.bench.find_against_capture import times
from tests.pairs import count_sites, must_fold
from tests.zoo import ENTRIES, NEEDS_UNSAFE, PROGRAM_SAMPLE, SAMPLE, SINGLE_ONLY, arguments, build


def every_entry(sample: list[str]) -> pytest.MarkDecorator:
    names = [pytest.param(e.name, marks=[] if e.name in sample else pytest.mark.zoo) for e in ENTRIES]
    return pytest.mark.parametrize("name", names)


@every_entry(SAMPLE)
def test_every_pair_folds_and_every_other_site_says_why(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, example = build(name)
    args = arguments(example)
    double, wide = doubled(model, args)  # now, as some keep what they computed last
    surgery = bn.fold(model, example)
    plan, report = surgery.plan, surgery.report
    found = zoo_rows.told(plan, report)
    zoo_rows.note(name, "module", found)  # now, in case that something below does not hold
    shipped = surgery.model
    if isinstance(example, Tensor) and (name in SAMPLE or name in NEEDS_UNSAFE):
        file = tmp_path / "model.pt"
        torch.save(model, file)
        folded = fold_file(file, example, NEEDS_UNSAFE.get(name, ""), capsys, plan)
        shipped = bn.load(folded, unsafe=name in NEEDS_UNSAFE) if plan.edits else shipped

    assert len({site.name for site in plan.sites}) == len(plan.sites) == count_sites(model, args)
    pairs = must_fold(model, args)
    assert pairs - {edit.site.module for edit in plan.edits} == set()
    assert all(refusal.detail and refusal.reason in REMEDIES for refusal in plan.refusals)
    if not plan.edits:
        assert report.verdict == "skipped"
        return
    assert report.verdict == "passed"
    assert max([report.error, *(site.error for site in report.sites)]) <= 1e-8
    found["pairs"] = len(pairs)
    if name not in SINGLE_ONLY:
        # The same once more without the help of what is tested: a fold that is never rounded, and the file.
        exact = bn.fold(double, wide, verify=False).model
        found["own_error"] = apart(double, exact, wide)
        assert found["own_error"] <= 1e-8
        assert is_rounded(shipped.state_dict(), exact.state_dict())
    zoo_rows.note(name, "module", found)


@every_entry(PROGRAM_SAMPLE)
def test_the_program_computes_what_the_model_does(name: str) -> None:
    model, example = build(name)
    args = arguments(example)
    _, capturing, finding = times(model, Example(args))
    seconds = {"capture": capturing, "find": finding}
    start = time.perf_counter()
    try:
        surgery = bn.fold(model, example, level="program")
    except bn.CaptureError as error:
        zoo_rows.note(name, "program", {"not_exported": str(error).splitlines()[0], "seconds": seconds})
        assert name not in PROGRAM_SAMPLE
        return
    seconds["fold"] = time.perf_counter() - start
    plan, report = surgery.plan, surgery.report
    found = zoo_rows.told(plan, report) | {"seconds": seconds}
    zoo_rows.note(name, "program", found)

    # As many at least: of several sets of the same size, the module may have another one.
    assert len(bn.fold(model, example, verify=False).plan.edits) <= len(plan.edits)
    assert report.verdict == ("passed" if plan.edits else "skipped")
    assert max([report.error, *(site.error for site in report.sites)]) <= 1e-8
    if name in PROGRAM_SAMPLE:  # another export, in float64 from the first step to the last
        double, wide = doubled(model, args)
        exact = bn.fold(double, wide, level="program", verify=False).model
        found["own_error"] = apart(double, exact, wide)
        assert found["own_error"] <= 1e-8
        assert is_rounded(surgery.model.state_dict(), exact.state_dict())
    zoo_rows.note(name, "program", found)


def fold_file(
    file: Path, example: Tensor, unsafe: str, capsys: pytest.CaptureFixture[str], plan: Plan
) -> Path:
    """What the command line makes of a pickle, by the same plan."""
    folded = file.with_suffix(".folded.pt")
    command = ["fold", str(file), "--input", "x".join(map(str, example.shape)), "--json"]
    if unsafe:
        assert main(command) == 3
        # Python before 3.11.4 pickles a member of an Enum by getattr.
        message = json.loads(capsys.readouterr().out)["error"]["message"]
        assert unsafe in message or "builtins.getattr" in message
        command.append("--unsafe")
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["site"]["name"] for each in told["plan"]["edits"]] == [e.site.name for e in plan.edits]
    assert told["report"]["verdict"] == ("passed" if plan.edits else "skipped")
    assert (told["output"] and told["output"]["path"]) == (str(folded) if plan.edits else None)
    return folded


def doubled(model: nn.Module, args: tuple[Any, ...]) -> tuple[nn.Module, tuple[Any, ...]]:
    """The model and its arguments in float64."""
    return copy.deepcopy(model).double(), pytree.tree_map_only(Tensor, Tensor.double, args)


@torch.no_grad()
def apart(model: nn.Module, other: nn.Module, args: tuple[Any, ...]) -> float:
    """max|Δ|/max|reference|, the worst of all outputs."""
    ours, theirs = (
        [leaf for leaf in pytree.tree_leaves(m(*copy.deepcopy(args))) if isinstance(leaf, Tensor)]
        for m in (model, other)
    )
    assert [t.shape for t in ours] == [t.shape for t in theirs] != []
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(ours, theirs, strict=True))


def is_rounded(shipped: dict[str, Tensor], exact: dict[str, Tensor]) -> bool:
    """Whether the one is the other in float32, to one unit in the last place."""
    assert shipped.keys() == exact.keys()
    close = {"rtol": torch.finfo(torch.float32).eps, "atol": torch.finfo(torch.float32).smallest_normal}
    return all(
        torch.allclose(tensor.double(), exact[key].double(), **close) for key, tensor in shipped.items()
    )

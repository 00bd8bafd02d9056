"""Real architectures: each is pickled, opened safely and folded by the command line.

The sample runs with the other tests; `make zoo` runs all of them and adds up what it found.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bntools as bn
from bntools.__main__ import main
from bntools.core.reasons import REMEDIES
from tests.pairs import count_sites, must_fold
from tests.zoo import ENTRIES, NEEDS_UNSAFE, SAMPLE, build
from tests.zoo_summary import RESULTS

every_entry = pytest.mark.parametrize(
    "name", [pytest.param(e.name, marks=[] if e.name in SAMPLE else pytest.mark.zoo) for e in ENTRIES]
)


@every_entry
def test_every_pair_folds_and_every_other_site_says_why(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, example = build(name)
    file, folded = tmp_path / "model.pt", tmp_path / "model.folded.pt"
    torch.save(model, file)
    shape = "x".join(map(str, example.shape))
    command = ["fold", str(file), "--input", shape, "--json"]
    unsafe = ["--unsafe"] if name in NEEDS_UNSAFE else []
    if unsafe:
        assert main(command) == 3
        # Python before 3.11.4 pickles a member of an Enum by getattr.
        message = json.loads(capsys.readouterr().out)["error"]["message"]
        assert NEEDS_UNSAFE[name] in message or "builtins.getattr" in message
    assert main([*command, *unsafe]) == 0
    told = json.loads(capsys.readouterr().out)

    edits, refusals = told["plan"]["edits"], told["plan"]["refusals"]
    sites = [each["site"]["name"] for each in (*edits, *refusals)]
    assert len(set(sites)) == len(sites) == count_sites(model, example)
    pairs = must_fold(model, example)
    assert pairs - {edit["site"]["module"] for edit in edits} == set()
    assert all(refusal["detail"] and refusal["reason"] in REMEDIES for refusal in refusals)

    report = told["report"]
    _note(name, sites=sites, pairs=sorted(pairs), edits=edits, refusals=refusals, report=report)
    if not edits:
        assert report["verdict"] == "skipped"
        assert told["output"] is None
        return
    assert report["verdict"] == "passed"
    assert max([report["error"], *(site["error"] for site in report["sites"])]) <= 1e-8
    assert told["output"]["path"] == str(folded)
    # The same once more without the help of what is tested: a fold that is never rounded, and the file.
    double = copy.deepcopy(model).double()
    exact = bn.fold(double, example.double(), verify=False).model
    error = apart(double, exact, example.double())
    assert error <= 1e-8
    assert is_rounded(bn.load(folded, unsafe=bool(unsafe)).state_dict(), exact.state_dict())


@torch.no_grad()
def apart(model: nn.Module, other: nn.Module, example: Tensor) -> float:
    """max|Δ|/max|reference|, the worst of all outputs."""
    ours, theirs = (_flat(m(example)) for m in (model, other))
    assert len(ours) == len(theirs) > 0
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(ours, theirs, strict=True))


def is_rounded(shipped: dict[str, Tensor], exact: dict[str, Tensor]) -> bool:
    """Whether the one is the other in float32, to one unit in the last place."""
    assert shipped.keys() == exact.keys()
    close = {"rtol": torch.finfo(torch.float32).eps, "atol": torch.finfo(torch.float32).smallest_normal}
    return all(
        torch.allclose(tensor.double(), exact[key].double(), **close) for key, tensor in shipped.items()
    )


def _flat(out: Any) -> list[Tensor]:
    values = out.values() if isinstance(out, dict) else out if isinstance(out, list | tuple) else [out]
    return [t for v in values for t in ([v] if isinstance(v, Tensor) else _flat(v))]


def _note(name: str, **found: Any) -> None:
    """Kept for `python -m tests.zoo_summary`."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name.replace(':', '-')}.json").write_text(json.dumps({"name": name, **found}))

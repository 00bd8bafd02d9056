"""Surgery on trained PyTorch models with BatchNorm.

Inspect, fold, recalibrate, freeze, swap or export a model; verify what came of it, and replay it on another.

>>> import torch, bntools as bn
>>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).eval()
>>> bn.fold(net, torch.randn(2, 4)).report.verdict.value
'passed'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "BntoolsError",
    "Capture",
    "CaptureError",
    "Census",
    "Change",
    "Drift",
    "Edit",
    "Example",
    "Export",
    "Finding",
    "Freezing",
    "Observation",
    "Plan",
    "PlanError",
    "Promise",
    "PromiseError",
    "Reason",
    "Refusal",
    "Report",
    "Site",
    "SourceError",
    "Surgery",
    "UnsafeError",
    "UsageError",
    "Verdict",
    "capture",
    "compare",
    "export",
    "find_folds",
    "fold",
    "fold_tensors",
    "freeze",
    "graft_",
    "inspect",
    "load",
    "observe",
    "recalibrate",
    "replay",
    "save",
    "swap",
    "unfreeze",
    "verify",
]

# Names are imported when they are first used, so that `bntools --help` does not wait for torch.
_HOMES = {
    "bntools.core.calls": ["Capture"],
    "bntools.core.capture": ["capture"],
    "bntools.core.change": ["Change"],
    "bntools.core.compute": ["fold_tensors"],
    "bntools.core.drift": ["Drift"],
    "bntools.core.example": ["Example"],
    "bntools.core.find": ["find_folds"],
    "bntools.core.freezing": ["Freezing"],
    "bntools.findings.census": ["Census"],
    "bntools.findings.finding": ["Finding"],
    "bntools.core.graft": ["graft_"],
    "bntools.core.plan": ["Edit", "Plan", "Promise", "Refusal", "Site"],
    "bntools.core.reasons": ["Reason"],
    "bntools.core.store": ["replay", "save"],
    "bntools.core.surgery": ["Surgery"],
    "bntools.core.verify": ["Report", "Verdict", "compare"],
    "bntools.core.observe": ["Observation", "observe"],
    "bntools.errors": [
        "BntoolsError",
        "CaptureError",
        "PlanError",
        "PromiseError",
        "SourceError",
        "UnsafeError",
        "UsageError",
    ],
    "bntools.verbs.export": ["Export", "export"],
    "bntools.verbs.fold": ["fold"],
    "bntools.verbs.freeze": ["freeze", "unfreeze"],
    "bntools.verbs.inspect": ["inspect"],
    "bntools.verbs.load": ["load"],
    "bntools.verbs.recalibrate": ["recalibrate"],
    "bntools.verbs.swap": ["swap"],
    "bntools.verbs.verify": ["verify"],
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

if TYPE_CHECKING:
    from bntools.core.calls import Capture
    from bntools.core.capture import capture
    from bntools.core.change import Change
    from bntools.core.compute import fold_tensors
    from bntools.core.drift import Drift
    from bntools.core.example import Example
    from bntools.core.find import find_folds
    from bntools.core.freezing import Freezing
    from bntools.core.graft import graft_
    from bntools.core.observe import Observation, observe
    from bntools.core.plan import Edit, Plan, Promise, Refusal, Site
    from bntools.core.reasons import Reason
    from bntools.core.store import replay, save
    from bntools.core.surgery import Surgery
    from bntools.core.verify import Report, Verdict, compare
    from bntools.errors import (
        BntoolsError,
        CaptureError,
        PlanError,
        PromiseError,
        SourceError,
        UnsafeError,
        UsageError,
    )
    from bntools.findings.census import Census
    from bntools.findings.finding import Finding
    from bntools.verbs.export import Export, export
    from bntools.verbs.fold import fold
    from bntools.verbs.freeze import freeze, unfreeze
    from bntools.verbs.inspect import inspect
    from bntools.verbs.load import load
    from bntools.verbs.recalibrate import recalibrate
    from bntools.verbs.swap import swap
    from bntools.verbs.verify import verify


if not TYPE_CHECKING:  # a checker that sees it takes every name, misspelt ones too, for an object

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module 'bntools' has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__

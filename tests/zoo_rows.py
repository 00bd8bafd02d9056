"""What the sweep found, a file of JSON for each architecture and level."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bntools.core.plan import Plan
from bntools.core.verify import Report

RESULTS = Path("build/zoo")
LEVELS = ("module", "program")

Row = dict[str, Any]


def note(name: str, level: str, found: Mapping[str, Any]) -> None:
    """Keep what was found at one level; each has a file of its own, as workers write at the same time."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"name": name, "level": level, **found}, indent=1)
    (RESULTS / f"{name.replace(':', '-')}.{level}.json").write_text(text + "\n")


def told(plan: Plan, report: Report) -> Row:
    """A fold in numbers: what went, what stayed and why, and the worst errors in float64."""
    worst = max(report.sites, key=lambda site: site.error, default=None)
    return {
        "sites": len(plan.sites),
        "folded": len(plan.edits),
        "sides": Counter(edit.side.value for edit in plan.edits),
        "refused": Counter(refusal.reason.value for refusal in plan.refusals),
        "verdict": report.verdict.value,
        "error": report.error,
        "site_error": worst.error if worst else 0.0,
        "site": worst.name if worst else "",
        "power": report.power,
        "shipped_error": report.shipped_error,
        "noise": report.noise,
        "refusals": [[r.site.name, r.reason.value, r.detail, r.behind] for r in plan.refusals],
    }


def read() -> list[Row]:
    """All that was found, by model: ``{"name": …, "module": …, "program": …}``, in the order of the names."""
    rows: dict[str, Row] = {}
    for file in sorted(RESULTS.glob("*.json")):
        found = json.loads(file.read_text())
        rows.setdefault(found["name"], {"name": found["name"]})[found["level"]] = found
    return list(rows.values())

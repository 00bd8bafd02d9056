"""Add up what `make zoo` found: ``python -m tests.zoo_summary``."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from tests.zoo import ENTRIES

RESULTS = Path("build/zoo")


def main() -> None:
    rows = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))]
    by_family = Counter(row["name"].partition(":")[0] for row in rows)
    families = " and ".join(f"{count} of {family}" for family, count in by_family.items())
    sites, pairs, edits = (sum(len(row[key]) for row in rows) for key in ("sites", "pairs", "edits"))
    print(f"{len(rows)} of {len(ENTRIES)} architectures, {families}")
    print(f"{sites} sites, {edits} folded, among them all {pairs} pairs of autograd's graph")
    print(f"refused: {_listed(Counter(r['reason'] for row in rows for r in row['refusals']))}")
    proven = [row for row in rows if row["edits"]]
    worst, where = max((row["report"]["error"], row["name"]) for row in proven)
    print(f"worst error of an output in float64: {worst:.1e} of its scale, {where}")
    checks = ((site["error"], row["name"], site["name"]) for row in proven for site in row["report"]["sites"])
    worst, *place = max(checks)
    print(f"worst error of a site in float64: {worst:.1e} of its scale, {' '.join(place)}")
    least, where = min((row["report"]["power"], row["name"]) for row in proven)
    print(f"least power: {least:.1e}, {where}")


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())


if __name__ == "__main__":
    main()

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
    sites, pairs, edits = (sum(row[key] for row in rows) for key in ("sites", "pairs", "edits"))
    print(f"{len(rows)} of {len(ENTRIES)} architectures, {families}")
    print(f"{sites} sites, {edits} folded, among them all {pairs} pairs of autograd's graph")
    print(f"refused: {_listed(Counter(reason for row in rows for reason in row['reasons']))}")
    for key in ("error", "independent"):
        worst = max(rows, key=lambda row: float(row[key]))
        print(f"worst {key} in float64: {worst[key]:.1e} of the scale, {worst['name']}")
    weakest = min(rows, key=lambda row: float(row["power"]))
    print(f"least power: {weakest['power']:.1e}, {weakest['name']}")


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())


if __name__ == "__main__":
    main()

"""What `make zoo` found, as Markdown: ``python -m tests.coverage [--write]``.

Beside it stands what the best other tool takes out of each model, where `make peers` has measured it. The
section of `make exported` is taken over from the page as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests import exported, zoo_rows
from tests.peers import table as peers
from tests.zoo import ENTRIES
from tests.zoo_rows import Row

PAGE = Path("docs/coverage.md")
PEERS = Path("build/peers")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.coverage", description="Add up what `make zoo` found."
    )
    parser.add_argument("--write", action="store_true", help=f"write {PAGE}, if the sweep is whole")
    asked = parser.parse_args()
    rows, others = zoo_rows.read(), {row["name"]: row for row in map(_json, sorted(PEERS.glob("*.json")))}
    if not rows:
        parser.error(f"{zoo_rows.RESULTS} holds nothing; run `make zoo` first")
    text = page(rows, others, PAGE.read_text() if PAGE.exists() else "")
    if not asked.write:
        sys.stdout.write(text)
        return 0
    missing = [
        f"{entry.name} ({level})"
        for entry in ENTRIES
        for level in zoo_rows.LEVELS
        if not any(row["name"] == entry.name and level in row for row in rows)
    ]
    if missing:
        sys.stderr.write(f"{PAGE} is left as it is; not measured: {', '.join(missing)}\n")
        return 1
    PAGE.write_text(text)
    return 0


def _json(file: Path) -> Row:
    row: Row = json.loads(file.read_text())
    return row


def page(rows: list[Row], others: Mapping[str, Row], old: str = "") -> str:
    """The page: what it adds up to, a line for each model, and the ONNX files that the *old* one tells of."""
    text = "\n".join(["# Coverage", "", *_sums(rows, others), "", *_models(rows, others)]) + "\n"
    return exported.kept(text, old)


def _sums(rows: list[Row], others: Mapping[str, Row]) -> Iterator[str]:
    families = Counter(row["name"].partition(":")[0] for row in rows)
    yield f"{len(rows)} architectures: {', '.join(f'{n} of {family}' for family, n in families.items())}."
    for level in zoo_rows.LEVELS:
        found = [row[level] for row in rows if "folded" in row.get(level, {})]
        if not found:
            continue
        sites, folded = (sum(each[key] for each in found) for key in ("sites", "folded"))
        yield ""
        yield f"As a {level}, {len(found)} models: {folded} of {sites} sites fold ({folded / sites:.1%})."
        refused = sum((Counter(each["refused"]) for each in found), Counter[str]())
        yield f"Refused: {_listed(refused)}."
        worst = max(max(each["error"], each["site_error"], each.get("own_error", 0.0)) for each in found)
        yield f"The worst error in float64 is {worst:.1e} of its scale."
    shares = {
        row["name"]: row["program"]["seconds"]["find"] / row["program"]["seconds"]["capture"]
        for row in rows
        if "seconds" in row.get("program", {})
    }
    if shares:
        worst = max(shares, key=lambda name: shares[name])
        yield ""
        yield (
            f"To find what folds takes less than the capture on {sum(s < 1 for s in shares.values())} "
            f"of {len(shares)} models; most on {worst}, {shares[worst]:.2f} of it."
        )
    pairs = [(row, others[row["name"]]) for row in rows if "module" in row and _measured(row, others)]
    if pairs:
        ours, theirs = sum(_ours(row) for row, _ in pairs), sum(peers.best(other) for _, other in pairs)
        calls = sum(other[peers.ORIGINAL]["calls"] for _, other in pairs)
        more = [row["name"] for row, other in pairs if peers.best(other) > _ours(row)]
        yield ""
        yield (
            f"Of the {calls} calls of BatchNorm in the {len(pairs)} models that others were measured on, "
            f"bntools takes out {ours} ({ours / calls:.1%}), the best of {_tools(pairs)} on each model "
            f"{theirs} ({theirs / calls:.1%}). Another takes more out of: {', '.join(more) or 'none'}."
        )
    yield from _left(rows, others)


def _left(rows: list[Row], others: Mapping[str, Row]) -> Iterator[str]:
    """What torch's exporter leaves in an ONNX file, and what stays in the program."""
    found = [
        (
            row["name"],
            others[row["name"]]["peers"]["onnx.export"]["left"],
            program["sites"] - program["folded"],
        )
        for row in rows
        if _measured(row, others)
        and "left" in others[row["name"]]["peers"].get("onnx.export", {})
        and "folded" in (program := row.get("program", {}))
    ]
    for family in dict.fromkeys(name.partition(":")[0] for name, _, _ in found):
        left = [(theirs, ours) for name, theirs, ours in found if name.startswith(f"{family}:")]
        theirs, ours = (sum(pair[i] for pair in left) for i in (0, 1))
        models = sum(pair[0] > 0 for pair in left)
        yield ""
        yield (
            f"torch's exporter leaves {theirs} BatchNorms in the ONNX files of {models} of {len(left)} "
            f"models of {family}; in the programs of the same models {ours} stay."
        )


def _tools(pairs: list[tuple[Row, Row]]) -> str:
    """The other tools that were measured."""
    return ", ".join(dict.fromkeys(tool for _, other in pairs for tool in other["peers"]))


def _measured(row: Row, others: Mapping[str, Row]) -> bool:
    return bool(others.get(row["name"], {}).get(peers.ORIGINAL))


def _ours(row: Row) -> int:
    """How many sites go, at the better of the two levels."""
    return max(int(row[level].get("folded", 0)) for level in zoo_rows.LEVELS if level in row)


def _models(rows: list[Row], others: Mapping[str, Row]) -> Iterator[str]:
    heads = "model", "sites", "module", "program", "another tool", "refused (module)", "error, float64"
    yield peers.line(*heads, "seconds: capture", "find", "program")
    yield "|---|---:|---:|---:|---:|---|---:|---:|---:|---:|"
    for row in rows:
        module, program = row.get("module", {}), row.get("program", {})
        other = peers.best(others[row["name"]]) if _measured(row, others) else ""
        folded = program.get("folded", "not exported" if "not_exported" in program else "")
        errors = [each[key] for each in (module, program) for key in ("error", "site_error") if key in each]
        seconds = [f"{s:.2f}" for s in program.get("seconds", {}).values()]
        yield peers.line(
            row["name"],
            *(module.get(key, "") for key in ("sites", "folded")),
            folded,
            other,
            _listed(Counter(module.get("refused", {}))),
            f"{max(errors):.0e}" if errors else "",
            *(*seconds, "", "", "")[:3],
        )


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common()) or "none"


if __name__ == "__main__":
    sys.exit(main())

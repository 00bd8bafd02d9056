"""What a bench returns: tables as data, with what is claimed and what was not measured.

Each module beside this one has a ``bench(names)`` that returns a `Result`, and hands it to `main`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bench import machine


@dataclass(frozen=True)
class Table:
    """Args:
    about: what the columns are, and in which units.
    columns: their heads; the first is what a row is of.
    rows: a cell for each column.
    """

    about: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        if wrong := [row for row in self.rows if len(row) != len(self.columns)]:
            raise ValueError(f"{len(self.columns)} columns, and a row is {wrong[0]}")
        ruler = "|---|" + "---:|" * (len(self.columns) - 1)
        lines = [f"| {' | '.join(cells)} |" for cells in (self.columns, *self.rows)]
        return "\n".join([self.about, "", lines[0], ruler, *lines[1:]])


@dataclass(frozen=True)
class Result:
    """Args:
    claim: what is held against what, and what is claimed.
    tables: what was found.
    not_measured: what one might think it says, and it does not.
    notes: what else was found.
    threads: of torch, or of whatever runs.
    holds: False if a limit that the bench has was not kept.
    """

    claim: str
    tables: tuple[Table, ...]
    not_measured: str
    threads: int
    notes: tuple[str, ...] = ()
    holds: bool = True

    def markdown(self) -> str:
        parts = [self.claim, *(table.markdown() for table in self.tables), *self.notes]
        return "\n\n".join([*parts, f"Not measured: {self.not_measured}"])

    @staticmethod
    def of(data: dict[str, Any]) -> Result:
        """From what `asdict` made of one, by way of JSON."""
        tables = tuple(
            Table(each["about"], tuple(each["columns"]), tuple(map(tuple, each["rows"])))
            for each in data["tables"]
        )
        return Result(**{**data, "tables": tables, "notes": tuple(data["notes"])})


def main(bench: Callable[[Sequence[str]], Result]) -> int:
    """Measure, print, and write where ``--json`` says; 1 if a limit was not kept."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to measure, where there are several")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was found there")
    asked = parser.parse_args()
    at = {**machine.found(), "date": time.strftime("%Y-%m-%d"), "load": os.getloadavg()[0]}
    start = time.perf_counter()
    result = bench(asked.names)
    at["seconds"] = time.perf_counter() - start
    print(result.markdown())
    if asked.json:
        write(asked.json, {"result": asdict(result), "names": asked.names, "at": at})
    return int(not result.holds)


def write(path: Path, data: dict[str, Any]) -> None:
    """All of the file or nothing, since who finds one takes it as measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data, indent=1, ensure_ascii=False), "utf-8")
    part.replace(path)


def begun(name: str) -> str:
    """Say on stderr what is measured now; returns the name."""
    print(f"  {name}", file=sys.stderr, flush=True)
    return name

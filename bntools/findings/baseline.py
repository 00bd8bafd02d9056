"""Findings that are known: a file of them, by which only new ones are told. No torch here."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bntools.core.atomic import check_place, replacing
from bntools.core.records import plain
from bntools.errors import SourceError, UsageError
from bntools.findings.finding import Finding
from bntools.findings.thresholds import rule_called

SCHEMA = 1
KIND = "bntools baseline"
_NO_BASELINE = "write one with --write-baseline"


@dataclass(frozen=True, slots=True)
class Known:
    """A finding that is known, by its rule and its layer, which is None for the model as a whole."""

    rule: str
    layer: str | None


@dataclass(frozen=True, slots=True)
class Compared:
    """Findings held against a baseline.

    Args:
        path: of the file.
        known: how many of the findings are in it.
        gone: its entries that no longer occur, as far as their rules were asked.
        new: the findings that are not in it; all of them, if it was written just now.
        written: whether it was.
    """

    path: str
    known: int
    gone: tuple[Known, ...]
    new: tuple[Finding, ...]
    written: bool = False


def compared(
    path: Path, entries: Collection[Known], findings: Sequence[Finding], asked: Collection[str]
) -> Compared:
    """Which findings are new, and which entries of a baseline no longer occur.

    Args:
        path, entries: of the baseline.
        findings: all of them.
        asked: the rules that were asked; of others nobody knows whether they would still find something.

    Example:
        >>> found = [Finding("BN013", "note", "a", "")]
        >>> compared(Path("b.json"), {Known("BN013", "a"), Known("BN013", "b")}, found, {"BN013"}).gone
        (Known(rule='BN013', layer='b'),)
    """
    there = {Known(finding.rule, finding.layer) for finding in findings}
    new = tuple(f for f in findings if Known(f.rule, f.layer) not in entries)
    gone = [each for each in entries if each not in there and each.rule in asked]
    return Compared(str(path), len(findings) - len(new), _sorted(gone), new)


def read_baseline(path: Path) -> frozenset[Known]:
    """The entries of a baseline.

    Raises:
        SourceError: if it is missing or damaged, or no baseline at all.
    """
    try:
        raw = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}", todo=_NO_BASELINE) from None
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: a damaged baseline, no JSON: {error}", todo=_NO_BASELINE) from None
    if not isinstance(raw, dict) or raw.get("kind") != KIND:
        raise SourceError(f"{path}: no baseline of bntools", todo=_NO_BASELINE)
    if type(raw.get("schema")) is not int or raw["schema"] != SCHEMA:
        raise SourceError(
            f"{path}: a baseline of schema {plain(raw.get('schema'))}, expected {SCHEMA}",
            todo="use the bntools that wrote it, or write it again with --write-baseline --force",
        )
    if raw.keys() != {"kind", "schema", "findings"} or not isinstance(raw["findings"], list):
        raise SourceError(f"{path}: a damaged baseline, without its findings", todo=_NO_BASELINE)
    return frozenset(_entry(path, at, each) for at, each in enumerate(raw["findings"]))


def _entry(path: Path, at: int, raw: Any) -> Known:
    where = f"{path}: a damaged baseline, findings[{at}]"
    if not isinstance(raw, dict) or raw.keys() != {"rule", "layer"}:
        raise SourceError(f"{where} is {plain(raw)}, no rule and layer", todo=_NO_BASELINE)
    rule, layer = raw["rule"], raw["layer"]
    if not isinstance(rule, str) or not (layer is None or isinstance(layer, str)):
        raise SourceError(f"{where} is {plain(raw)}, no rule and layer", todo=_NO_BASELINE)
    try:
        return Known(rule_called(rule).id, layer)
    except UsageError as error:
        raise SourceError(f"{where}: {error.message}", todo=error.todo) from None


def check_baseline(path: Path, *, force: bool) -> None:
    """Whether a baseline may be written there, before minutes go into a run: a baseline is replaced, any
    other file only with *force*.

    Raises:
        UsageError: if it may not.
    """
    check_place(path, force=True)
    if force or not path.exists():
        return
    try:
        read_baseline(path)
    except SourceError:
        raise UsageError(
            f"{path}: exists and is no baseline that can be read",
            todo="name another file, or replace it with --force",
        ) from None


def write_baseline(path: Path, findings: Sequence[Finding], *, force: bool) -> Compared:
    """Write a baseline, sorted, whole or not at all; equal findings give equal bytes.

    Args:
        path: where to.
        findings: those that are known from now on.
        force: replace a file that is no baseline.

    Returns:
        all findings, with how many are known by now.

    Raises:
        UsageError: if the file may not be replaced.
        SourceError: if it cannot be written.
    """
    entries = _sorted({Known(finding.rule, finding.layer) for finding in findings})
    told = [{"rule": each.rule, "layer": each.layer} for each in entries]
    # A line for each, so that a review sees which came and which went.
    lines = ",\n".join(f"    {json.dumps(each)}" for each in told)
    listed = f"[\n{lines}\n  ]" if lines else "[]"
    text = f'{{\n  "kind": "{KIND}",\n  "schema": {SCHEMA},\n  "findings": {listed}\n}}\n'
    check_baseline(path, force=force)
    with replacing(path, force=True) as part:
        part.write_text(text, "utf-8")
    return Compared(str(path), len(findings), (), tuple(findings), written=True)


def _sorted(entries: Iterable[Known]) -> tuple[Known, ...]:
    return tuple(sorted(entries, key=lambda each: (each.rule, each.layer is not None, each.layer or "")))

"""A file of known findings: what is in it is not told again, and what is new is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bntools.errors import BntoolsError, SourceError, UsageError
from bntools.findings import Finding, Measure, Severity
from bntools.findings.baseline import KIND, SCHEMA, Known, compared, read_baseline, write_baseline


def found(rule: str, layer: str | None, value: float = 0.0) -> Finding:
    return Finding(rule, Severity.NOTE, layer, f"{value}", (Measure("x", value),))


FINDINGS = [found("BN013", "b"), found("BN002", "a\n\ud800é"), found("BN026", None), found("BN013", "")]


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "known.json"
    told = write_baseline(path, FINDINGS, force=False)
    assert (told.path, told.known, told.gone, told.new, told.written) == (
        str(path),
        4,
        (),
        tuple(FINDINGS),
        True,
    )
    assert read_baseline(path) == {Known(f.rule, f.layer) for f in FINDINGS}


def test_it_is_sorted_and_has_a_line_for_each(tmp_path: Path) -> None:
    path, other = tmp_path / "known.json", tmp_path / "other.json"
    write_baseline(path, [*FINDINGS, found("BN013", "b", 2.0)], force=False)
    write_baseline(other, FINDINGS[::-1], force=False)
    text = path.read_text("utf-8")
    assert text == other.read_text("utf-8")
    raw = json.loads(text)
    assert (raw["kind"], raw["schema"]) == ("bntools baseline", 1) == (KIND, SCHEMA)
    pairs = [(each["rule"], each["layer"]) for each in raw["findings"]]
    assert pairs == [("BN002", "a\n\ud800é"), ("BN013", ""), ("BN013", "b"), ("BN026", None)]
    assert len(text.splitlines()) == 6 + len(pairs)  # {, kind, schema, findings, ] and }
    write_baseline(path, [], force=False)
    assert read_baseline(path) == frozenset()


def test_a_finding_is_known_whatever_its_numbers() -> None:
    entries = {Known("BN013", "b"), Known("BN002", "a"), Known("BN026", None)}
    now = [found("BN013", "b", 7.0), found("BN013", "c"), found("BN002", "b"), found("BN026", None)]
    told = compared(Path("k.json"), entries, now, {"BN002", "BN013", "BN026"})
    assert told.new == (now[1], now[2])
    assert told.known == 2
    assert told.gone == (Known("BN002", "a"),)


def test_the_model_and_its_root_are_two() -> None:
    told = compared(Path("k"), {Known("BN026", "")}, [found("BN026", None)], {"BN026"})
    assert (told.known, told.gone) == (0, (Known("BN026", ""),))


def test_of_a_rule_that_was_not_asked_nothing_is_gone() -> None:
    entries = {Known("BN013", "a"), Known("BN002", "a")}
    assert compared(Path("k"), entries, [], {"BN002"}).gone == (Known("BN002", "a"),)


GOOD = {"kind": KIND, "schema": SCHEMA, "findings": [{"rule": "BN002", "layer": "a"}]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no JSON"),
        (b'{"kind": ', "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        ([], "no baseline"),
        ({}, "no baseline"),
        ({**GOOD, "kind": "other"}, "no baseline"),
        ({**GOOD, "schema": 2}, "a baseline of schema 2, expected 1"),
        ({**GOOD, "schema": True}, "schema True"),
        ({**GOOD, "findings": None}, "without its findings"),
        ({**GOOD, "more": 1}, "without its findings"),
        ({**GOOD, "findings": [3]}, "findings[0] is 3"),
        ({**GOOD, "findings": [{"rule": "BN002"}]}, "no rule and layer"),
        ({**GOOD, "findings": [*GOOD["findings"], {"rule": "BN002", "layer": 1}]}, "findings[1]"),
        ({**GOOD, "findings": [{"rule": 3, "layer": "a"}]}, "no rule and layer"),
        ({**GOOD, "findings": [{"rule": "BN999", "layer": "a"}]}, "BN999: no such rule"),
    ],
)  # fmt: skip
def test_a_damaged_file(tmp_path: Path, content: Any, says: str) -> None:
    path = tmp_path / "known.json"
    path.write_text(json.dumps(GOOD), "utf-8")
    assert read_baseline(path) == {Known("BN002", "a")}
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(raw)
    with pytest.raises(SourceError) as caught:
        read_baseline(path)
    assert says in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.todo
    with pytest.raises(UsageError, match="--force"):
        write_baseline(path, FINDINGS, force=False)
    assert path.read_bytes() == raw
    write_baseline(path, FINDINGS, force=True)
    assert len(read_baseline(path)) == len(FINDINGS)


def test_a_baseline_is_replaced_and_nothing_else_lies_around(tmp_path: Path) -> None:
    path = tmp_path / "known.json"
    for findings in (FINDINGS, FINDINGS[:1]):
        write_baseline(path, findings, force=False)
    assert read_baseline(path) == {Known("BN013", "b")}
    assert [each.name for each in tmp_path.iterdir()] == ["known.json"]


@pytest.mark.parametrize("name", ["", "gone/known.json"])
@pytest.mark.parametrize("force", [False, True])
def test_a_place_where_none_can_be(tmp_path: Path, name: str, force: bool) -> None:
    with pytest.raises(BntoolsError) as caught:
        write_baseline(tmp_path / name, FINDINGS, force=force)
    assert caught.value.todo
    with pytest.raises(SourceError, match="cannot be read"):
        read_baseline(tmp_path / name)

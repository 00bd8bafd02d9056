"""The JSON schemas in docs/schema, made of the records that the command line prints.

``python -m tests.schemas`` says whether the files are those of the code, with ``--write`` it writes them.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypedDict, Union, get_args, get_origin, get_type_hints, is_typeddict

from bntools.cli.facts import Failure, Loading, Output
from bntools.cli.render import SCHEMA
from bntools.core.change import Change
from bntools.core.drift import Drift
from bntools.core.freezing import Freezing
from bntools.core.latency import Latency
from bntools.core.onnxfile import Graph
from bntools.core.plan import Plan, Site
from bntools.core.verify import Report
from bntools.findings import Finding, Rule
from bntools.findings.baseline import Known
from bntools.findings.mixtures import Mixture

FOLDER = Path(__file__).parent.parent / "docs" / "schema"
SHARED = "records.json"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


class Baseline(TypedDict):
    """A file of known findings, which are not told; or one that was written just now."""

    path: str
    written: bool
    known: int
    gone: tuple[Known, ...]


_CHANGED = {"model": Loading, "dry_run": bool, "plan": Plan, "output": Output | None}
VERBS: Mapping[str, Mapping[str, Any]] = {
    "inspect": {
        "model": Loading,
        "input": str | None,
        "sites": tuple[Site, ...],
        "plan": Plan | None,
        "mixtures": tuple[Mixture, ...],
        "drift": Drift | None,
        "left_out": tuple[str, ...],
        "findings": tuple[Finding, ...],
        "rules": Mapping[str, Rule],
        "baseline": Baseline | None,
    },
    "fold": {**_CHANGED, "input": str | None, "report": Report | None, "latency": Latency | None},
    "recalibrate": {**_CHANGED, "drift": Drift, "left_out": tuple[str, ...], "plot": str | None},
    "freeze": {**_CHANGED, "frozen": Freezing},
    "unfreeze": {**_CHANGED, "frozen": Freezing},
    "swap": {**_CHANGED, "change": Change | None, "left_out": tuple[str, ...]},
    "export": {
        "model": Loading,
        "input": str,
        "plan": Plan | None,
        "report": Report | None,
        "check": Report | None,
        "graph": Graph,
        "alone": Graph | None,
        "weights": str | None,
        "output": Output | None,
    },
    "verify": {"a": Loading, "b": Loading, "report": Report | None},
    "replay": {"model": Loading, "plan": Plan, "output": Output | None},
}
"""What each verb prints, besides the version, its name and an error."""


def documents() -> dict[str, dict[str, Any]]:
    """Each file by its name: one for each verb, and the records that they share."""
    records: dict[str, Any] = {}
    made = {f"{verb}.json": _verb(verb, fields, records) for verb, fields in VERBS.items()}
    shared = {
        "$schema": DIALECT,
        "title": "The records that the verbs print",
        "$defs": dict(sorted(records.items())),
    }
    return {**made, SHARED: shared}


def _verb(verb: str, fields: Mapping[str, Any], records: dict[str, Any]) -> dict[str, Any]:
    told = {name: _type(kind, records, SHARED) for name, kind in fields.items()}
    failure = {"report": _type(Report | None, records, SHARED)} | told
    return {
        "$schema": DIALECT,
        "title": f"bntools {verb} --json",
        "description": "One object, whatever happens. Where nothing was found out there is an error and no "
        "result. More fields may come; the version changes when one goes or means something else.",
        "type": "object",
        "properties": {
            "schema": {"const": SCHEMA},
            "command": {"const": verb},
            **failure,
            "error": _type(Failure, records, SHARED),
        },
        "required": ["schema", "command"],
        "anyOf": [{"required": list(told)}, {"required": ["error", "report"]}],
    }


def _type(kind: Any, records: dict[str, Any], file: str = "") -> dict[str, Any]:
    """The schema of a type; records are collected once, and referred to."""
    of = get_args(kind)
    if isinstance(kind, UnionType) or get_origin(kind) is Union:
        made = [_type(each, records, file) for each in of]
        plain = [each["type"] for each in made if each.keys() == {"type"}]
        if len(plain) == len(made):  # {"type": [...]}, without a type twice
            return {"type": list(dict.fromkeys(t for p in plain for t in ([p] if isinstance(p, str) else p)))}
        return {"anyOf": made}
    if get_origin(kind) is tuple:
        if of[-1] is ...:
            return {"type": "array", "items": _type(of[0], records, file)}
        items = [_type(each, records, file) for each in of]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    if isinstance(get_origin(kind), type) and issubclass(get_origin(kind), Mapping):
        return {"type": "object", "additionalProperties": _type(of[1], records, file)}
    if dataclasses.is_dataclass(kind) or is_typeddict(kind):
        _record(kind, records)
        return {"$ref": f"{file}#/$defs/{kind.__name__}"}
    if issubclass(kind, StrEnum):
        return {"enum": [each.value for each in kind]}
    # JSON has no word for infinity and NaN.
    names = {str: "string", bool: "boolean", int: "integer", NoneType: "null", float: ["number", "null"]}
    return {"type": names[kind]}


def _record(kind: Any, records: dict[str, Any]) -> None:
    if kind.__name__ in records:
        return
    records[kind.__name__] = {}  # its own name, if it holds others of its kind
    hints = get_type_hints(kind, localns={"Report": Report})
    left_out = (
        {f.name for f in dataclasses.fields(kind) if not f.compare} if not is_typeddict(kind) else set()
    )
    text = inspect.getdoc(kind) or ""
    about = _about(text)
    properties = {}
    for name, hint in hints.items():
        if name not in left_out:
            described = {"description": about[name]} if name in about else {}
            properties[name] = _type(hint, records) | described
    records[kind.__name__] = {
        "description": " ".join(text.partition("\n\n")[0].split()),
        "type": "object",
        "properties": properties,
        "required": list(properties),
    }


def _about(text: str) -> dict[str, str]:
    """What a docstring says of each argument."""
    block = text.partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^ {4}([\w, ]+): (.*(?:\n {5,}.*)*)", block, re.MULTILINE)
    return {name.strip(): " ".join(words.split()) for names, words in entries for name in names.split(",")}


def text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """Whether the files are those of the code, or write them."""
    stale = []
    for name, document in documents().items():
        path = FOLDER / name
        if "--write" in arguments:
            FOLDER.mkdir(exist_ok=True)
            path.write_text(text(document), "utf-8")
        elif not path.is_file() or path.read_text("utf-8") != text(document):
            stale.append(name)
    sys.stdout.write("".join(f"{name} is not that of the code: --write writes it\n" for name in stale))
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

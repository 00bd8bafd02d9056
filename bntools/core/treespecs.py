"""How the arguments of a program are nested, which torch writes as JSON inside a string.

torch reads it back by looking types up, by importing modules for some of them, and by writing keywords into
source code that it runs. Plain containers need none of that.
"""

from __future__ import annotations

import json
import re
from typing import Any

from bntools.core.schema import Stranger, record, sequence, shown, variable

_CONTAINERS = ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", None)
_KEY = re.compile(r"[\w.:/ -]{1,200}", re.ASCII)
_DEEPEST = 40
_TREE = record({"type": lambda v: v, "context": lambda v: v, "children_spec": sequence(lambda v: v)})


def treespec(value: Any) -> str:
    """How arguments are nested, which torch reads from JSON inside a string: of plain containers only."""
    try:
        version, spec = json.loads(value)
    except (TypeError, ValueError, RecursionError):
        raise Stranger(f"'{shown(value)}', which is no structure of arguments") from None
    if version != 1:
        raise Stranger(f"a structure of arguments of version {shown(version)}")
    return json.dumps([1, _tree(spec, 0)])


def arguments(value: Any) -> str:
    """The same of a call: a tuple, and keywords that may stand in source code as names of variables."""
    known = treespec(value)
    spec = json.loads(known)[1]
    kinds = [child["type"] for child in spec["children_spec"]]
    if spec["type"] != "builtins.tuple" or kinds != ["builtins.tuple", "builtins.dict"]:
        raise Stranger("a call that has not arguments and keywords")
    for key in json.loads(spec["children_spec"][1]["context"]):
        variable(key)
    return known


def _tree(value: Any, depth: int) -> dict[str, Any]:
    spec = _TREE(value)
    kind, context, children = spec["type"], spec["context"], spec["children_spec"]
    if depth > _DEEPEST:
        raise Stranger("arguments that are nested without end")
    if kind not in _CONTAINERS:
        raise Stranger(f"arguments of the type {shown(kind)}")
    try:
        inner = json.loads(context) if isinstance(context, str) else context
    except (ValueError, RecursionError):
        inner = context
    if kind in ("builtins.tuple", "builtins.list", None):
        sound = inner is None and (kind is not None or (context is None and not children))
    else:
        sound = isinstance(inner, list) and len(inner) == len(children) and all(map(_is_key, inner))
    if not sound:
        raise Stranger(f"arguments of the type {shown(kind)} with {shown(context)}")
    parts = [_tree(child, depth + 1) for child in children]
    return {"type": kind, "context": None if kind is None else json.dumps(inner), "children_spec": parts}


def _is_key(value: Any) -> bool:
    return type(value) is int or (isinstance(value, str) and _KEY.fullmatch(value) is not None)

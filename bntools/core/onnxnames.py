"""What the nodes of an ONNX file are called: by whoever wrote it, so no name is taken as it is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bntools.core.onnxfile import NORM
from bntools.core.plan import Site
from bntools.core.program import RESERVED

if TYPE_CHECKING:
    import onnx_ir as ir


def path_of(node: ir.Node) -> str:
    """Its name, or that of what it returns, as a path."""
    return as_path(node.name or next((v.name for v in node.outputs if v.name), "") or node.op_type)


def shown(node: ir.Node) -> str:
    """Its type and its name, for people."""
    return f"{as_path(node.op_type)} {path_of(node)}"


def site_of(node: ir.Node) -> Site:
    """The site of a BatchNorm that no program calls."""
    return Site(path_of(node), None, NORM, 0, None, None, None)


def as_path(name: str) -> str:
    """It may come from anybody, and stands in code that is generated."""
    plain = re.sub(r"[^A-Za-z0-9_/:.#-]", "_", name)[:200]
    parts = [part for part in plain.split(".") if part] or ["node"]
    return ".".join(f"{part}#1" if part in RESERVED else part for part in parts)


def as_argument(name: str) -> str:
    word = re.sub(r"\W", "_", name, flags=re.ASCII)
    return word if word.isidentifier() else f"_{word}"

"""Opening what a command works on: the file, its mode, its input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bntools.cli.render import Sink
from bntools.errors import CaptureError, UsageError

if TYPE_CHECKING:  # they import torch
    from bntools.core.example import Example
    from bntools.core.plan import Plan
    from bntools.core.source import Loaded


def arguments(text: str | None) -> dict[str, Any] | None:
    """``--arch-kwargs``, read."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(
            f"--arch-kwargs: no JSON: {error}", todo="""write it as '{"num_classes": 10}'"""
        ) from None
    if not isinstance(value, dict):
        raise UsageError("--arch-kwargs: no JSON object", todo="""write it as '{"num_classes": 10}'""")
    return value


def set_mode(found: Loaded, keep: bool, out: Sink) -> None:
    """A file says nothing of what it will be used for; a fold is for inference."""
    if found.model.training and not keep:
        found.model.eval()
        out.note("the model was in training mode and was put in eval mode (--keep-mode leaves it)")


def example(found: Loaded, shapes: list[str] | None, file: Path | None) -> Example | None:
    """The input that was asked for, else none, and it will be guessed."""
    from bntools.core.inputs import parse_inputs, read_inputs

    if shapes and file:
        raise UsageError("--input and --inputs exclude each other", todo="give one of them")
    if file is not None:
        return read_inputs(file, found.model)
    return parse_inputs(shapes, found.model) if shapes else None


def check_captured(plan: Plan) -> None:
    """A model that does not run has its plan printed, and is an error all the same."""
    if any(r.reason.value == "not-captured" for r in plan.refusals):
        raise CaptureError(plan.refusals[0].detail, todo=plan.refusals[0].remedy)

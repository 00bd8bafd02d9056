"""A folded ONNX file is written once the runtime has run it, and the file that it came from, beside torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import fx

from bntools.core.child import LIMIT, Runtime
from bntools.core.external import put_in_place
from bntools.core.onnxfile import NORM, STANDARD
from bntools.core.onnxmodel import Origin, program_of
from bntools.core.onnxwrite import rewritten
from bntools.core.runtime import check
from bntools.core.sides import FileSide, ModuleSide
from bntools.core.sniff import ARTEFACT_KEY
from bntools.core.surgery import Surgery
from bntools.core.trials import trials
from bntools.core.verify import Report, Verdict
from bntools.errors import PromiseError, first_line


def write_back(
    surgery: Surgery[Any],
    origin: Origin,
    path: Path,
    *,
    force: bool = False,
    certain: bool = False,
    limit: float = LIMIT,
    progress: Callable[[str], None] = lambda step: None,
) -> Report:
    """Write what became of an ONNX file, with its plan inside.

    Both files, before and after, are held against what the graph computes in torch, in float64: what differs
    before was not understood, what differs after was not folded right.

    Args:
        surgery: of the program of an ONNX file.
        origin: of the program.
        path: where to.
        force: replace a file that is there.
        certain: write nothing unless both were run and passed.
        limit: seconds that the runtime may take for one request.
        progress: told the name of each step.

    Returns:
        how the new file was checked; ``unverified`` where the runtime does not run the old one either.

    Raises:
        PromiseError: if one of them computes something else; nothing is written.
        UsageError: if the file is there already.
    """
    program, example = surgery.model, surgery.example
    assert isinstance(program, fx.GraphModule)
    assert example is not None
    source = origin.source
    proto = rewritten(program, surgery.plan, origin)
    entry = next((e for e in proto.metadata_props if e.key == ARTEFACT_KEY), None)
    entry = entry or proto.metadata_props.add()
    entry.key, entry.value = ARTEFACT_KEY, surgery.plan.to_json()
    reference, examples = ModuleSide(program_of(source)), list(trials(example))
    with Runtime(limit) as runtime:
        progress("running the file in ONNX Runtime")
        old = check(reference, FileSide(source.path, runtime), examples)
        if old.verdict is Verdict.FAILED:
            raise PromiseError(
                f"{source.path}: as it is, ONNX Runtime does not compute what its graph says: {old.why}",
                todo="nothing was written; look with `bntools verify`",
                report=old,
            )
        report = old

        def judge(file: Path) -> bool:
            nonlocal report
            _ensure_sound(file, proto, len(surgery.plan.refusals))
            progress("running the folded file in ONNX Runtime")
            report = check(reference, FileSide(file, runtime), examples)
            if report.verdict is Verdict.FAILED and old.verdict is Verdict.PASSED:
                raise PromiseError(
                    f"{path}: ONNX Runtime computes something else: {report.why}",
                    todo="nothing was written",
                    report=report,
                )
            if old.verdict is not Verdict.PASSED:
                report = replace(report, verdict=old.verdict, why=f"the file as it was: {old.why}")
            return not certain or report.verdict is Verdict.PASSED

        put_in_place(proto, path, True if source.external else None, force=force, judge=judge)
    return report


def _ensure_sound(file: Path, proto: Any, stay: int) -> None:
    """ONNX's own check, and no more BatchNorms than were refused."""
    import onnx

    try:
        onnx.checker.check_model(str(file))
    except Exception as error:
        raise PromiseError(
            f"the folded graph is not valid ONNX: {first_line(error)}", todo="nothing was written"
        ) from error
    left = sum(node.op_type == NORM and node.domain in STANDARD for node in proto.graph.node)
    if left > stay:
        raise PromiseError(
            f"the folded graph has {left} BatchNorms, {stay} were refused", todo="nothing was written"
        )

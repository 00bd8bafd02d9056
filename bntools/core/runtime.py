"""An ONNX model against the module that it came from, by the module's own rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bntools.core.capture import first_line
from bntools.core.exact import exact_copy
from bntools.core.example import Example
from bntools.core.observe import difference, observe
from bntools.core.trials import trials
from bntools.core.verify import Verdict

FLOORS = {torch.float32: 1e-6, torch.float16: 2e-3}
"""The smallest error, as a share of the scale, that a runtime may have whatever the model's own rounding
is.
"""
_NOISY = 1e-3
_TIMES = 10.0


@dataclass(frozen=True, slots=True)
class FileCheck:
    """How a file was checked.

    Args:
        verdict: ``passed`` or ``failed``; ``inconclusive`` if the model's own rounding is too large to tell;
            ``skipped`` if the runtime cannot run it.
        error: the largest difference from float64, as a share of the scale.
        noise: that of the module in its own dtype.
        runtime: what ran it.
        why: a sentence, unless it passed.
    """

    verdict: Verdict
    error: float = 0.0
    noise: float = 0.0
    runtime: str = ""
    why: str = ""


def check_onnx(content: bytes, model: nn.Module, example: Example) -> FileCheck:
    """Run an ONNX model beside the module, with the runtime's optimisations off and on, on several inputs.

    With r the module in float64, t in its own dtype and z the runtime, it holds if
    ``max|z − r| ≤ max(10·max|t − r|, floor)``, as shares of ``max|r|``.

    Args:
        content: the file.
        model: the module, in the dtype that ships.
        example: its input; redraws of it are tried as well, at other batch sizes.
    """
    import onnxruntime

    name = f"ONNX Runtime {onnxruntime.__version__}"
    dtype = next((t.dtype for t in model.parameters() if t.is_floating_point()), torch.float32)
    if dtype not in FLOORS:
        return FileCheck(Verdict.SKIPPED, runtime=name, why=f"it has no kernels for {str(dtype)[6:]}")
    try:
        sessions = [_session(onnxruntime, content, optimise=level) for level in (False, True)]
    except Exception as problem:
        why = f"it does not load the file: {first_line(problem)}"
        return FileCheck(Verdict.SKIPPED, runtime=name, why=why)
    twin = exact_copy(model)
    error = noise = 0.0
    for trial in trials(example):
        if not _takes(sessions[0], trial):
            continue  # a program may be made for one batch size
        exact, own = observe(twin, trial).outputs, observe(model, trial, double=False).outputs
        noise = max(noise, difference(own, exact))
        for session in sessions:
            try:
                outputs = _run(session, trial)
            except Exception as problem:
                why = f"it does not run on {trial}: {first_line(problem)}"
                return FileCheck(Verdict.FAILED, runtime=name, why=why)
            if [t.dtype for t in outputs] != [t.dtype for t in own]:
                return FileCheck(Verdict.FAILED, runtime=name, why="it returns other types")
            error = max(error, difference(outputs, exact))
    limit = max(_TIMES * noise, FLOORS[dtype])
    if noise > _NOISY:
        why = f"the model's own rounding is {noise:.1e} of the scale: give inputs that it was trained for"
        return FileCheck(Verdict.INCONCLUSIVE, error, noise, name, why)
    if not error <= limit:
        why = f"off by {error:.1e} of the scale, {limit:.1e} at most can be rounding"
        return FileCheck(Verdict.FAILED, error, noise, name, why)
    return FileCheck(Verdict.PASSED, error, noise, name)


def _session(onnxruntime: Any, content: bytes, *, optimise: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _takes(session: Any, example: Example) -> bool:
    """Whether the file is made for shapes like these."""
    given = [input.shape for input in session.get_inputs()]
    return all(
        not isinstance(n, int) or n == m
        for shape, tensor in zip(given, example.tensors, strict=False)
        for n, m in zip(shape, tensor.shape, strict=False)
    )


def _run(session: Any, example: Example) -> Sequence[Tensor]:
    names = [given.name for given in session.get_inputs()]
    values = [t.detach().cpu().numpy() for t in example.tensors]
    if len(names) != len(values):
        raise ValueError(f"it takes {len(names)} tensors, the example has {len(values)}")
    return [torch.from_numpy(out) for out in session.run(None, dict(zip(names, values, strict=True)))]

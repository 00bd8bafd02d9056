"""Look at the BatchNorms of a model: what they are, which of them fold, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bntools.core.arrays import StateTensor
from bntools.core.axes import open_axes
from bntools.core.batches import Forward, call_of
from bntools.core.capture import capture, check_eager
from bntools.core.decays import decays_in, decays_of
from bntools.core.example import Example
from bntools.core.guess import guess
from bntools.core.keys import stands_beside
from bntools.core.onnxmodel import origin_of
from bntools.core.plan import Plan
from bntools.core.planning import plan_folds, plan_of
from bntools.core.program import atomised
from bntools.core.programs import plan_program
from bntools.core.revive import taken
from bntools.core.rounds import Progress
from bntools.errors import CaptureError, UsageError
from bntools.findings.census import Census, census_of_tensors, check_choices
from bntools.findings.checkup import look_over
from bntools.findings.examine import asked_of, examine
from bntools.findings.live import of_model, stored_of
from bntools.findings.mixtures import mixtures_of
from bntools.findings.subject import Seen


def inspect(
    model: nn.Module | torch.export.ExportedProgram,
    inputs: Any = None,
    *,
    data: Iterable[Any] | None = None,
    forward: Forward | None = None,
    max_samples: int | None = 8192,
    optimizer: torch.optim.Optimizer | Mapping[str, Any] | None = None,
    thresholds: Mapping[str, float] | None = None,
    batch_size: int | None = None,
    progress: Progress = lambda step, samples: None,
) -> Census:
    """List every BatchNorm of a model with its verdict and what is wrong with it; nothing is changed.

    Args:
        model: an eager module, in the mode that it will be used in. Or a program of `torch.export`, with the
            verdicts of a fold of it, on its own inputs if *inputs* is None.
        inputs: as for `fold`; if None, a few of the data, and guessed without.
        data: batches as for `recalibrate`, to be told whether the statistics are theirs, where the first
            layer is whose are not, and what else only data shows.
        forward, max_samples: how batches are run, and where to stop reading, as for `recalibrate`.
        optimizer: that trains the model, or its state, to be told which γ and β decay.
        thresholds: from where on a rule speaks up, by its id, such as ``{"BN007": 0.05}``.
        batch_size: how many samples each device gets in training, to be told whether those are enough.
        progress: told what is being done with the data, and of how many samples.

    Returns:
        the sites, the plan with each of them in ``edits`` or ``refusals``, the findings, the worst first, and
        what the pass over the data showed.

    Raises:
        CaptureError: if no inputs were given and none could be guessed, or the model does not run on data.
        UsageError: if *model* is no eager module, a threshold is for no rule that has one, the data gives no
            batches, or there is data for a program.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.BatchNorm2d(2)).eval()
        >>> census = inspect(net, torch.ones(1, 1, 5, 5))
        >>> [(r.site.name, r.reason.value) for r in census.plan.refusals]
        [('2', 'blocked')]
        >>> [(finding.rule, finding.severity.value, finding.layer) for finding in census.findings]
        [('BN003', 'error', '2')]
    """
    model, inputs, program = taken(model, inputs)
    whole = model
    if program is not None:
        model = atomised(program)
    check_eager(model)
    check_choices(thresholds, batch_size)
    passed = None
    if data is not None:
        if program is not None or origin_of(model) is not None:
            raise UsageError(
                "data: the BatchNorms of a program are operators, which no pass can stop at",
                todo="give the model that it was made of, or leave out the data",
            )
        passed = look_over(model, data, forward=forward, max_samples=max_samples, progress=progress)
        if inputs is None and forward is None and passed.some is not None:
            inputs = replace(call_of(model, passed.some), origin="of the data")
    example = guess(model) if inputs is None else Example.of(inputs, model)
    try:
        captured = capture(model, example)
    except CaptureError:  # then the plan says so of every site
        plan, _ = plan_folds(model, example)
        seen = None
    else:
        plan, folded = plan_of(model, captured)
        seen = Seen(captured, plan, folded)
        if origin_of(model) is not None:
            plan = plan_program(model, captured, example)
        if program is not None:
            plan = _of_program(program, whole, example, plan)
    subject = of_model(model, plan.sites, seen, batch_size, passed, _decays(optimizer, model))
    findings = examine(subject, thresholds)
    return Census(plan.sites, plan, example, findings, mixtures_of(model), asked_of(subject), passed)


def _decays(
    optimizer: torch.optim.Optimizer | Mapping[str, Any] | None, model: nn.Module
) -> dict[str, float] | None:
    if isinstance(optimizer, torch.optim.Optimizer):
        return decays_of(optimizer, model)
    if optimizer is not None and not isinstance(optimizer, Mapping):
        raise UsageError(
            f"optimizer: expected one of torch.optim or its state, got {type(optimizer).__name__}",
            todo="give the optimizer, or its state_dict()",
        )
    return None if optimizer is None else decays_in(optimizer, [key for key, _ in model.named_parameters()])


def _of_program(
    program: torch.export.ExportedProgram, module: nn.Module, example: Example, plan: Plan
) -> Plan:
    """The plan of a fold, which finds more than *plan*; that one where the program is refused."""
    try:
        return plan_program(module, capture(module, example), example, open_axes(program, module))
    except CaptureError as error:
        return replace(plan, notes=(*plan.notes, f"it cannot be folded: {error.message}"))


def inspect_tensors(
    tensors: Mapping[str, Tensor],
    *,
    optimizer: Mapping[str, Any] | None = None,
    thresholds: Mapping[str, float] | None = None,
    batch_size: int | None = None,
) -> Census:
    """List the BatchNorms of a bare state dict: a BatchNorm is a pair of running statistics.

    Names and values are all there is: no eps, no momentum, no verdict, and only the findings that need no
    more.

    Args:
        tensors: a state dict.
        optimizer: the state of the one that trains them.
        thresholds, batch_size: as for `inspect`.

    Returns:
        the sites and the findings, without a plan.

    Raises:
        UsageError: if a threshold is for no rule that has one.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    stored = {
        key: stored_of(tensor) if stands_beside(key, shapes) else StateTensor(str(tensor.dtype), shapes[key])
        for key, tensor in tensors.items()
    }
    decays = None if optimizer is None else decays_in(optimizer, tensors)
    return census_of_tensors(stored, thresholds=thresholds, batch_size=batch_size, decays=decays)

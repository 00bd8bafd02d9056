"""Recalibrate: the running statistics that one batch of all the data would give, at any batch size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bntools.core.batches import Batches, Forward, call
from bntools.core.capture import check_eager, fingerprint
from bntools.core.drift import Drift, concluded
from bntools.core.exact import copied
from bntools.core.graft import graft_
from bntools.core.names import own_tensor
from bntools.core.plan import Edit, Plan, Promise, Refusal
from bntools.core.ranks import joined
from bntools.core.reasons import Reason
from bntools.core.rounds import Progress, Rounds
from bntools.core.running import Running
from bntools.core.select import Selected, select
from bntools.core.sites import site_of
from bntools.core.stored import Statistics
from bntools.core.surgery import Surgery
from bntools.core.untouched import untouched
from bntools.errors import UsageError


def recalibrate(
    model: nn.Module,
    data: Iterable[Any],
    *,
    virtual_batch: int | Literal["auto", "all"] = "auto",
    forward: Forward | None = None,
    only: str | Sequence[str] = "*",
    max_samples: int | None = 8192,
    prior: float = 0.0,
    method: Literal["exact", "ema"] = "exact",
    stop: bool = True,
    skip: bool = False,
    include_frozen: bool = False,
    memory: int | None = None,
    autocast: torch.dtype | None = None,
    distributed: bool = True,
    inplace: bool = False,
    progress: Progress = lambda step, samples: None,
) -> Surgery[Drift]:
    """Give every BatchNorm the statistics of the activations that inference will see.

    They are what they would be if all the data were one training-mode batch: μ and σ² of what reaches each
    layer, with every layer below normalised by its own. The forwards of all batches run in lock-step: at each
    BatchNorm they wait for one another, and their ``(n, μ, M2)`` are merged in float64. So neither the size
    of the batches nor their order matters. Everything but BatchNorm runs in eval.

    Args:
        model: an eager module; left alone unless *inplace*. Its mode does not matter, and stays.
        data: an iterable of batches: tensors, tuples or lists (the first is the input), or dicts. They go to
            the model's device, and floating ones to its type.
        virtual_batch: how many samples, of all processes, are in lock-step. ``"all"`` is exact. A number
            bounds the memory: groups of that many are each in lock-step, and pooled. ``"auto"`` is as many as
            half of the free memory holds, by a measured forward.
        forward: called with the model and a batch, for batches of any other form.
        only: patterns of paths; one with ``!`` in front leaves out.
        max_samples: where to stop reading; None for all.
        prior: as how many samples the statistics from before count, for small sets.
        method: ``"ema"`` moves them by each batch with the BatchNorm's momentum, as training does: it depends
            on the batches and their order.
        stop: with several groups, stop as soon as the standard errors of all layers are below 0.01 σ in μ and
            0.02 in log σ².
        skip: leave out batches that hold NaN or infinity, and list them, instead of raising.
        include_frozen: also BatchNorms that training would leave alone.
        memory: how many bytes ``"auto"`` may take.
        autocast: the type to run the forwards in, as `torch.autocast` does.
        distributed: if torch.distributed is in use, all processes have to call this, each with its own part
            of the data, and get what one with all of it would get. False to work alone.
        inplace: change *model* itself; its buffers are written in place.
        progress: told what is being done, and of how many samples that is done.

    Returns:
        the model, the plan with every BatchNorm in ``edits`` or ``refusals``, and the drift of each layer.

    Raises:
        UsageError: if an argument is wrong, the data is empty, or a batch holds NaN; *model* is as it was.
        CaptureError: if the model does not run on a batch; *model* is as it was.
        BntoolsError: what has ended another process; *model* is as it was.

    Source:
        Wu and Johnson, Rethinking "Batch" in BatchNorm (2021), on why statistics want recomputing.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(1), nn.BatchNorm1d(1))
        >>> surgery = recalibrate(net, [torch.tensor([[1.0]]), torch.tensor([[3.0], [5.0]])])
        >>> surgery.model[0].running_mean.item(), surgery.model[0].running_var.item()
        (3.0, 4.0)
    """
    # What is made in inference mode can never be trained.
    with joined(distributed) as ranks, torch.inference_mode(False):
        check_eager(model)
        _check(virtual_batch, max_samples, prior, method, memory)
        inner = model.module if isinstance(model, DistributedDataParallel) else model
        target = inner if inplace else copied(inner)
        selected = select(target, only, include_frozen=include_frozen)
        if ranks.size > 1:
            ranks.agree("the model", f"{type(target).__name__} {fingerprint(target)[:8]}")
            ranks.agree("the BatchNorms", [*selected.norms])
            ranks.agree("its weights", f"{_sum(target):.6g}")
            ranks.agree("the options", [virtual_batch, prior, method, stop])
        batches = Batches(data, target, ranks.share(max_samples), skip)
        running = Running(selected.norms, ranks, prior, ema=method == "ema")
        rounds = Rounds((target,), running, "recalibrating", forward or call, autocast, progress)
        with untouched(target):
            target.eval()
            rounds.run(batches, "single" if method == "ema" else virtual_batch, stop, memory)
            new, report = concluded(rounds, running, batches.skipped)
        plan = _plan(target, selected, running, rounds.order, new)
        tensors = _tensors(selected.norms, plan, new, rounds.batches, add=method == "ema")
        ranks.close()
        graft_(target, plan, tensors)
        return Surgery(model if inplace else target, plan, report)


def _sum(model: nn.Module) -> float:
    """A number that tells other weights; of the parameters, since statistics are each process's own."""
    sums = [parameter.detach().double().sum().cpu() for parameter in model.parameters()]
    return float(sum(sums, torch.zeros(())))


def _check(
    virtual_batch: object, max_samples: int | None, prior: float, method: str, memory: int | None
) -> None:
    whole = isinstance(virtual_batch, int) and not isinstance(virtual_batch, bool) and virtual_batch > 0
    if not whole and virtual_batch not in ("auto", "all"):
        raise UsageError(
            f"virtual_batch: {virtual_batch!r} is none", todo="give 'all', 'auto' or a number of samples"
        )
    if method not in ("exact", "ema"):
        raise UsageError(f"method: {method!r} is none", todo="write 'exact' or 'ema'")
    for name, value in (("max_samples", max_samples), ("memory", memory)):
        if value is not None and value < 1:
            raise UsageError(f"{name}: expected a positive number, it is {value}")
    if not prior >= 0 or prior == float("inf"):
        raise UsageError(f"prior: expected a number of samples, it is {prior}")


def _plan(
    model: nn.Module,
    selected: Selected,
    running: Running,
    order: Sequence[str],
    new: Mapping[str, Statistics],
) -> Plan:
    """Every BatchNorm, either with new statistics or with the reason why not."""
    at = {path: place for place, path in enumerate(order)}
    facts, left = selected.facts, dict(selected.left)
    for path in selected.norms:
        if path in running.unfit:
            left[path] = Reason.UNRECOGNISED, running.unfit[path]
        elif path not in new:
            left[path] = Reason.UNREACHED, "no batch reached it"
    edits = [Edit(site_of(path, facts[path], at[path])) for path in order if path in new]
    refusals = [
        Refusal(site_of(path, facts[path], at.get(path)), reason, detail)
        for path, (reason, detail) in left.items()
    ]
    return Plan("recalibrate", tuple(edits), tuple(refusals), fingerprint(model), promise=Promise.MOVED)


def _tensors(
    norms: Mapping[str, nn.Module], plan: Plan, new: Mapping[str, Statistics], batches: int, *, add: bool
) -> dict[str, Tensor]:
    """The new statistics by key, in the types of the old ones.

    The count of batches goes on, or starts anew: then it says of how many the statistics are the average.
    """
    tensors: dict[str, Tensor] = {}
    for edit in plan.edits:
        path = str(edit.site.module)
        count = torch.tensor(batches + (edit.site.batches or 0) * add)
        for key, value in zip(edit.site.statistics, (new[path].mean, new[path].var, count), strict=False):
            old = own_tensor(norms[path], key.rpartition(".")[2])
            assert old is not None
            tensors[key] = value.to(old)
            if not bool(tensors[key].isfinite().all()):
                raise UsageError(f"{key}: overflows {old.dtype}", todo="recalibrate in a wider dtype")
    return tensors

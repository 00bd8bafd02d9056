"""The last bit: new norms are trained for some steps to return what the old model returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from bntools.core.batches import Batch, Forward, fresh, run
from bntools.core.change import apart
from bntools.core.leaves import tensors_of
from bntools.core.rounds import Progress
from bntools.core.untouched import untouched
from bntools.errors import UsageError

_RATE = 0.02
"""How far Adam's first step takes a tensor, as a share of its size."""
_JUDGES = 16
"""On how many batches it is looked at whether training has helped."""


def tuned(
    old: nn.Module,
    new: nn.Module,
    scales: Sequence[tuple[str, str]],
    data: Callable[[], Iterable[Batch]],
    steps: int,
    forward: Forward,
    progress: Progress = lambda step, samples: None,
) -> tuple[dict[str, Tensor], tuple[float, float]]:
    """Train the γ and β of the new norms, and nothing else, on the outputs of the old model.

    The loss is ``Σ (new − old)² / Σ old²`` over the floating outputs of a batch, both models in eval; Adam
    with a rate that falls to zero as a cosine does.

    Args:
        old: the teacher; it is as it was afterwards.
        new: its parameters change, and which of them are trained.
        scales: the keys of γ and β of each norm.
        data: gives the batches, as often as it is called.
        steps: how many batches to train on.
        forward: runs a model on a batch.
        progress: told what is being done, and how many steps of it are done.

    Returns:
        the tensors by key, the better of those before and after; and ``‖new − old‖/‖old‖`` on some batches
        before and after.

    Raises:
        UsageError: if the models return no floating tensor, or the data nothing.
        CaptureError: if a model does not run.

    Source:
        Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network (2015), on learning from
        outputs.
    """
    with untouched(old), untouched(new), torch.enable_grad():
        old.eval()
        new.eval()
        new.requires_grad_(False)
        groups, own = [], dict(new.named_parameters(remove_duplicate=False))
        for gamma, beta in scales:
            size = float(own[gamma].detach().double().square().mean().sqrt().clamp_min(1e-3))
            tensors = [own[gamma].requires_grad_(), own[beta].requires_grad_()]
            groups.append({"params": tensors, "lr": _RATE * size})
        first = {key: own[key].detach().clone() for pair in scales for key in pair}
        judges = [*islice(data(), min(steps, _JUDGES))]
        before = _distance(old, new, judges, forward)
        optimizer = torch.optim.Adam(groups)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        done = 0
        while done < steps:
            for batch in islice(data(), steps - done):
                optimizer.zero_grad()
                _loss(*_outputs(old, new, batch, forward)).backward()
                optimizer.step()
                schedule.step()
                done += 1
                progress("tuning", done)
        after = _distance(old, new, judges, forward)
        last = {key: own[key].detach().clone() for key in first}
    return last if after < before else first, (before, min(after, before))


def _outputs(
    old: nn.Module, new: nn.Module, batch: Batch, forward: Forward
) -> tuple[list[Tensor], list[Tensor]]:
    with torch.no_grad():
        wanted = list(tensors_of(run(forward, old, fresh(batch))))
    return wanted, list(tensors_of(run(forward, new, fresh(batch))))


def _loss(wanted: Sequence[Tensor], made: Sequence[Tensor]) -> Tensor:
    both = [
        (a, b)
        for a, b in zip(wanted, made, strict=False)
        if b.requires_grad and a.shape == b.shape and a.is_floating_point()
    ]
    if not both:
        raise UsageError(
            "tune: no output of the model depends on the new norms", todo="leave out tune, or give other data"
        )
    off = torch.stack([(b.float() - a.float()).square().sum() for a, b in both]).sum()
    return off / torch.stack([a.float().square().sum() for a, _ in both]).sum().clamp_min(1e-30)


@torch.no_grad()
def _distance(old: nn.Module, new: nn.Module, batches: Sequence[Batch], forward: Forward) -> float:
    pairs = [_outputs(old, new, batch, forward) for batch in batches]
    if not pairs:
        raise UsageError("data: expected batches, there is none", todo="look at what the data gives")
    return apart(*([tensor for pair in pairs for tensor in pair[side]] for side in (0, 1)))

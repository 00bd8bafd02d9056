"""The last bit: a swapped model is trained for some steps to return what the old one returns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from bntools.core.batches import Batch, Forward, fresh, no_batches, run
from bntools.core.change import apart
from bntools.core.leaves import tensors_of
from bntools.core.rounds import Progress
from bntools.core.untouched import untouched
from bntools.errors import UsageError

_RATE = 0.01
"""How far Adam's first step takes the parameters of a module, as a share of the size of the largest, and of
how far the outputs are: where little is missing, large steps lead away."""
_JUDGES = 16
"""On how many batches it is looked at whether training has helped."""


def tuned(
    old: nn.Module,
    new: nn.Module,
    data: Callable[[], Iterable[Batch]],
    steps: int,
    forward: Forward,
    progress: Progress = lambda step, samples: None,
) -> tuple[dict[str, Tensor], tuple[float, float]]:
    """Train the parameters of a new model, those that are trained, on the outputs of the old one.

    The loss is ``Σ (new − old)² / Σ old²`` over the floating outputs of a batch, both models in eval; Adam
    with a rate that falls to zero as a cosine does.

    Args:
        old: the teacher; it is as it was afterwards.
        new: its parameters change.
        data: gives the batches, as often as it is called.
        steps: how many batches to train on.
        forward: runs a model on a batch.
        progress: told what is being done, and how many steps of it are done.

    Returns:
        the parameters by key, none if the models have not come nearer; and ``‖new − old‖/‖old‖`` on some
        batches before and after.

    Raises:
        UsageError: if no parameter is trained, the models return no floating tensor, or the data nothing.
        CaptureError: if a model does not run.

    Source:
        Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network (2015), on learning from
        outputs.
    """
    with untouched(old), untouched(new), torch.enable_grad():
        old.eval()
        new.eval()
        own = {key: parameter for key, parameter in new.named_parameters() if parameter.requires_grad}
        if not own:
            raise UsageError(
                "tune: no parameter of the model is trained",
                todo="leave out tune, or let some require a gradient",
            )
        judges = [*islice(data(), min(steps, _JUDGES))]
        before = _distance(old, new, judges, forward)
        optimizer = torch.optim.Adam(_groups(own, _RATE * min(before, 1.0)))
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
        made = {key: parameter.detach().clone() for key, parameter in own.items()}
    return made if after < before else {}, (before, min(after, before))


def _groups(own: Mapping[str, nn.Parameter], rate: float) -> list[dict[str, Any]]:
    """The parameters of each module, with a rate in proportion to their size: a bias may still be 0."""
    modules: dict[str, list[nn.Parameter]] = defaultdict(list)
    for key, parameter in own.items():
        modules[key.rpartition(".")[0]].append(parameter)
    sizes = {
        path: [p.detach().double().square().mean().sqrt() for p in held] for path, held in modules.items()
    }
    return [
        {"params": held, "lr": rate * max(float(max(sizes[path])), 1e-3)} for path, held in modules.items()
    ]


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
        raise no_batches()
    return apart(*([tensor for pair in pairs for tensor in pair[side]] for side in (0, 1)))

"""What data says of a swapped norm: the γ and β with which it is nearest to what stood there before.

Both models run on the same batches, in lock-step. At each norm all of them wait, the old and the new one;
there the new one gets its γ and β, and all go on: so each norm is fitted with those below it swapped already.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bntools.core.batches import Batch, Forward
from bntools.core.changes import Norm, Swap
from bntools.core.lockstep import Stop
from bntools.core.moments import Moments, merged, moments_of
from bntools.core.names import own_tensor
from bntools.core.ranks import Ranks
from bntools.core.regression import Pairs, pairs_of, together
from bntools.core.rounds import Progress, Rounds
from bntools.core.stored import write
from bntools.core.untouched import untouched
from bntools.errors import UsageError


def fitted(
    old: nn.Module,
    new: nn.Module,
    swaps: Sequence[Swap],
    batches: Iterable[Batch],
    forward: Forward,
    progress: Progress = lambda step, samples: None,
) -> tuple[dict[str, Tensor], int]:
    """Fit the new norms to the old ones.

    With x̂ what a new norm makes of its input before its γ and β, and y what the old one returned,
    ``Σ (γ·x̂ + β − y)²`` over all samples and places is least in each channel.

    Args:
        old: with the norms that go; it is as it was afterwards.
        new: with those that come; its tensors are not what they were.
        swaps: those to fit.
        batches: to run; as many as half of the free memory holds are in lock-step.
        forward: runs a model on a batch.
        progress: told what is being done, and of how many samples that is done.

    Returns:
        the tensors by key, of all that were reached, and how many samples were used.

    Raises:
        UsageError: if there are no batches, or they hold NaN.
        CaptureError: if a model does not run on one.
    """
    fitting = Fitting(old, new, swaps)
    rounds = Rounds((old, new), fitting, "fitting", forward, None, progress)
    with untouched(old), untouched(new):
        old.eval()
        new.eval()
        rounds.run(batches, "auto", False, None)
        tensors = fitting.found()
        for swap in swaps:
            if swap.norm is Norm.BATCH and f"{swap.path}.weight" in tensors:
                tensors[f"{swap.path}.num_batches_tracked"] = torch.tensor(rounds.batches)
    return tensors, rounds.samples


class Fitting:
    """Meets the forwards of an old and a new model, and fits each new norm to the old one in its place.

    Args:
        old: with the norms that go.
        new: with those that come; their tensors change on the way.
        swaps: those that are to be fitted: of norms without running statistics, or to a BatchNorm from one.

    Attributes:
        stops: the modules to meet at.
        ranks: this process alone.
    """

    def __init__(self, old: nn.Module, new: nn.Module, swaps: Sequence[Swap]) -> None:
        self.ranks = Ranks()
        self._swaps = {swap.paths[0]: swap for swap in swaps}
        self._old = {path: _function_of(old.get_submodule(path)) for path in self._swaps}
        self._new = {path: new.get_submodule(swap.path) for path, swap in self._swaps.items()}
        self._slopes = {path: _own(norm, "weight").double() for path, norm in self._new.items()}
        self.stops = tuple(
            pair
            for path in self._swaps
            for pair in ((path, old.get_submodule(path)), (path, self._new[path]))
        )
        self._size = 0
        self._now: dict[str, list[Pairs]] = defaultdict(list)
        self._pairs: dict[str, list[Pairs]] = defaultdict(list)
        self._moments: dict[str, list[Moments]] = defaultdict(list)

    @contextmanager
    def group(self, batches: Sequence[Batch]) -> Iterator[None]:
        """Inside this, the forwards of these batches are met: those of the old model first."""
        self._size = len(batches)
        self._now.clear()
        yield
        for path, parts in self._now.items():
            self._pairs[path].append(together(parts))

    def errors(self) -> Mapping[str, tuple[float, float]]:
        """None are known."""
        return {}

    def meet(self, stop: Stop, there: Sequence[tuple[int, Tensor]]) -> None:
        """Fit a norm to all that stand there, those in which both models have come so far."""
        path, swap, norm = stop.path, self._swaps[stop.path], self._new[stop.path]
        old = {number: x for number, x in there if number < self._size}
        new = {number - self._size: x for number, x in there if number >= self._size}
        both = [
            (old[number], x) for number, x in new.items() if number in old and old[number].shape == x.shape
        ]
        if not both:
            return
        self._now[path] += [pairs_of(_coming(swap, x), self._old[path](before)) for before, x in both]
        pairs = together(self._now[path])
        if swap.norm is Norm.BATCH:
            whole = merged([moments_of(x) for _, x in both])
            self._moments[path].append(whole)
            write(norm, whole.mean, whole.var)
            pairs = _normalised(pairs, whole, swap)
        for name, value in zip(("weight", "bias"), pairs.line(self._slopes[path]), strict=True):
            _own(norm, name).copy_(value)

    def found(self) -> dict[str, Tensor]:
        """The tensors of each norm that was reached, by key, in the types of the new norms.

        Raises:
            UsageError: if one of them is not finite.
        """
        tensors: dict[str, Tensor] = {}
        for path, parts in self._pairs.items():
            swap, norm = self._swaps[path], self._new[path]
            whole, made = together(parts), dict[str, Tensor]()
            if path in self._moments:
                moments = merged(self._moments[path])
                if moments.n < 2:
                    raise UsageError(
                        f"{path}: expected several values a channel, there is one", todo="give more samples"
                    )
                made = {"running_mean": moments.mean, "running_var": moments.unbiased}
                whole = _normalised(whole, moments, swap)
            made["weight"], made["bias"] = whole.line(self._slopes[path])
            for name, value in made.items():
                tensor = value.to(_own(norm, name))
                if not bool(tensor.isfinite().all()):
                    raise UsageError(
                        f"{path}: its new {name} is not finite in {tensor.dtype}",
                        todo="look for NaN and infinity in the data, or swap in a wider type",
                    )
                tensors[f"{swap.path}.{name}"] = tensor
        return tensors


def _coming(swap: Swap, x: Tensor) -> Tensor:
    """What comes to γ and β of a new norm, in float64; what comes to a BatchNorm, since each call and each
    group of forwards has statistics of its own.
    """
    x = x.detach().double()
    return x if swap.norm is Norm.BATCH else F.group_norm(x, swap.groups, eps=swap.eps)


def _normalised(pairs: Pairs, moments: Moments, swap: Swap) -> Pairs:
    """Pairs with what comes to a BatchNorm, as those with what it makes of that."""
    scale = (moments.var + swap.eps).rsqrt()
    return pairs.moved(scale, -moments.mean * scale)


def _function_of(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """What an old norm computes, and nothing that its module does besides, in float64."""
    own = {
        name: tensor.detach().double()
        for name in ("weight", "bias", "running_mean", "running_var")
        if (tensor := own_tensor(norm, name)) is not None
    }
    weight, bias, eps = own.get("weight"), own.get("bias"), float(norm.eps)  # type: ignore[arg-type]
    if "running_mean" not in own:
        groups = int(norm.num_groups)  # type: ignore[arg-type]
        return lambda x: F.group_norm(x.detach().double(), groups, weight, bias, eps)
    mean, var = own["running_mean"], own["running_var"]
    return lambda x: F.batch_norm(x.detach().double(), mean, var, weight, bias, False, 0.0, eps)


def _own(norm: nn.Module, name: str) -> Tensor:
    tensor = own_tensor(norm, name)
    assert tensor is not None
    return tensor.detach()

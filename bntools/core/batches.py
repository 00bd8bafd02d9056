"""Calibration data: batches of any form, moved to where the model is, looked at before they are run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bntools.core.example import Example, argument_names
from bntools.core.inputs import as_model, type_and_device
from bntools.core.leaves import tensors_of
from bntools.errors import BntoolsError, CaptureError, UsageError, in_a_line

Forward = Callable[[nn.Module, Any], Any]
"""Runs a model on a batch."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One of the batches.

    Args:
        number: its place in the data, from 0.
        samples: how many it holds.
        content: what the data gave, moved.
    """

    number: int
    samples: int
    content: Any

    def first(self, most: int) -> Batch:
        """The first of its samples."""
        few = min(self.samples, most)
        return Batch(self.number, few, cut(self.content, self.samples, few))


@dataclass(slots=True)
class Batches:
    """Reads data batch by batch.

    Args:
        data: any iterable of batches, or one tensor, which is one batch.
        model: where the tensors are to go, and in what type.
        max_samples: where to stop; None for all.
        skip: leave out batches that hold NaN or infinity, instead of raising.

    Attributes:
        skipped: the numbers of the batches that were left out.
        samples: how many have been read.
    """

    data: Iterable[Any]
    model: nn.Module
    max_samples: int | None = None
    skip: bool = False
    skipped: list[int] = field(default_factory=list)
    samples: int = 0

    def __iter__(self) -> Iterator[Batch]:
        """The batches; the last one is cut where it would go over.

        Raises:
            UsageError: if a batch holds no tensor, or NaN or infinity, or the data fails to give one.
        """
        dtype, device = type_and_device(self.model)
        whole = [self.data] if isinstance(self.data, Tensor | Mapping | Example) else self.data
        if not hasattr(whole, "__iter__") and not hasattr(whole, "__getitem__"):
            raise UsageError(
                f"data: expected an iterable of batches, got {type(whole).__name__}",
                todo="give a DataLoader or a list of tensors",
            )
        for number, content in _numbered(whole):
            if self.max_samples is not None and self.samples >= self.max_samples:
                return
            samples = _samples(content)
            if samples is None:
                raise UsageError(
                    f"batch {number}: expected tensors, got {type(content).__name__}",
                    todo="let the data give a tensor, a tuple or a dict of them, or give forward=",
                )
            left = samples if self.max_samples is None else self.max_samples - self.samples
            if left < samples:
                content = cut(content, samples, left)
                samples = left
            if samples and not _finite(content):
                if not self.skip:
                    raise UsageError(
                        f"batch {number}: it holds NaN or infinity", todo="repair it, or skip such batches"
                    )
                self.skipped.append(number)
                continue
            if samples:
                self.samples += samples
                yield Batch(number, samples, _map(content, lambda t: as_model(t, dtype, device)))


def _numbered(data: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        for number, content in enumerate(data):
            yield number, content
            number += 1
    except (BntoolsError, GeneratorExit):
        raise
    except Exception as error:
        what = in_a_line(error)
        raise UsageError(
            f"data: giving batch {number} failed with {what}", todo="repair what makes the batches"
        ) from error


def cut(content: Any, samples: int, left: int) -> Any:
    """The first of the samples in a batch, or in what a model made of it."""
    return _map(content, lambda t: t[:left] if t.ndim and len(t) == samples else t)


def halved(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches; a single one as two halves, so that there are two to hold against each other."""
    waiting = iter(batches)
    some = [*islice(waiting, 2)]
    if len(some) == 1 and some[0].samples > 1:
        (whole,) = some
        half = whole.samples // 2
        rest = _map(whole.content, lambda t: t[half:] if t.ndim and len(t) == whole.samples else t)
        some = [
            whole.first(half),
            Batch(whole.number + 1, whole.samples - half, rest),
        ]
    yield from some
    yield from waiting


def call(model: nn.Module, batch: Any) -> Any:
    """Run a model on a batch as the common loaders make it.

    A tensor is the input, and so is the first of a tuple or a list, as ``(images, labels)``. Of a dict the
    model gets what its ``forward`` has parameters for.
    """
    return call_of(model, batch)(model)


def call_of(model: nn.Module, batch: Any) -> Example:
    """The arguments that `call` gives to a model."""
    if isinstance(batch, Example):
        return batch
    if isinstance(batch, Mapping):
        example = Example.of(batch, model)
        if example.kwargs:
            return example
        names = argument_names(model) or ()
        known = {key: value for key, value in batch.items() if key in names}
        return Example((), known) if known else Example((batch,))
    return Example((batch[0] if isinstance(batch, tuple | list) else batch,))


def run(forward: Forward, model: nn.Module, batch: Batch) -> Any:
    """Run a model on a batch; what it raises names the batch.

    Raises:
        CaptureError: if the model does not run on it.
    """
    try:
        return forward(model, batch.content)
    except BntoolsError:
        raise
    except Exception as error:
        what = in_a_line(error)
        raise CaptureError(
            f"batch {batch.number}: the model does not run on it: {what}",
            todo="give batches as its forward takes them, or forward=",
        ) from error


def no_batches() -> UsageError:
    """The error of data that gives none."""
    return UsageError("data: expected batches, there is none", todo="look at what the data gives")


def fresh(batch: Batch) -> Batch:
    """The same batch in memory of its own, since a forward may write into what it is given."""
    return replace(batch, content=_map(batch.content, lambda tensor: tensor.clone()))


def _samples(content: Any) -> int | None:
    sizes = [len(tensor) for tensor in tensors_of(content) if tensor.ndim]
    return sizes[0] if sizes else None


def _finite(content: Any) -> bool:
    return all(_is_finite(tensor) for tensor in tensors_of(content) if tensor.is_floating_point())


def _is_finite(tensor: Tensor) -> bool:
    # A sum is read off in a fraction of the time; it can overflow, and only then each value is looked at.
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def _map(content: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(content, Example):
        return content.map(change)
    return pytree.tree_map_only(Tensor, change, content)

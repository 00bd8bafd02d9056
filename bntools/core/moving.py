"""Whether what a model returns depends on what it is given: if not, comparing outputs shows nothing."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

STILL = "the reference returns the same for every input, so a difference in front of that would not show"


class Moving:
    """Looks at the inputs and outputs of several runs, row by row, for outputs that never change.

    A network whose last layer is all zeros, as many are before they are trained, returns zeros whatever the
    layers in front of it do.

    Example:
        >>> moving = Moving()
        >>> moving.look([torch.eye(2)], [torch.ones(2, 3)])
        >>> moving.is_still
        True
        >>> moving.look([torch.eye(2)], [torch.zeros(2, 3)])
        >>> moving.is_still
        False
    """

    def __init__(self) -> None:
        self._inputs, self._outputs = _Rows(), _Rows()

    def look(self, inputs: Iterable[Tensor], outputs: Iterable[Tensor]) -> None:
        """At one run; axis 0 is taken for that of the samples."""
        self._inputs.look(inputs)
        self._outputs.look(outputs)

    @property
    def is_still(self) -> bool:
        """Whether inputs differed and outputs never did, or were all zero; False if nobody can know."""
        out = self._outputs
        return not out.differ and (out.are_zero or (out.are_repeated and self._inputs.differ))


class _Rows:
    """The rows of some tensors; those of one place and one shape are compared with the first of them."""

    def __init__(self) -> None:
        self._first: dict[tuple[int, torch.Size], Tensor] = {}
        self._again: set[tuple[int, torch.Size]] = set()
        self.differ = False

    def look(self, tensors: Iterable[Tensor]) -> None:
        for number, tensor in enumerate(tensors):
            rows = tensor.detach() if tensor.ndim else tensor.detach()[None]
            if self.differ or not rows.numel():
                continue
            kind = number, rows.shape[1:]
            if kind in self._first or len(rows) > 1:
                self._again.add(kind)
            first = self._first.setdefault(kind, rows[0].clone())
            self.differ = not torch.equal(rows, first.expand_as(rows))

    @property
    def are_repeated(self) -> bool:
        return bool(self._first) and self._again == self._first.keys()

    @property
    def are_zero(self) -> bool:
        return bool(self._first) and not any(first.any() for first in self._first.values())

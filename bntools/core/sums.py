"""The equations with three and more unknowns: a sum's shift is the sum of its terms' shifts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from bntools.core.flow import Total
from bntools.core.forest import Array, components
from bntools.core.lanes import GROUND

_CLOSE = 1e-11
_ROUNDED = 1e-12
_MOST = 1 << 22


class Unknowns(Protocol):
    """What is known of them: a forest, or what can be read as one."""

    parent: Array

    def find(self, nodes: Array) -> tuple[Array, Array, Array]:
        """The roots, and a and b of ``value(node) = a·value(root) + b``; a root that is known is 0."""


class Sums:
    """``0 = −u_out + Σ factor·u_term``, one equation for each label of each total.

    Args:
        totals: of several terms.
        unit: how large an unknown is at least, as far as rounding goes.
    """

    def __init__(self, totals: Sequence[Total], unit: float = 0.0) -> None:
        self._unit = unit
        none = np.zeros(0, np.int64)
        equations, labels, factors = [none], [none], [none.astype(float)]
        self.count = 0
        for total in totals:
            numbers = np.arange(self.count, self.count + len(total.out))
            self.count += len(total.out)
            for factor, term in ((-1.0, total.out), *total.terms):
                equations.append(numbers)
                labels.append(term)
                factors.append(np.broadcast_to(np.asarray(factor, float), term.shape))
        self.equations, self.labels = np.concatenate(equations), np.concatenate(labels)
        self.factors = np.concatenate(factors)

    def unmet(self, shifts: Unknowns) -> bool:
        """Whether some cannot be met, whatever the open unknowns are."""
        _, _, b = shifts.find(self.labels)
        if not b.any():  # zeros meet them all
            return False
        bad, _, _ = self.solve(shifts, np.zeros(len(shifts.parent)))
        return bool(bad.any())

    def solve(self, shifts: Unknowns, wish: Array) -> tuple[Array, Array, Array]:
        """Meet the equations by choosing the open unknowns.

        An unknown that stands in one equation only can always meet it, whatever the others are; an equation
        with one unknown says what that is. Such pairs are taken away, again and again. What is left is solved
        as a whole.

        Args:
            shifts: the unknowns, as far as they are tied to one another.
            wish: for each root, the value that it gets where it is free to have one.

        Returns:
            for each equation whether it is not met, and the roots that stand in one with their values.
        """
        equation, root, factor, constants, size = self._rows(shifts)
        value, known = wish.copy(), constants.copy()
        alive, rounds = np.ones(len(equation), bool), []
        while alive.any():
            there = np.flatnonzero(alive)
            alone = there[_once(root[there])]
            if len(alone):
                rounds.append(alone[_first(equation[alone])])
                alive &= ~_among(equation, equation[alone])
                continue
            only = there[_once(equation[there])]
            if not len(only):
                self._whole(equation[there], root[there], factor[there], known, value)
                break
            only = only[_first(root[only])]
            value[root[only]] = -known[equation[only]] / factor[only]
            told = alive & _among(root, root[only])
            np.add.at(known, equation[told], (factor * value[root])[told])
            alive &= ~told
        for pivots in reversed(rounds):
            value[root[pivots]] = 0.0
            rest = constants.copy()
            np.add.at(rest, equation, factor * value[root])
            value[root[pivots]] = -rest[equation[pivots]] / factor[pivots]
        gap = constants.copy()
        np.add.at(gap, equation, factor * value[root])
        np.add.at(size, equation, np.abs(factor * value[root]))
        slack = _ROUNDED * np.max(size, initial=self._unit)
        roots = np.flatnonzero(np.bincount(root))
        return np.abs(gap) > _CLOSE * size + slack, roots, value[roots]

    @staticmethod
    def _whole(equation: Array, root: Array, factor: Array, constants: Array, value: Array) -> None:
        """Unknowns that all stand in several equations, of several unknowns each: the least squares of each
        group.
        """
        count = int(equation.max()) + 1
        group = components(count + len(value), [(equation + 1, root + count)])[equation + 1]
        value[root] = 0.0
        for number in np.unique(group[constants[equation] != 0]):
            here = group == number
            equations, row = np.unique(equation[here], return_inverse=True)
            unknowns, column = np.unique(root[here], return_inverse=True)
            if len(equations) * len(unknowns) <= _MOST:
                matrix = np.zeros((len(equations), len(unknowns)))
                matrix[row, column] = factor[here]
                value[unknowns] = np.linalg.lstsq(matrix, -constants[equations], rcond=None)[0]

    def _rows(self, shifts: Unknowns) -> tuple[Array, Array, Array, Array, Array]:
        """The equations in the roots: equation, root and factor of each term; constants, and their size."""
        root, a, b = shifts.find(self.labels)
        constants, size = np.zeros(self.count), np.zeros(self.count)
        np.add.at(constants, self.equations, self.factors * b)
        np.add.at(size, self.equations, np.abs(self.factors * b))
        is_open = root != GROUND
        width = len(shifts.parent)
        key, inverse = np.unique(self.equations[is_open] * width + root[is_open], return_inverse=True)
        factor = np.zeros(len(key))
        np.add.at(factor, inverse, (self.factors * a)[is_open])
        there = np.abs(factor) > 1e-12
        equation, root = np.divmod(key[there], width)
        return equation, root, factor[there], constants, size


def _once(keys: Array) -> Array:
    """Which of the keys stand there once."""
    once: Array = np.bincount(keys)[keys] == 1
    return once


def _among(keys: Array, some: Array) -> Array:
    """Which of the keys, all of them small numbers, are among some of them."""
    there = np.zeros(keys.max(initial=0) + 1, bool)
    there[some] = True
    among: Array = there[keys]
    return among


def _first(keys: Array) -> Array:
    """The place of each key's first occurrence."""
    place = np.full(keys.max(initial=0) + 1, -1)
    place[keys[::-1]] = np.arange(len(keys))[::-1]
    return place[place >= 0]

"""The equations of products of values that both move: ``s_out = s_one·s_two``, in logarithms and in signs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bntools.core.flow import Product, Total
from bntools.core.forest import Array, Forest
from bntools.core.lanes import GROUND
from bntools.core.sums import Sums


class _Logarithms:
    """Of the scales in a forest, as shifts: ``log|s_x| = log|s_root| + log|a|``."""

    def __init__(self, scales: Forest) -> None:
        self._scales, self.parent = scales, scales.parent

    def find(self, labels: Array) -> tuple[Array, Array, Array]:
        root, a, _ = self._scales.find(labels)
        return root, np.ones_like(a), np.log(np.abs(a))


class Products:
    """One equation for each label of each product.

    Args:
        products: of a flow.
    """

    def __init__(self, products: Sequence[Product]) -> None:
        self._sums = Sums(
            [Total(each.out, ((1.0, each.one), (1.0, each.two))) for each in products], unit=1.0
        )
        labels = [np.stack((each.out, each.one, each.two)) for each in products]
        self._labels = np.concatenate([np.zeros((3, 0), np.int64), *labels], axis=1)

    def unmet(self, scales: Forest, signs: Array) -> bool:
        """Whether they cannot be met, whatever the open scales are.

        Args:
            scales: as they are tied.
            signs: what is wanted of each root: 1 that it is positive, 2 that it is negative.
        """
        if not self._labels.size:
            return False
        if self._sums.unmet(_Logarithms(scales)):
            return True
        return self._turned(scales, signs, np.ones(len(signs))) is None

    def solve(self, scales: Forest, signs: Array, wish: Array) -> Array:
        """A scale for each root with which they are met: the wish, where that is free."""
        if not self._labels.size:
            return wish
        with np.errstate(divide="ignore"):
            _, roots, logarithms = self._sums.solve(_Logarithms(scales), np.log(np.abs(wish)))
        found = wish.copy()
        found[roots] = np.copysign(np.exp(logarithms), wish[roots])
        turned = self._turned(scales, signs, wish) or []
        found[turned] *= -1
        return found

    def _turned(self, scales: Forest, signs: Array, wish: Array) -> list[int] | None:
        """The roots that are to have another sign than wished for, or None if nothing would do.

        Each equation says whether an odd number of its roots have to; elimination over the field of two.
        """
        root, a, _ = scales.find(self._labels)
        settled = (root == GROUND) | (signs[root] != 0)
        negative = np.where(root == GROUND, False, np.where(settled, signs[root] == 2, wish[root] < 0))
        odd = (negative ^ (a < 0)).sum(axis=0) % 2 == 1
        if not odd.any():
            return []
        rows: dict[int, tuple[set[int], bool]] = {}
        for number, is_odd in enumerate(odd.tolist()):
            row: set[int] = set()
            for each in root[~settled[:, number], number].tolist():
                row ^= {each}
            while known := row & rows.keys():
                other, turns = rows[known.pop()]
                row, is_odd = row ^ other, is_odd != turns
            if row:
                rows[min(row)] = row, is_odd
            elif is_odd:
                return None
        turned: set[int] = set()
        for pivot, (row, is_odd) in reversed(rows.items()):
            if is_odd != (len(row & turned) % 2 == 1):
                turned.add(pivot)
        return sorted(turned)

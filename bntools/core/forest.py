"""Unknown numbers tied to one another by ``x = a·y + b``: a union-find whose edges carry the equations.

Many unknowns at once, in numpy: a network has hundreds of thousands of channels. What is tried can be taken
back, so that a search costs no copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

Array = np.ndarray

_CLOSE = 1e-11
"""Two ways to one number may differ by this share of it: they round differently."""


class Forest:
    """Unknowns 0, 1, … of which number 0 is known.

    Each points to another, and ``value(i) = a[i]·value(parent[i]) + b[i]``. Nothing is compressed, so that a
    tie is undone by putting the roots back; ties by size keep the paths short.

    Args:
        count: how many unknowns.
        known: the value of unknown 0.

    Attributes:
        size: of the tree below each root.

    Example:
        >>> forest = Forest(3, known=1.0)
        >>> forest.tie(np.array([1]), np.array([2]), 2.0, 0.0).tolist()
        [False]
        >>> forest.tie(np.array([2]), 0, 3.0, 0.0).tolist()
        [False]
        >>> forest.value(np.array([1, 2])).tolist()
        [6.0, 3.0]
    """

    def __init__(self, count: int, known: float) -> None:
        self.known = known
        self.parent = np.arange(count)
        self.a, self.b = np.ones(count), np.zeros(count)
        self.size = np.ones(count, np.int64)
        self.size[0] = np.iinfo(np.int64).max // 2  # the known one stays a root
        self._log: list[tuple[Array, Array, Array]] = []
        self._last, self._flag = np.zeros(count, np.int64), np.zeros(count, bool)

    def copy(self) -> Forest:
        """The same equations, with no way back."""
        other = Forest(len(self.parent), self.known)
        other.parent, other.size = self.parent.copy(), self.size.copy()
        other.a, other.b = self.a.copy(), self.b.copy()
        return other

    def find(self, nodes: Array) -> tuple[Array, Array, Array]:
        """The roots, and a and b of ``value(node) = a·value(root) + b``."""
        at, a, b = nodes, self.a[nodes], self.b[nodes]
        at = self.parent[at]  # of a root that is itself, with a = 1 and b = 0
        while True:
            up = self.parent[at]
            if (up == at).all():
                return at, a, b
            b = a * self.b[at] + b
            a = a * self.a[at]
            at = up

    def value(self, nodes: Array) -> Array:
        """What the nodes are; NaN where that is still open."""
        root, a, b = self.find(nodes)
        return np.where(root == 0, a * self.known + b, np.nan)

    def tie(self, x: Array, y: Array | int, a: Array | float, b: Array | float) -> Array:
        """Require ``value(x) = a·value(y) + b`` in each place, a ≠ 0 unless y is known.

        Returns:
            for each place, whether it contradicts what was required before; such a place changes nothing.
        """
        # What numpy's own broadcasting costs is more than all that follows for a few channels.
        return self._tie(x, *(_wide(v, len(x)) for v in (y, a, b)))

    def _tie(self, x: Array, y: Array, a: Array, b: Array) -> Array:
        wrong = np.zeros(len(x), bool)
        left = np.arange(len(x))
        while len(left):
            (rx, ax, bx), (ry, ay, by) = self.find(x), self.find(y)
            # value(x) = ax·X + bx and value(y) = ay·Y + by for the roots X and Y, so p·X = q·Y + r.
            p, q, r = ax, a * ay, a * by + b - bx
            same = rx == ry
            if same.any():
                scale = np.abs(a * by) + np.abs(b) + np.abs(bx)
                wrong[left[same]] = self._contradicts(rx, p, q, r, scale)[same]
                if same.all():
                    break
                left, x, y, a, b, rx, ry, p, q, r = (v[~same] for v in (left, x, y, a, b, rx, ry, p, q, r))
            # The smaller tree goes under the larger; where a factor is 0, there is one way only.
            down = (self.size[rx] <= self.size[ry]) & (p != 0) | (q == 0)
            child, parent = np.where(down, rx, ry), np.where(down, ry, rx)
            slope, shift = np.where(down, q, p), np.where(down, r, -r)
            over = np.where(down, p, q)
            first = self._apart(child, parent)
            if first.all():
                self._attach(child, parent, slope / over, shift / over)
                break
            self._attach(child[first], parent[first], slope[first] / over[first], shift[first] / over[first])
            left, x, y, a, b = (v[~first] for v in (left, x, y, a, b))
        return wrong

    def _apart(self, child: Array, parent: Array) -> Array:
        """Which ties can be made at once: one for each child, and none to a root that is a child itself."""
        numbers = np.arange(len(child))
        self._last[child] = numbers
        first = self._last[child] == numbers
        self._flag[child[first]] = True
        free: Array = first & ~self._flag[parent]
        self._flag[child] = False
        if not free.any():
            free[np.flatnonzero(first)[0]] = True
        return free

    def _contradicts(self, root: Array, p: Array, q: Array, r: Array, scale: Array) -> Array:
        """Whether ``p·X = q·X + r`` cannot be; where it says what an open X is, that is one contradiction
        too.

        A free number that may have one value only is not free; nothing here needs such a cycle to hold.
        """
        known = root == 0
        gap = np.where(known, (p - q) * self.known - r, r)
        reach = np.where(known, (np.abs(p) + np.abs(q)) * abs(self.known), 0) + scale
        off: Array = np.abs(gap) > _CLOSE * reach
        off |= ~known & (np.abs(p - q) > _CLOSE * (np.abs(p) + np.abs(q)))
        return off

    def _attach(self, child: Array, parent: Array, a: Array, b: Array) -> None:
        self._log.append((child, self.a[child].copy(), self.b[child].copy()))
        self.parent[child] = parent
        self.a[child], self.b[child] = a, b
        np.add.at(self.size, parent, self.size[child])

    def mark(self) -> int:
        """A point to go back to."""
        return len(self._log)

    def since(self, mark: int) -> Iterator[Array]:
        """The roots that have been put below others since *mark*, in order."""
        return (child for child, _, _ in self._log[mark:])

    def back(self, mark: int) -> None:
        """Forget every tie since *mark*."""
        while len(self._log) > mark:
            child, a, b = self._log.pop()
            np.subtract.at(self.size, self.parent[child], self.size[child])
            self.parent[child] = child
            self.a[child], self.b[child] = a, b


def _wide(value: Array | float, length: int) -> Array:
    return value if isinstance(value, np.ndarray) else np.full(length, value)


def components(
    count: int, pairs: Iterable[tuple[Array, Array | int]], joined_before: Array | None = None
) -> Array:
    """For each of the nodes 0, 1, … the smallest that it is joined to, if only through others; 0 joins
    nothing.

    Args:
        count: how many nodes.
        pairs: which are joined.
        joined_before: what this returned for other pairs, which hold as well.

    Example:
        >>> components(5, [(np.array([1, 2, 0]), np.array([2, 4, 3]))]).tolist()
        [0, 1, 1, 3, 1]
    """
    joined = [(a, b if isinstance(b, np.ndarray) and b.ndim else np.full(len(a), b)) for a, b in pairs]
    smallest = np.arange(count) if joined_before is None else joined_before.copy()
    if not joined:
        return smallest
    one, two = (np.concatenate([pair[i] for pair in joined]) for i in (0, 1))
    there = (one != 0) & (two != 0)
    one, two = one[there], two[there]
    while len(one):
        a, b = smallest[one], smallest[two]
        apart = a != b
        one, two, a, b = one[apart], two[apart], a[apart], b[apart]
        np.minimum.at(smallest, np.maximum(a, b), np.minimum(a, b))
        while (smallest != (up := smallest[smallest])).any():
            smallest = up
    return smallest

"""Layers that stand beside one another: they read the same values, and a sum adds up what they return.

``conv(x) + BN(x)`` is one convolution, with the BatchNorm's scale in the middle of its kernel, and so are
parallel convolutions whose kernels lie on top of each other: RepVGG, MobileOne, RepGhost, RepViT, FastViT. In
a module the sum belongs to somebody's ``forward``; in a captured program it can go.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bntools.core.calls import Call, Capture, Stored, Value
from bntools.core.mixes import channel_numbers

_SUMS = {"add": 1.0, "add_": 1.0, "sub": -1.0, "sub_": -1.0}


@dataclass(frozen=True, slots=True)
class Diagonal:
    """``scale·y + shift``, a number for each channel: a BatchNorm, or a product with a parameter.

    Args:
        scale: shape (C,).
        shift: shape (C,); zeros for all but one of the terms of a sum that a BatchNorm reads.
        site: the call of the BatchNorm, None for a product.
    """

    scale: np.ndarray
    shift: np.ndarray
    site: Call | None = None


@dataclass(frozen=True, slots=True)
class Term:
    """``factor·d_n(… d_1(conv(x)))``.

    Args:
        x: what is read.
        conv: the call of the convolution or linear layer; None if x itself stands there.
        diagonals: d_1, d_2, …
        factor: a number.
    """

    x: Value
    conv: Call | None = None
    diagonals: tuple[Diagonal, ...] = ()
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Sibling:
    """Terms of a sum that become one layer.

    Args:
        total: the call of the sum.
        host: the call of the layer that takes the others in.
        terms: all that go into it, its own among them.
        rest: the other values of the sum with their signs; they stay.
    """

    total: Call
    host: Call
    terms: tuple[Term, ...]
    rest: tuple[tuple[float, Value], ...]

    @property
    def sites(self) -> list[Call]:
        """The calls of the BatchNorms that go."""
        calls = {d.site.index: d.site for term in self.terms for d in term.diagonals if d.site is not None}
        return [calls[index] for index in sorted(calls)]


def find_siblings(capture: Capture, sites: Mapping[int, Call]) -> list[Sibling]:
    """The sums of a run in which layers can become one, and BatchNorms go with them.

    Args:
        capture: one run; what it says of a module's sums is of use for its program only.
        sites: the BatchNorms that compute a map by running statistics, by the index of their call.
    """
    return list(_Finder(capture, sites).found())


class _Finder:
    def __init__(self, capture: Capture, sites: Mapping[int, Call]) -> None:
        self._capture, self._sites = capture, sites
        self._made = {v.id: call for call in capture.calls for v in call.outputs}
        self._reads = Counter(r.id for c in capture.calls for r in c.reads() if isinstance(r, Value))
        self._nested: set[int] = set()
        self._readers = {r.id: c for c in capture.calls for r in c.reads() if isinstance(r, Value)}

    def found(self) -> Iterator[Sibling]:
        inside: set[int] = set()
        for call in reversed(self._capture.calls):
            if call.op in _SUMS and call.index not in inside:
                self._nested = set()
                for sibling in self._groups(call, self._branches(call)):
                    inside |= self._nested
                    yield sibling

    def _branches(self, total: Call) -> list[tuple[float, Value]]:
        """The values that a sum adds up, through sums of sums that nobody else reads."""
        branches: list[tuple[float, Value]] = []
        signs = (1.0, _SUMS[total.op])
        for sign, operand in zip(signs, (total.args["self"], total.args["other"]), strict=True):
            if (
                not isinstance(operand, Value)
                or operand.shape != total.outputs[0].shape
                or total.args["alpha"] != 1
            ):
                return []
            inner = self._made.get(operand.id)
            if inner is not None and inner.op in _SUMS and self._alone(operand):
                below = self._branches(inner)
                if below:
                    self._nested.add(inner.index)
                    branches += [(sign * s, v) for s, v in below]
                    continue
            branches.append((sign, operand))
        return branches

    def _alone(self, value: Value) -> bool:
        """Whether one call reads a value, and nobody else sees it."""
        return self._reads[value.id] == 1 and value.memory not in self._capture.outside

    def _terms(self, value: Value) -> list[Term]:
        """A value as a sum of terms, as far as nobody else reads what is in between."""
        call = self._made.get(value.id)
        if call is None or not self._alone(value):
            return [Term(value)]
        if call.index in self._sites:
            norm = self._capture.norms[call.index]
            return self._times(call.args["input"], Diagonal(norm.scale, norm.shift, call), value)
        numbers = channel_numbers(self._capture, self._made, call)
        if numbers is not None:
            x, scale = numbers
            return self._times(x, Diagonal(scale, np.zeros_like(scale)), value)
        if call.op in _SUMS and isinstance(call.args["other"], int | float) and call.args["alpha"] == 1:
            x, number = call.args["self"], _SUMS[call.op] * call.args["other"]
            channels = x.shape[1] if len(x.shape) > 1 else 0
            return self._times(x, Diagonal(np.ones(channels), np.full(channels, number)), value)
        if call.op in _SUMS and (below := self._branches(call)):
            self._nested.add(call.index)
            return [replace(t, factor=sign * t.factor) for sign, v in below for t in self._terms(v)]
        conv = call.op in ("conv1d", "conv2d", "conv3d", "linear") and isinstance(call.args["weight"], Stored)
        if conv and isinstance(call.args["input"], Value) and isinstance(call.args["bias"], Stored | None):
            return [Term(call.args["input"], call)]
        return [Term(value)]

    def _times(self, x: object, diagonal: Diagonal, value: Value) -> list[Term]:
        """A diagonal of a sum is the sum of it on each term, its shift counted once."""
        if (
            not isinstance(x, Value)
            or x.shape != value.shape
            or len(x.shape) < 2
            or x.shape[1] != len(diagonal.scale)
        ):
            return [Term(value)]
        terms = self._terms(x)
        still = replace(diagonal, shift=np.zeros_like(diagonal.shift))
        each = [diagonal] + [still] * (len(terms) - 1)
        # With a factor in front, the shift is to come out once and unchanged.
        return [
            replace(t, diagonals=(*t.diagonals, replace(d, shift=d.shift / t.factor)))
            for t, d in zip(terms, each, strict=True)
        ]

    def _groups(self, total: Call, branches: Sequence[tuple[float, Value]]) -> Iterator[Sibling]:
        """The branches that read one value, as one layer, if a BatchNorm is among them or right behind."""
        by_source: dict[int, list[tuple[float, Value, list[Term]]]] = defaultdict(list)
        for sign, value in branches:
            terms = [replace(t, factor=sign * t.factor) for t in self._terms(value)]
            if len({t.x.id for t in terms}) == 1:
                by_source[terms[0].x.id].append((sign, value, terms))
        for group in by_source.values():
            terms = [t for _, _, several in group for t in several]
            convs = [t.conv for t in terms if t.conv is not None]
            if len(terms) < 2 or not convs or not all(isinstance(v, Value) for _, v, _ in group):
                continue
            host = max(convs, key=lambda c: (_taps(c), -c.index))
            fits = [g for g in group if all(fits_into(t, host) for t in g[2])]
            merged = tuple(t for _, _, several in fits for t in several)
            chosen = {v.id for _, v, _ in fits}
            rest = tuple((s, v) for s, v in branches if v.id not in chosen)
            sibling = Sibling(total, host, merged, rest)
            behind = self._readers.get(total.outputs[0].id)
            read = (
                not rest
                and behind is not None
                and behind.index in self._sites
                and self._alone(total.outputs[0])
            )
            if len(merged) > 1 and (sibling.sites or read) and len(chosen) == len(fits):
                yield sibling
                return


def _taps(call: Call) -> int:
    return int(np.prod(call.args["weight"].shape[2:], dtype=np.int64))


def fits_into(term: Term, host: Call) -> bool:
    """Whether a term's kernel lies within that of a layer, tap on tap."""
    return offset_of(term, host) is not None


def offset_of(term: Term, host: Call) -> tuple[int, ...] | None:
    """At which place of the layer's kernel that of a term begins, for each axis of space; None if it does not
    fit.

    Output position o reads input position ``o·stride + k·dilation − padding``; taps that read the same
    position lie on top of each other, and what hangs over the edge reads zeros in both.
    """
    a, rank = host.args, len(host.args["weight"].shape) - 2
    out, per_group = host.args["weight"].shape[:2]
    groups = a.get("groups", 1)
    if len(term.x.shape) != rank + 2 or (rank and isinstance(a["padding"], str)):
        return None
    stride, padding, dilation = (
        (_each(a[n], rank) for n in ("stride", "padding", "dilation")) if rank else ((), (), ())
    )
    kernel = host.args["weight"].shape[2:]
    if term.conv is None:
        if (
            term.x.id != host.args["input"].id
            or out != per_group * groups
            or set(stride) - {1}
            or term.x.shape != host.outputs[0].shape
        ):
            return None
        starts = [(0, 1, d) for d in dilation]  # one tap, at the position itself
    else:
        b = term.conv.args
        if term.conv.op != host.op or term.x.id != host.args["input"].id or b.get("groups", 1) != groups:
            return None
        if rank and (isinstance(b["padding"], str) or _each(b["stride"], rank) != stride):
            return None
        others = b["weight"].shape[2:]
        own = (
            list(zip(_each(b["padding"], rank), others, _each(b["dilation"], rank), strict=True))
            if rank
            else []
        )
        starts = [(p, k, dilation[i] if k == 1 else d) for i, (p, k, d) in enumerate(own)]
    offset = []
    for (p, k, d), p0, k0, d0 in zip(starts, padding, kernel, dilation, strict=True):
        first, left = divmod(p0 - p, d0)
        if d != d0 or left or first < 0 or first + k > k0:
            return None
        offset.append(first)
    return tuple(offset)


def _each(value: object, rank: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    return values * rank if len(values) == 1 else values

"""Where two computations begin to differ. Pure: steps and checks in, a place out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """A value of the reference.

    Args:
        name: unique.
        reads: the values that it is computed from.
        module: the path of the module that computes it.
        op: by which operator.
    """

    name: str
    reads: tuple[str, ...] = ()
    module: str = ""
    op: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """A value on both sides: error, the reference's own noise, and the largest error that is no fault."""

    error: float
    noise: float
    limit: float

    @property
    def bad(self) -> bool:
        """Whether it differs; NaN does."""
        return not self.error <= self.limit


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first value that differs although all that it is computed from agrees.

    Args:
        module: the path of the module that computes it, empty for the model itself.
        value: its name in the reference.
        op: by which operator.
        error, noise, limit: as shares of its scale.
        between: the modules that run between the last values that agree and this one.
        compared, values: so many values could be compared, of so many that the reference has.
        node: what computes it in an ONNX file, and the weights that it reads.
    """

    module: str
    value: str
    op: str
    error: float
    noise: float
    limit: float
    between: tuple[str, ...] = ()
    compared: int = 0
    values: int = 0
    node: str = ""


def first_divergence(
    steps: Sequence[Step], checks: Mapping[str, Check], outputs: Collection[str] = ()
) -> Divergence | None:
    """The first step whose value differs, whose inputs agree, and whose difference reaches an output.

    A value that differs while all that follow from it agree is no fault: that of a layer that took in a
    BatchNorm is one. Steps without a check are looked through.

    Args:
        steps: of the reference, in order of execution.
        checks: by name, of the values that both sides have.
        outputs: names of what is returned.

    Returns:
        None if no value differs.

    Example:
        >>> steps = [Step("a"), Step("b", ("a",)), Step("c", ("b",))]
        >>> checks = {"a": Check(0, 0, 1e-6), "b": Check(0.1, 0, 1e-6), "c": Check(0.2, 0, 1e-6)}
        >>> first_divergence(steps, checks, ["c"]).value
        'b'
    """
    bad = {name for name, check in checks.items() if check.bad}
    if not bad:
        return None
    above, between = _nearest(steps, checks)
    reach = _reaching(steps, above, bad, outputs)
    candidates = [
        step for step in steps if step.name in bad and not any(name in bad for name in above[step.name])
    ]
    first = next((s for s in candidates if s.name in reach), next(iter(candidates), None))
    if first is None:
        return None
    check = checks[first.name]
    return Divergence(
        first.module,
        first.name,
        first.op,
        check.error,
        check.noise,
        check.limit,
        between[first.name],
        len(checks),
        len(steps),
    )


def stretch_to(name: str, steps: Sequence[Step], checks: Mapping[str, Check]) -> tuple[str, ...]:
    """The modules that run between the last checked values and a step; empty if there is no such step."""
    return _nearest(steps, checks)[1].get(name, ())


def _nearest(
    steps: Sequence[Step], checks: Mapping[str, Check]
) -> tuple[dict[str, frozenset[str]], dict[str, tuple[str, ...]]]:
    """For each step the checked values that it follows from, and the modules on the way from them."""
    above: dict[str, frozenset[str]] = {}
    between: dict[str, tuple[str, ...]] = {}
    for step in steps:
        found: set[str] = set()
        modules: dict[str, None] = {}
        for name in step.reads:
            if name in checks:
                found.add(name)
            elif name in above:
                found |= above[name]
                modules |= dict.fromkeys(between[name])
        above[step.name] = frozenset(found)
        between[step.name] = tuple(modules | {step.module: None})
    return above, between


def _reaching(
    steps: Sequence[Step],
    above: Mapping[str, frozenset[str]],
    bad: Collection[str],
    outputs: Collection[str],
) -> set[str]:
    """The values that differ and lead to an output by values that all differ."""
    below: dict[str, set[str]] = {}
    for name, nearest in above.items():
        for each in nearest:
            below.setdefault(each, set()).add(name)
    reach: set[str] = set()
    for step in reversed(steps):
        if step.name in bad and (step.name in outputs or below.get(step.name, set()) & reach):
            reach.add(step.name)
    return reach

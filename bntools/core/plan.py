"""What will be cut, what will not, and why: plain records that turn into JSON. No torch here."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import cast

from bntools.core.changes import Part, Standardization, Swap, Switch
from bntools.core.host import Host
from bntools.core.keys import key_of
from bntools.core.numbers import Maps
from bntools.core.reasons import REMEDIES, Reason
from bntools.core.records import plain, record
from bntools.errors import PlanError

VERSION = 5

REDUCED = "affine"
"""What the layer is called in front of what its module does besides."""


class Promise(StrEnum):
    """What a verb promises about the outputs of the changed model."""

    SAME = "same"
    """Equal up to rounding: fold, freeze, export."""
    MOVED = "moved"
    """The same architecture with other statistics: recalibrate."""
    NEW = "new"
    """Another function on purpose: swap."""


class Side(StrEnum):
    """Where the layers are that take a BatchNorm in."""

    UPSTREAM = "upstream"
    """In front of it: they make what it reads."""
    DOWNSTREAM = "downstream"
    """Behind it: they read what it returns."""
    BOTH = "both"
    """On either side, where the values have other readers or makers too."""
    SIBLING = "sibling"
    """Beside it: they read the same values, and a sum adds up what they return."""


@dataclass(frozen=True, slots=True)
class Site:
    """One call of a BatchNorm.

    Args:
        name: the module's path, with ``#2`` for its second call; unique in a plan.
        module: the path of the module that owns the call, or None.
        kind: the class of that module, or the operator.
        channels: the number of channels C.
        eps: added to the variance; None where only tensors are known.
        momentum: in PyTorch's sense, ``new = (1-m)·old + m·batch``; None is a cumulative average.
        batches: `num_batches_tracked`, or None where it is not counted.
        at: its place in the order of execution, None if no call reached it.
    """

    name: str
    module: str | None
    kind: str
    channels: int
    eps: float | None
    momentum: float | None = None
    batches: int | None = None
    at: int | None = None

    @property
    def statistics(self) -> tuple[str, ...]:
        """The keys of its running statistics and, where it counts them, of its batches."""
        names = ["running_mean", "running_var"] + ["num_batches_tracked"] * (self.batches is not None)
        return tuple(key_of(self.module or "", name) for name in names)


@dataclass(frozen=True, slots=True)
class Edit:
    """A site that goes; in a plan whose promise is ``moved``, one with other statistics; in one with
    switches, one that is frozen or no longer is.

    Args:
        site: the call.
        side: where the layers are that take it in.
        into: their paths.
        through: the operators between it and them.
        removes: every path of the BatchNorm module that disappears.
        keeps: what the module does besides, in order; empty for a plain BatchNorm.
    """

    site: Site
    side: Side = Side.UPSTREAM
    into: tuple[str, ...] = ()
    through: tuple[str, ...] = ()
    removes: tuple[str, ...] = ()
    keeps: tuple[Part, ...] = ()


class Op(StrEnum):
    """What is left of a BatchNorm that is reduced."""

    SHIFT = "shift"
    """``x + b``: the layers around it took its scale in."""
    AFFINE = "affine"
    """``w·x + b``"""


@dataclass(frozen=True, slots=True)
class Reduction:
    """A site that stays, as a `bntools.norms.ChannelAffine` instead of a BatchNorm.

    Args:
        site: the call.
        op: what is left of it.
        removes: every path of the BatchNorm module.
        keeps: what the module does besides, in order.
    """

    site: Site
    op: Op
    removes: tuple[str, ...] = ()
    keeps: tuple[Part, ...] = ()

    @property
    def path(self) -> str:
        """Where the layer that computes it stands."""
        path = next(iter(self.removes), "")
        return f"{path}.{REDUCED}" if self.keeps else path

    @property
    def weight_key(self) -> str:
        return f"{self.path}.weight" if self.op is Op.AFFINE else ""

    @property
    def bias_key(self) -> str:
        return f"{self.path}.bias"

    @property
    def keys(self) -> tuple[str, ...]:
        """Of the tensors that are made."""
        return (*filter(None, (self.weight_key,)), self.bias_key)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A site that stays, and why.

    Args:
        site: the call, or the module that no call reached.
        reason: one of a closed list.
        detail: one sentence with the names of what is in the way in front of it, or on either side.
        behind: the same for what is behind it; empty if it could go there, or if that was not asked.
    """

    site: Site
    reason: Reason
    detail: str
    behind: str = ""

    @property
    def remedy(self) -> str:
        """What can be done about it."""
        return REMEDIES[self.reason]


@dataclass(frozen=True, slots=True)
class Plan:
    """Every site of a model, each either edited or refused.

    Args:
        verb: what made the plan.
        edits, refusals: in order of execution.
        reductions: of refused sites, those that become something faster than a BatchNorm.
        fingerprint: of the model that it was made for, see `bntools.core.capture.fingerprint`.
        hosts: the layers whose tensors change.
        notes: what the reader should know about how it was made.
        promise: what holds after the edits.
        swaps: what another norm takes the place of.
        standardized: the convolutions that are standardised.
        tuned: the keys of parameters that are written anew, of layers that stay.
        switches: what is frozen, or no longer is; a plan with any takes nothing out.
        maps: the numbers behind it; None in a plan that comes from a file.
    """

    verb: str
    edits: tuple[Edit, ...]
    refusals: tuple[Refusal, ...]
    fingerprint: str
    hosts: tuple[Host, ...] = ()
    notes: tuple[str, ...] = ()
    promise: Promise = Promise.SAME
    reductions: tuple[Reduction, ...] = ()
    switches: tuple[Switch, ...] = ()
    swaps: tuple[Swap, ...] = ()
    standardized: tuple[Standardization, ...] = ()
    tuned: tuple[str, ...] = ()
    maps: Maps | None = field(default=None, compare=False, repr=False)

    @property
    def changes(self) -> tuple[Edit | Reduction, ...]:
        """The sites whose module goes or is replaced, in order of execution."""
        stay = self.promise is Promise.MOVED or self.switches or self.swaps
        gone = () if stay else self.edits
        return tuple(sorted((*gone, *self.reductions), key=lambda change: change.site.at or 0))

    @property
    def keys(self) -> frozenset[str]:
        """Of all tensors that change or are made."""
        layers: tuple[Host | Reduction | Swap | Standardization, ...] = (
            *self.hosts,
            *self.reductions,
            *self.swaps,
            *self.standardized,
        )
        return frozenset((*self.statistics, *self.tuned)).union(*(layer.keys for layer in layers))

    @property
    def statistics(self) -> tuple[str, ...]:
        """The keys of the running statistics that are written anew."""
        edits = self.edits if self.promise is Promise.MOVED else ()
        return tuple(key for edit in edits for key in edit.site.statistics)

    @property
    def sites(self) -> tuple[Site, ...]:
        """All sites, in order of execution; those that no call reached come last."""
        sites = [*(e.site for e in self.edits), *(r.site for r in self.refusals)]
        return tuple(sorted(sites, key=lambda s: (s.at is None, s.at or 0)))

    def to_json(self) -> str:
        """The plan as one line of JSON with sorted keys: equal plans give equal text."""
        content = dataclasses.asdict(dataclasses.replace(self, maps=None))
        del content["maps"]
        return json.dumps({"version": VERSION, **content}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan back.

        Raises:
            PlanError: if the text is no plan, or one of another version.
        """
        try:
            raw = json.loads(text)
            version = raw.pop("version")
            if type(version) is not int or version != VERSION:
                raise PlanError(
                    f"plan: expected version {VERSION}, it has {plain(version)}",
                    todo="use the bntools that wrote it",
                )
            return cast(Plan, record(cls, raw, "plan"))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise PlanError(
                f"plan: not one that bntools wrote ({plain(error)})", todo="fold the model again"
            ) from None

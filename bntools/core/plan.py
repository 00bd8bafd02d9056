"""What will be cut, what will not, and why: plain records that turn into JSON. No torch here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast, get_args, get_origin, get_type_hints

from bntools.errors import PlanError

VERSION = 1


class Promise(StrEnum):
    """What a verb promises about the outputs of the changed model."""

    SAME = "same"
    """Equal up to rounding: fold, freeze, export."""
    MOVED = "moved"
    """The same architecture with other statistics: recalibrate."""
    NEW = "new"
    """Another function on purpose: swap."""


class Reason(StrEnum):
    """Why a site is not folded: a closed list. `REMEDIES` says what can be done about each."""

    TRAINING = "training"
    NO_STATISTICS = "no-statistics"
    BAD_STATISTICS = "bad-statistics"
    UNREACHED = "unreached"
    UNRECOGNISED = "unrecognised"
    NOT_CAPTURED = "not-captured"
    NO_MODULE = "no-module"
    SUBCLASS = "subclass"
    HOOKED = "hooked"
    NO_HOST = "no-host"
    BLOCKED = "blocked"
    OTHER_AXIS = "other-axis"
    READ_ELSEWHERE = "read-elsewhere"
    RETURNED = "returned"
    WRITTEN_IN_PLACE = "written-in-place"
    SHARED_HOST = "shared-host"
    SHARED_BN = "shared-bn"
    COMPUTED_WEIGHT = "computed-weight"
    PARAMETRISED = "parametrised"
    COMPILED = "compiled"
    NO_BIAS = "no-bias"
    LAYOUT = "layout"
    UNSUPPORTED_TYPE = "unsupported-type"
    OVERFLOW = "overflow"


REMEDIES: Mapping[Reason, str] = {
    Reason.TRAINING: "call model.eval() first: in training mode a BatchNorm normalises by the batch",
    Reason.NO_STATISTICS: "without running statistics it normalises by the batch even in eval",
    Reason.BAD_STATISTICS: "recalibrate its statistics before folding",
    Reason.UNREACHED: "give inputs that reach it, or remove it from the model",
    Reason.UNRECOGNISED: "replace it by torch.nn.BatchNorm with the same statistics",
    Reason.NOT_CAPTURED: "give inputs that the model runs on",
    Reason.NO_MODULE: "call BatchNorm through a module of its own",
    Reason.SUBCLASS: "split its extra steps off into modules of their own",
    Reason.HOOKED: "remove the hook before folding",
    Reason.NO_HOST: "nothing in front of it has weights that could take it in",
    Reason.BLOCKED: "an affine map does not pass through that operator",
    Reason.OTHER_AXIS: "transpose, so that the layer's outputs are the BatchNorm's channels",
    Reason.READ_ELSEWHERE: "the other reader needs the values from before the BatchNorm",
    Reason.RETURNED: "the caller gets the values from before the BatchNorm",
    Reason.WRITTEN_IN_PLACE: "use the out-of-place form of that operator",
    Reason.SHARED_HOST: "give each call a layer of its own",
    Reason.SHARED_BN: "give each call a BatchNorm of its own",
    Reason.COMPUTED_WEIGHT: "replace the layer by a plain one that holds the computed weight",
    Reason.PARAMETRISED: "bake the parametrization: --bake-parametrizations, or bake=True",
    Reason.COMPILED: "fold the module that was compiled, and compile the result",
    Reason.NO_BIAS: "give the layer a bias of zeros that its forward uses",
    Reason.LAYOUT: "call reshape there instead of view",
    Reason.UNSUPPORTED_TYPE: "fold before quantising or casting to that type",
    Reason.OVERFLOW: "fold in a wider dtype",
}


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


@dataclass(frozen=True, slots=True)
class Part:
    """What a BatchNorm subclass does behind its normalisation, and keeps doing.

    Args:
        name: the attribute that holds the child module, or the attribute for a new one.
        op: empty for a child; else the class in ``torch.nn`` to build.
        args: the arguments of that class.
    """

    name: str
    op: str = ""
    args: tuple[float | bool | str, ...] = ()


@dataclass(frozen=True, slots=True)
class Host:
    """The layer that takes the map in.

    Args:
        path: the module's path.
        op: the operator, such as ``conv2d``.
        layout: where the weight keeps its output channels, see `bntools.core.algebra.fold_weight`.
        groups: of a transposed convolution, else 1.
        weight: the keys under which the weight stands; several if it is tied, none if it has yet to be made.
        bias: likewise; none if the layer has no bias yet.
        new_weight, new_bias: the key to make one under where there is none.
        bake: the parametrised tensor of the module to make plain first, or empty.
        call: which call of the host it is, so that a host called twice takes its maps once.
    """

    path: str
    op: str
    layout: str
    groups: int = 1
    weight: tuple[str, ...] = ()
    bias: tuple[str, ...] = ()
    new_weight: str = ""
    new_bias: str = ""
    bake: str = ""
    call: int = 0

    @property
    def weight_key(self) -> str:
        return self.weight[0] if self.weight else self.new_weight

    @property
    def bias_key(self) -> str:
        return self.bias[0] if self.bias else self.new_bias


@dataclass(frozen=True, slots=True)
class Edit:
    """A site that folds into the layer in front of it.

    Args:
        site: the call.
        host: the layer that takes it in.
        reads: the keys of its γ, β, μ and σ²; empty where it has none.
        through: the operators between the two, from the site back.
        removes: every path of the BatchNorm module that disappears.
        keeps: what the module does besides, in order; empty for a plain BatchNorm.
    """

    site: Site
    host: Host
    reads: tuple[str, str, str, str] = ("", "", "", "")
    through: tuple[str, ...] = ()
    removes: tuple[str, ...] = ()
    keeps: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A site that stays, and why.

    Args:
        site: the call, or the module that no call reached.
        reason: one of a closed list.
        detail: one sentence with the names of what is in the way.
    """

    site: Site
    reason: Reason
    detail: str

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
        fingerprint: of the model that it was made for, see `bntools.core.capture.fingerprint`.
        notes: what the reader should know about how it was made.
        promise: what holds after the edits.
    """

    verb: str
    edits: tuple[Edit, ...]
    refusals: tuple[Refusal, ...]
    fingerprint: str
    notes: tuple[str, ...] = ()
    promise: Promise = Promise.SAME

    @property
    def sites(self) -> tuple[Site, ...]:
        """All sites, in order of execution; those that no call reached come last."""
        sites = [*(e.site for e in self.edits), *(r.site for r in self.refusals)]
        return tuple(sorted(sites, key=lambda s: (s.at is None, s.at or 0)))

    def to_json(self) -> str:
        """The plan as one line of JSON with sorted keys: equal plans give equal text."""
        return json.dumps(
            {"version": VERSION, **dataclasses.asdict(self)}, sort_keys=True, separators=(",", ":")
        )

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
            return cast(Plan, _value(cls, raw, "plan"))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise PlanError(
                f"plan: not one that bntools wrote ({plain(error)})", todo="fold the model again"
            ) from None


def _value(kind: Any, raw: Any, at: str) -> Any:
    """What *raw* stands for in a field of type *kind*; anything but that is an error that names the field."""
    of = get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(raw, dict):
        types = get_type_hints(kind)
        if types.keys() != raw.keys():
            raise ValueError(f"{at} has other fields: {', '.join(sorted(types.keys() ^ raw.keys())[:3])}")
        return cast(Any, kind)(**{name: _value(types[name], raw[name], f"{at}.{name}") for name in types})
    if get_origin(kind) is tuple and isinstance(raw, list):
        each = of[:1] * len(raw) if of[-1] is ... else of
        return tuple(_value(k, v, f"{at}[{i}]") for i, (k, v) in enumerate(zip(each, raw, strict=True)))
    if isinstance(kind, type) and issubclass(kind, StrEnum) and type(raw) is str:
        return kind(raw)
    kinds = (kind,) if get_origin(kind) is tuple else of or (kind,)
    # A bool is an int to Python, not to us; a whole number may stand for a float, if it fits one.
    if type(raw) in kinds or (type(raw) is int and float in kinds and float(raw) == raw):
        return raw
    raise TypeError(f"{at} is {plain(raw)}")


def plain(value: object, size: int = 80) -> str:
    """What a file says, for a message: on one line, and no longer than that."""
    return ascii(str(value))[1:-1][:size]

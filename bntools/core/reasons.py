"""Why a BatchNorm stays, as codes, and what can be done about each. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Reason(StrEnum):
    """Why a site is left as it is: a closed list. `REMEDIES` says what can be done about each."""

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
    IMPRECISE = "imprecise"
    SIBLING = "sibling"
    FROZEN = "frozen"
    NOT_SELECTED = "not-selected"
    TIED = "tied"
    NOT_FROZEN = "not-frozen"
    ONE_VALUE = "one-value"
    GROUPS = "groups"
    ALREADY = "already"
    NO_DATA = "no-data"


_PROGRAM = ", or fold the captured program: -o model.pt2"

REMEDIES: Mapping[Reason, str] = {
    Reason.TRAINING: "call model.eval() first: in training mode a BatchNorm normalises by the batch",
    Reason.NO_STATISTICS: "without running statistics it normalises by the batch even in eval",
    Reason.BAD_STATISTICS: "recalibrate its statistics before folding",
    Reason.UNREACHED: "give inputs that reach it, or remove it from the model",
    Reason.UNRECOGNISED: "replace it by torch.nn.BatchNorm with the same statistics",
    Reason.NOT_CAPTURED: "give inputs that the model runs on",
    Reason.NO_MODULE: "call BatchNorm through a module of its own" + _PROGRAM,
    Reason.SUBCLASS: "split its extra steps off into modules of their own" + _PROGRAM,
    Reason.HOOKED: "remove the hook before folding",
    Reason.NO_HOST: "put a layer with weights in front of it, or right behind it",
    Reason.BLOCKED: "an affine map does not pass through that operator",
    Reason.OTHER_AXIS: "transpose, so that the layer's outputs are the BatchNorm's channels",
    Reason.READ_ELSEWHERE: "the other reader needs the values from before the BatchNorm",
    Reason.RETURNED: "the caller gets the values from before the BatchNorm",
    Reason.WRITTEN_IN_PLACE: "use the out-of-place form of that operator",
    Reason.SHARED_HOST: "give each call a layer of its own" + _PROGRAM,
    Reason.SHARED_BN: "give each call a BatchNorm of its own" + _PROGRAM,
    Reason.COMPUTED_WEIGHT: "replace the layer by a plain one that holds the computed weight",
    Reason.PARAMETRISED: "bake the parametrization: --bake-parametrizations, or bake=True",
    Reason.COMPILED: "fold the module that was compiled, and compile the result",
    Reason.NO_BIAS: "give the layer a bias of zeros that its forward uses" + _PROGRAM,
    Reason.LAYOUT: "call reshape there instead of view",
    Reason.UNSUPPORTED_TYPE: "fold before quantising or casting to that type",
    Reason.OVERFLOW: "fold in a wider dtype",
    Reason.IMPRECISE: "prune the channels in which γ is almost zero, or leave it",
    Reason.SIBLING: "fold the captured program: -o model.pt2, or level='program'",
    Reason.FROZEN: "give include_frozen=True to change it all the same",
    Reason.NOT_SELECTED: "leave out only=, or name it there",
    Reason.TIED: "choose that layer as well, or freeze the statistics only: affine=False",
    Reason.NOT_FROZEN: "there is nothing to undo",
    Reason.ONE_VALUE: "choose fewer groups, or give larger inputs: of one value nothing is left",
    Reason.GROUPS: "choose a number of groups that divides its channels, or auto",
    Reason.ALREADY: "there is nothing to do",
    Reason.NO_DATA: "give data to find its statistics in: data=, --data",
}

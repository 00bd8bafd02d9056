"""Swap BatchNorm for another norm, and keep what was learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bntools.core.batches import Forward, call
from bntools.core.capture import check_eager, fingerprint
from bntools.core.change import Change, Coming, Trial, change_between, coming
from bntools.core.changes import Norm, Standardization, Swap, Switch
from bntools.core.exact import copied
from bntools.core.example import Example
from bntools.core.freezing import freezes, unfreezes
from bntools.core.graft import graft_
from bntools.core.guess import guess
from bntools.core.inputs import type_and_device
from bntools.core.plan import Edit, Plan, Promise, Refusal
from bntools.core.reasons import Reason
from bntools.core.refine import Passes, refined, wants_data
from bntools.core.rounds import Progress
from bntools.core.select import Selected, select
from bntools.core.sites import site_of
from bntools.core.surgery import Surgery
from bntools.core.swapping import Left, swap_of, tensors_of_standardization, tensors_of_swap
from bntools.errors import CaptureError, UsageError
from bntools.norms.frozen import frozen
from bntools.norms.standardized import EPS, why_not

Target = Literal["group", "layer", "instance", "switchable", "frozen", "sync", "batch"]
_NORMS = {"layer": Norm.GROUP, **{norm.value: norm for norm in Norm}}
_SINGLE = "group", "layer", "instance"
_FITTED = *_SINGLE, "batch"
_OTHERS = nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d
"""What a BatchNorm can take the place of, besides what has running statistics."""


def swap(
    model: nn.Module,
    to: Target = "group",
    *,
    groups: int | Literal["auto"] = "auto",
    data: Iterable[Any] | None = None,
    tune: int = 0,
    weight_standardization: bool = False,
    forward: Forward = call,
    max_samples: int | None = 8192,
    inputs: Any = None,
    only: str | Sequence[str] = "*",
    inplace: bool = False,
    progress: Progress = lambda step, samples: None,
) -> Surgery[Change]:
    """Put another norm in the place of each BatchNorm, with a γ and a β that make up for the difference.

    A GroupNorm divides by what each sample holds, a BatchNorm by what all of them held. If the values of
    a sample are spread as the running statistics say, those of group g have the mean ``M = mean_g μ_c`` and
    the variance ``S² = mean_g(σ_c² + μ_c²) − M²``, and a GroupNorm computes the same with

        ``γ' = γ·√(S² + ε)/√(σ² + ε)``, ``β' = β + γ·(M − μ)/√(σ² + ε)``.

    Samples differ, so the result is another function, on purpose; the report says how far it is from the
    old one. With *data*, γ' and β' are those of least squares instead: layer by layer, with those below
    swapped already, the new norm comes nearest to what the old one returned in the old model.

    Args:
        model: an eager module; left alone unless *inplace*.
        to: ``"group"``; ``"layer"``, which is one group; ``"instance"``, which is a group for each channel;
            ``"switchable"``, a mixture of batch, layer and instance that starts as a BatchNorm;
            ``"frozen"``, as `bntools.freeze` does; ``"sync"`` or ``"batch"``, which are the same function.
            ``"batch"`` also unfreezes, and with *data* takes the place of a GroupNorm.
        groups: how many; ``"auto"`` is the largest number, 32 at most, that divides the channels and leaves
            16 in each group.
        data: batches without labels, as for `bntools.recalibrate`, to fit the new norms to. What can be read
            only once is held in memory.
        tune: for how many batches to train the parameters, those that are trained, on the outputs of the old
            model.
        weight_standardization: also train the filters of the convolutions right in front of the new norms
            apart from their mean and norm, as `bntools.norms.StandardizedConv2d`; they compute what they did.
        forward: called with a model and a batch, for batches of any other form.
        max_samples: where to stop reading; None for all.
        inputs: to measure the difference on, as for `bntools.fold`; of the data, or guessed, if None.
        only: patterns of paths, as for `bntools.recalibrate`.
        inplace: change *model* itself.
        progress: told what is being done, and of how many samples, or steps, that is done.

    Returns:
        the model, the plan with every BatchNorm in ``edits`` or ``refusals``, and how far the outputs are
        from the old ones. Hooks, modes, types, devices, shared modules and what a subclass does behind its
        normalisation are kept.

    Raises:
        UsageError: if an argument is wrong, or the data is empty or holds NaN.
        CaptureError: if the model does not run on the inputs that are given, or cannot be copied.

    Source:
        Wu and He, Group Normalization (2018), on GroupNorm.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32))
        >>> swap(net).model[1].num_groups
        2
    """
    check_eager(model)
    _check(to, groups, data, tune, max_samples, standardize=weight_standardization)
    with torch.inference_mode(False):
        source = None if data is None else Passes.of(data, model, max_samples, forward)
        trial = _trial(model, inputs, source)
        selected = select(model, only, include_frozen=True, others=_OTHERS if to == "batch" else ())
        left = dict(selected.left)
        swaps: list[Swap] = []
        switches: dict[str, Switch] = {}
        if to == "frozen":
            switches, why = freezes(model, selected.norms)
            left |= why
        norms = selected.norms if to != "frozen" else {}
        # Only for these it matters what comes to them.
        asked = [path for path, module in norms.items() if to in _SINGLE or isinstance(module, nn.GroupNorm)]
        here = coming(model, [*filter(None, asked)], trial)
        for path, module in norms.items():
            count = 1 if to == "layer" else None if groups == "auto" else int(groups)
            paths, shape = selected.facts[path].paths, here[path].shape if path in here else None
            found = swap_of(module, paths, _NORMS[to], count, shape, data=source is not None)
            if not path:
                found = Left(Reason.NO_MODULE, "the model is the BatchNorm itself, which nothing holds")
            if isinstance(found, Left):
                left[path] = found.reason, found.detail
                continue
            swaps.append(found)
        if to == "batch":  # what was frozen is one already, and becomes what it was
            held = {path: each for path, each in norms.items() if path in left and frozen(each) is not None}
            switches, why = unfreezes(model, held)
            left = {path: each for path, each in left.items() if path not in switches} | why
        dtype, _ = type_and_device(model)
        tensors: dict[str, Tensor] = {}
        for each in swaps:
            tensors |= tensors_of_swap(model.get_submodule(each.paths[0]), each, dtype)
        convs, notes = _standardized(model, swaps, here) if weight_standardization else ((), ())
        for conv in convs:
            tensors |= tensors_of_standardization(model.get_submodule(conv.path), conv)
        plan = _plan(model, selected, left, swaps, switches, convs, notes)
        change = Change()
        wanted = tuple(each for each in swaps if source is not None and wants_data(model, each))
        if source is not None and wanted:
            more = refined(model, plan, tensors, wanted, source, tune, progress)
            tensors |= more.tensors
            for each in wanted:
                if each.norm is Norm.BATCH and f"{each.path}.weight" not in more.tensors:
                    left[each.paths[0]] = Reason.UNREACHED, "no batch reached it"
                    swaps.remove(each)
            plan = _plan(model, selected, left, swaps, switches, convs, notes)
            if more.tuned:
                stays = dict(model.named_parameters(remove_duplicate=False)).keys() - plan.keys
                plan = replace(plan, tuned=tuple(key for key in more.tensors if key in stays))
            tensors = {key: tensors[key] for key in plan.keys}
            change = Change(samples=more.samples, steps=tune if more.tuned else 0, tuned=more.tuned)
        target = copied(model)
        graft_(target, plan, tensors)
        seen = change_between(model, target, [each.paths[0] for each in swaps], trial)
        change = replace(change, layers=seen.layers, output=seen.output, inputs=seen.inputs)
        if inplace:
            graft_(model, plan, tensors)
        return Surgery(model if inplace else target, plan, change)


def _check(
    to: str, groups: object, data: object, tune: object, max_samples: int | None, *, standardize: bool
) -> None:
    if to not in (*_NORMS, "frozen"):
        raise UsageError(f"to: {to!r} is none", todo=f"write {', '.join((*_NORMS, 'frozen'))}")
    if groups != "auto" and (isinstance(groups, bool) or not isinstance(groups, int) or groups < 1):
        raise UsageError(f"groups: {groups!r} is none", todo="write a number, or 'auto'")
    if isinstance(tune, bool) or not isinstance(tune, int) or tune < 0:
        raise UsageError(f"tune: {tune!r} is none", todo="write a number of steps")
    if tune and data is None:
        raise UsageError("tune: there is no data to train on", todo="give data")
    if data is not None and to not in _FITTED:
        raise UsageError(
            f"data: nothing is fitted for to={to!r}", todo=f"leave it out; it is for {', '.join(_FITTED)}"
        )
    if standardize and to not in _SINGLE:
        raise UsageError(
            f"weight_standardization: not for to={to!r}", todo=f"leave it out; it is for {', '.join(_SINGLE)}"
        )
    if max_samples is not None and max_samples < 1:
        raise UsageError(f"max_samples: expected a positive number, it is {max_samples}")


def _plan(
    model: nn.Module,
    selected: Selected,
    left: Mapping[str, tuple[Reason, str]],
    swaps: Sequence[Swap],
    switches: Mapping[str, Switch],
    convs: Sequence[Standardization],
    notes: Sequence[str],
) -> Plan:
    """Every BatchNorm, either with what takes its place or with the reason why nothing does."""
    facts = selected.facts
    single = [each.paths[0] for each in swaps if each.norm is Norm.GROUP and 1 < each.groups == each.channels]
    alone = [
        f"{path}: as many groups as channels, so each channel is normalised by itself, as InstanceNorm does"
        for path in single
    ]
    exact = all(each.norm in (Norm.SYNC, Norm.BATCH) and not wants_data(model, each) for each in swaps)
    return Plan(
        "swap",
        tuple(Edit(site_of(path, facts[path])) for path in facts if path not in left),
        tuple(Refusal(site_of(path, facts[path]), *why) for path, why in left.items()),
        fingerprint(model),
        notes=(*alone, *notes),
        promise=Promise.SAME if exact else Promise.NEW,
        switches=tuple(switches.values()),
        swaps=tuple(swaps),
        standardized=tuple(convs),
    )


def _standardized(
    model: nn.Module, swaps: Sequence[Swap], here: Mapping[str, Coming]
) -> tuple[tuple[Standardization, ...], tuple[str, ...]]:
    """The convolutions in front of new norms, and why some of them are left as they are."""
    convs: dict[str, Standardization] = {}
    notes = []
    for swap in swaps:
        came = here[swap.paths[0]].convs if swap.paths[0] in here else set()
        if not came:
            notes.append(
                f"{swap.paths[0]}: no convolution right in front of it was seen, so none is standardised"
            )
        for path in sorted(came - convs.keys()):
            if why := why_not(model.get_submodule(path)):
                notes.append(f"{path}: it is not standardised: {why}")
            else:
                convs[path] = Standardization(path, EPS)
    return tuple(convs.values()), tuple(notes)


def _trial(model: nn.Module, inputs: Any, data: Passes | None) -> Trial | None:
    """What to run both models on: what is given, else some of the data, else what can be guessed."""
    if inputs is None and data is not None:
        return data.few()
    try:
        example = guess(model) if inputs is None else Example.of(inputs, model)
    except CaptureError:
        return None  # then nothing is measured, and the report says so
    return Trial(f"{example} ({example.origin})", lambda each: example.fresh()(each))

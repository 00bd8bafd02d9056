"""The way through the house for a captured program: siblings first, then what folds as in any model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from bntools.core.axes import Axes
from bntools.core.calls import Capture
from bntools.core.capture import capture
from bntools.core.compute import fold_tensors
from bntools.core.exact import copied, exact_copy, release_
from bntools.core.example import Example
from bntools.core.graft import bypass_, graft_
from bntools.core.host import Host
from bntools.core.merge import can_merge, merge_, without_
from bntools.core.names import named_tensors
from bntools.core.numbers import Seen
from bntools.core.observe import difference, observe, types_of
from bntools.core.onnxmodel import origin_of
from bntools.core.operator import Operator
from bntools.core.plan import Edit, Plan, Refusal, Side
from bntools.core.planning import plan_of
from bntools.core.program import atomised, exported
from bntools.core.proof import Procedure, prove
from bntools.core.reasons import Reason
from bntools.core.siblings import Sibling, find_siblings
from bntools.core.sites import BatchNorm, find_sites
from bntools.core.spelt import written_plainly
from bntools.core.surgery import Surgery
from bntools.core.verify import TOLERANCE, UNASKED, UNCHANGED, Report, Verdict
from bntools.errors import PromiseError

_BATCH = Axes()
_NOWHERE = "the exported program has no BatchNorm for it"


@dataclass(frozen=True, slots=True)
class _Work:
    """What is to be done to a program.

    Args:
        first: a capture of the program.
        siblings: what is merged before all else.
        plan: made for the program after that.
        whole: the plan for the program as it was.
    """

    first: Capture
    siblings: tuple[Sibling, ...]
    plan: Plan
    whole: Plan

    def make(self, program: nn.Module) -> Mapping[str, Tensor]:
        """Do it, with numbers of the program's own dtype."""
        assert isinstance(program, fx.GraphModule)
        merge_(program, self.siblings, self.first)
        merged = {s.host.owner for s in self.siblings}
        tensors, _ = fold_tensors(program, self.plan)
        graft_(program, self.plan, tensors)
        return {
            key: t.detach()
            for key, t in named_tensors(program)
            if key in tensors or key.rpartition(".")[0] in merged
        }

    def forget(self, program: nn.Module) -> None:
        """Take the BatchNorms out, and do nothing else."""
        assert isinstance(program, fx.GraphModule)
        without_(program, [site for s in self.siblings for site in s.sites])
        bypass_(program, self.plan)


def fold_program(
    model: nn.Module,
    example: Example,
    *,
    axes: Axes = _BATCH,
    verify: bool = True,
    progress: Callable[[str], None] = lambda step: None,
) -> Surgery[Report]:
    """Fold the BatchNorms of a model's captured program.

    There siblings become one layer, no layer is shared, and no module of the user's is in the way. The result
    is a graph module with the calling convention of the model.

    Args:
        model: is left alone.
        example: what to capture and prove it on.
        axes: those that stay open.
        verify: measure, with the model itself as the reference.
        progress: told the name of each step.

    Raises:
        CaptureError: if the model does not run, or ``torch.export`` refuses it.
        PromiseError: if the folded program does not compute what the model computes.
    """
    progress("capturing")
    seen = capture(model, example)
    program, work = _work_on(model, seen, example, axes, progress)
    if verify and origin_of(model) is None:
        progress("comparing the program with the model")
        _check_export(model, program, example)
    if not work.whole.edits:
        return Surgery(program, work.whole, UNCHANGED, example, axes)
    proof = (
        prove(program, Procedure(work.whole, _seen(work), work.make, work.forget), example, progress)
        if verify
        else None
    )
    progress("folding")
    wide = exact_copy(program)
    work.make(wide)
    work.make(program)
    exact = dict(named_tensors(wide))
    with torch.no_grad():  # what took in several maps is rounded once, too
        for key, tensor in named_tensors(program):
            tensor.copy_(exact[key])
    release_(wide)
    if proof is None:
        return Surgery(program, work.whole, UNASKED, example, axes)
    progress("running the folded program")
    report = proof.judge(program)
    if report.verdict is Verdict.FAILED:
        raise PromiseError(
            f"the folded program does not compute what the model computes: {report.why}",
            todo="nothing was changed",
            report=report,
        )
    return Surgery(program, work.whole, report, example, axes)


def plan_program(model: nn.Module, seen: Capture, example: Example, axes: Axes = _BATCH) -> Plan:
    """The plan of `fold_program`, without carrying it out; errors as for that.

    Args:
        model, seen: the model, and one run of it on *example*.
        example, axes: as for `fold_program`.
    """
    return _work_on(model, seen, example, axes, lambda step: None)[1].whole


def _work_on(
    model: nn.Module, seen: Capture, example: Example, axes: Axes, progress: Callable[[str], None]
) -> tuple[fx.GraphModule, _Work]:
    """The program of a model, and what is to be done to it."""
    origin = origin_of(model)
    if origin is None:
        progress("exporting")
        program = atomised(exported(written_plainly(model, seen), example, axes))
        progress("looking")
        return program, _planned(seen, program, example, _unanswered(seen, program))
    twin = copied(model)  # it is a program already
    assert isinstance(twin, fx.GraphModule)
    progress("looking")
    work = _planned(seen, twin, example, (*find_sites(seen)[1], *origin.refusals))
    notes = (*origin.source.notes, *work.whole.notes)
    return twin, replace(work, whole=replace(work.whole, notes=notes))


def _planned(
    seen: Capture, program: fx.GraphModule, example: Example, unanswered: tuple[Refusal, ...]
) -> _Work:
    first = capture(program, example)
    sites = {bn.call.index: bn for bn in find_sites(first)[0]}
    makers = {value.id: call for call in first.calls for value in call.outputs}
    able = {index: bn.call for index, bn in sites.items() if bn.refusal is None}
    siblings = tuple(s for s in find_siblings(first, able) if can_merge(s, makers))
    changed = copied(program)
    assert isinstance(changed, fx.GraphModule)
    merge_(changed, siblings, first)
    plan, _ = plan_of(changed, capture(changed, example), watch=[s.total.owner for s in siblings])
    release_(changed)
    known = {bn.site.name: bn.site for bn in sites.values()}
    edits = [replace(edit, site=known[edit.site.name]) for edit in plan.edits]
    refusals = [replace(refusal, site=known[refusal.site.name]) for refusal in plan.refusals]
    for sibling in siblings:
        for call in sibling.sites:
            bn = sites[call.index]
            edits.append(Edit(bn.site, Side.SIBLING, (sibling.host.owner,), (sibling.total.op,), bn.paths))
    whole = replace(
        plan,
        edits=tuple(sorted(edits, key=lambda edit: edit.site.at or 0)),
        refusals=(*sorted(refusals, key=lambda refusal: refusal.site.at or 0), *unanswered),
        hosts=_hosts(plan, siblings, sites),
        fingerprint=seen.fingerprint,
    )
    return _Work(first, siblings, plan, whole)


def _hosts(plan: Plan, siblings: tuple[Sibling, ...], sites: Mapping[int, BatchNorm]) -> tuple[Host, ...]:
    """The layers of a plan, with what their siblings bring."""
    hosts = {host.path: host for host in plan.hosts}
    for sibling in siblings:
        path, op = sibling.host.owner, sibling.host.op
        own = hosts.get(path) or Host(path, op, "rows", weight=(f"{path}.weight",), bias=(f"{path}.bias",))
        brought = tuple(sites[call.index].site.name for call in sibling.sites)
        hosts[path] = replace(own, rows=(*brought, *own.rows))
    return tuple(hosts.values())


def _seen(work: _Work) -> dict[str, Seen]:
    """What must stand where: behind each BatchNorm, or behind the sum in which it went."""
    maps = work.plan.maps
    assert maps is not None
    seen = {edit.site.name: maps.seen[edit.site.name] for edit in work.plan.edits}
    names = {edit.site.at: edit.site.name for edit in work.whole.edits}
    for sibling in work.siblings:
        seen.update({names[call.index]: maps.seen[sibling.total.owner] for call in sibling.sites})
    return {edit.site.name: seen[edit.site.name] for edit in work.whole.edits}


def _unanswered(seen: Capture, program: fx.GraphModule) -> tuple[Refusal, ...]:
    """The modules that normalise and have no site in the program."""
    read = {m.keys.get("running_mean", "") for m in program.modules() if isinstance(m, Operator)}
    answered = {key.rpartition(".")[0] for key in read}
    sites, unanswered = find_sites(seen)
    own = [*(bn.refusal or Refusal(bn.site, Reason.UNRECOGNISED, _NOWHERE) for bn in sites), *unanswered]
    # A module that has several paths is known in the program by the first.
    missing = {
        refusal.site.module: refusal
        for refusal in own
        if refusal.site.module is not None and not answered & set(seen.facts[refusal.site.module].paths)
    }
    return tuple(missing.values())


def _check_export(model: nn.Module, program: fx.GraphModule, example: Example) -> None:
    """The program is what is folded; the model is what it must compute."""
    runs = []
    for each in (model, program):
        twin = exact_copy(each)
        runs.append(observe(twin, example))
        release_(twin)
    reference, other = runs
    error = difference(other.outputs, reference.outputs)
    own = [types_of([observe(m, example, double=False)]) for m in (model, program)]
    if error > TOLERANCE or own[0] != own[1]:
        why = f"the exported program differs from the model by {error:.1e} of the scale in float64"
        if own[0] != own[1]:
            why = f"the model returns {own[0]}, the exported program {own[1]}"
        report = Report(Verdict.FAILED, error=error, why=why)
        raise PromiseError(f"torch.export: {why}", todo="fold the module: -o model.pt", report=report)

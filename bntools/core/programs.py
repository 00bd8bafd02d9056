"""The way through the house for a captured program: siblings first, then what folds as in any model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from bntools.core.calls import Capture
from bntools.core.capture import capture, fingerprint, module_sites
from bntools.core.compute import fold_tensors
from bntools.core.exact import copied, exact_copy
from bntools.core.example import Example
from bntools.core.graft import bypass_, graft_
from bntools.core.merge import can_merge, merge_, without_
from bntools.core.names import tensors_of
from bntools.core.numbers import Seen
from bntools.core.observe import difference, observe
from bntools.core.operator import Operator
from bntools.core.plan import Edit, Host, Plan, Refusal, Side
from bntools.core.planning import plan_of
from bntools.core.program import atomised, exported
from bntools.core.proof import Change, prove
from bntools.core.reasons import Reason
from bntools.core.siblings import Sibling, find_siblings
from bntools.core.sites import BatchNorm, find_sites
from bntools.core.surgery import Surgery
from bntools.core.verify import TOLERANCE, Report, Verdict
from bntools.errors import PromiseError


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
            for key, t in tensors_of(program)
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
    verify: bool = True,
    progress: Callable[[str], None] = lambda step: None,
) -> Surgery:
    """Fold the BatchNorms of a model's captured program.

    There siblings become one layer, no layer is shared, and no module of the user's is in the way. The result
    is a graph module with the calling convention of the model.

    Args:
        model: is left alone.
        example: what to capture and prove it on.
        verify: measure, with the model itself as the reference.
        progress: told the name of each step.

    Raises:
        CaptureError: if ``torch.export`` refuses the model.
        PromiseError: if the folded program does not compute what the model computes.
    """
    progress("exporting")
    program = atomised(exported(model, example))
    progress("looking")
    work = _planned(model, program, example)
    if verify:
        progress("comparing the program with the model")
        _check_export(model, program, example)
    if not work.whole.edits:
        return Surgery(program, work.whole, Report(Verdict.SKIPPED, why="nothing was changed"), example)
    proof = (
        prove(program, Change(work.whole, _seen(work), work.make, work.forget), example, progress)
        if verify
        else None
    )
    progress("folding")
    wide = exact_copy(program)
    work.make(wide)
    work.make(program)
    exact = dict(tensors_of(wide))
    with torch.no_grad():  # what took in several maps is rounded once, too
        for key, tensor in tensors_of(program):
            tensor.copy_(exact[key])
    if proof is None:
        report = Report(Verdict.SKIPPED, why="verification was switched off")
        return Surgery(program, work.whole, report, example)
    progress("running the folded program")
    report = proof.judge(program)
    if report.verdict is Verdict.FAILED:
        raise PromiseError(
            f"the folded program does not compute what the model computes: {report.why}",
            todo="nothing was changed",
            report=report,
        )
    return Surgery(program, work.whole, report, example)


def _planned(model: nn.Module, program: fx.GraphModule, example: Example) -> _Work:
    first = capture(program, example)
    sites = {bn.call.index: bn for bn in find_sites(first)[0]}
    makers = {value.id: call for call in first.calls for value in call.outputs}
    able = {index: bn.call for index, bn in sites.items() if bn.refusal is None}
    siblings = tuple(s for s in find_siblings(first, able) if can_merge(s, makers))
    changed = copied(program)
    assert isinstance(changed, fx.GraphModule)
    merge_(changed, siblings, first)
    plan, _ = plan_of(changed, capture(changed, example), watch=[s.total.owner for s in siblings])
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
        refusals=(*sorted(refusals, key=lambda refusal: refusal.site.at or 0), *_unreached(model, program)),
        hosts=_hosts(plan, siblings, sites),
        fingerprint=fingerprint(model),
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


def _unreached(model: nn.Module, program: fx.GraphModule) -> tuple[Refusal, ...]:
    """The modules with statistics that the program does not read."""
    read = {m.keys.get("running_mean", "") for m in program.modules() if isinstance(m, Operator)}
    reached = {key.rpartition(".")[0] for key in read}
    sites = (site for site in module_sites(model) if site.name not in reached)
    return tuple(Refusal(site, Reason.UNREACHED, "no call reached it on these inputs") for site in sites)


def _check_export(model: nn.Module, program: fx.GraphModule, example: Example) -> None:
    """The program is what is folded; the model is what it must compute."""
    reference, other = observe(exact_copy(model), example), observe(exact_copy(program), example)
    error = difference(other.outputs, reference.outputs)
    if error > TOLERANCE:
        why = f"the exported program differs from the model by {error:.1e} of the scale in float64"
        report = Report(Verdict.FAILED, error=error, why=why)
        raise PromiseError(f"torch.export: {why}", todo="fold the module: -o model.pt", report=report)

"""Find the BatchNorms in a capture: every call of one, and every one that no call reached."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from bntools.core.affine import ACTIVATIONS
from bntools.core.calls import BY_BATCH, Call, Capture, ModuleCall, ModuleFacts, Stored, Value
from bntools.core.changes import Part
from bntools.core.keys import key_of
from bntools.core.plan import Plan, Refusal, Site
from bntools.core.reasons import Reason


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """A site with its call: what `bntools.core.find` works on.

    Args:
        site: how it is named in a plan.
        call: the operator.
        paths: of the module that owns the call, all of them; none if it has no module.
        keeps: what that module does behind the operator.
        refusal: why it cannot be folded whatever stands around it, or None.
        module: the call of that module, None if it has none.
    """

    site: Site
    call: Call
    paths: tuple[str, ...] = ()
    keeps: tuple[Part, ...] = ()
    refusal: Refusal | None = None
    module: ModuleCall | None = None

    @property
    def returned(self) -> Value:
        """What its module returned."""
        return (
            self.module.outputs[0]
            if self.module is not None and self.module.outputs
            else self.call.outputs[0]
        )

    @property
    def slots(self) -> tuple[Stored | Value | None, ...]:
        """Its γ, β, μ and σ²."""
        return tuple(self.call.args.get(n) for n in ("weight", "bias", "running_mean", "running_var"))

    @property
    def tensors(self) -> list[Stored]:
        """Those of them that it has."""
        return [t for t in self.slots if isinstance(t, Stored)]


def find_sites(capture: Capture) -> tuple[tuple[BatchNorm, ...], tuple[Refusal, ...]]:
    """All sites of a capture, in order of execution, and the refusals of modules that no call reached."""
    names: Counter[str] = Counter()
    index = _Index(capture)
    calls = [c for c in capture.calls if c.op in BY_BATCH and not _is_no_site(c, capture)]
    found = tuple(_site(call, capture, names, index) for call in calls)
    return found, _unanswered(capture, found)


def find_staying(capture: Capture, plan: Plan) -> list[BatchNorm]:
    """The BatchNorms that a plan refuses for what stands around them, and that a module could stand for."""
    refused = {refusal.site.name for refusal in plan.refusals}
    found, _ = find_sites(capture)
    able = [bn for bn in found if bn.site.name in refused and bn.refusal is None]
    return [bn for bn in able if bn.paths and all(bn.paths)]  # without a path, it is the model itself


def site_of(path: str, facts: ModuleFacts, at: int | None = None) -> Site:
    """The site of a module that is no call of a capture.

    Args:
        path: its first path.
        facts: what is known of it.
        at: its place in the order of execution, if that is known.
    """
    return Site(path, path, facts.kind, facts.channels, facts.eps, facts.momentum, facts.batches, at)


class _Index:
    """Calls by their place, module calls by path and by the path of their parent."""

    def __init__(self, capture: Capture) -> None:
        self.calls = {c.index: c for c in capture.calls}
        self.modules: dict[str, list[ModuleCall]] = defaultdict(list)
        self.children: dict[str | None, list[ModuleCall]] = defaultdict(list)
        for module in capture.modules:
            self.modules[module.path].append(module)
            self.children[_parent(module.path)].append(module)


def _is_no_site(call: Call, capture: Capture) -> bool:
    x, mean = call.args["input"], call.args["running_mean"]
    facts = capture.facts.get(call.owner)
    if call.op == "instance_norm":  # by a sample's own statistics it is no BatchNorm
        return bool(call.args["use_input_stats"]) or mean is None
    # A weight-standardised convolution normalises its weight by the operator's batch statistics.
    return mean is None and x.memory not in capture.varying and not (facts and facts.batchnorm)


def _site(call: Call, capture: Capture, names: Counter[str], index: _Index) -> BatchNorm:
    mean = call.args["running_mean"]
    facts = capture.facts.get(call.owner)
    own = facts is not None and (
        any(k == key_of(p, "running_mean") for k in getattr(mean, "keys", ()) for p in facts.paths)
        or (mean is None and facts.batchnorm)
    )
    path = call.owner if own else None
    stem = path if path is not None else f"{call.owner or 'model'}:{call.op}"
    names[stem] += 1
    site = Site(
        name=stem if names[stem] == 1 else f"{stem}#{names[stem]}",
        module=path,
        kind=facts.kind if facts and own else call.op,
        channels=call.args["input"].shape[1] if len(call.args["input"].shape) > 1 else 0,
        eps=float(call.args["eps"]),
        momentum=facts.momentum if facts and own else None,
        batches=facts.batches if facts and own else None,
        at=call.index,
    )
    keeps: tuple[Part, ...] = ()
    refusal = _unfit(site, call, capture)
    module = (
        next((m for m in index.modules[call.owner] if m.start <= call.index < m.end), None) if own else None
    )
    if refusal is None and path is not None:
        kept = _keeps(call, module, index)
        keeps = kept if isinstance(kept, tuple) else ()
        refusal = Refusal(site, Reason.SUBCLASS, kept) if isinstance(kept, str) else None
    return BatchNorm(site, call, facts.paths if facts and own else (), keeps, refusal, module)


def _unfit(site: Site, call: Call, capture: Capture) -> Refusal | None:
    """Why the call could not be folded into anything."""
    if call.args["running_mean"] is None or call.args["running_var"] is None:
        return Refusal(site, Reason.NO_STATISTICS, "it has no running statistics")
    if call.args[BY_BATCH[call.op]]:
        return Refusal(site, Reason.TRAINING, "it ran in training mode")
    came, left = call.args["input"].dtype, call.outputs[0].dtype
    if came != left:
        return Refusal(site, Reason.UNSUPPORTED_TYPE, f"it turns {came} into {left}")
    tensors = [call.args[n] for n in ("weight", "bias", "running_mean", "running_var")]
    if any(isinstance(t, Value) for t in tensors):
        return Refusal(site, Reason.COMPUTED_WEIGHT, "its parameters are computed at every call")
    for tensor in tensors:
        for key in getattr(tensor, "keys", ()):
            if key in capture.unsound:
                return Refusal(site, Reason.BAD_STATISTICS, f"{key} {capture.unsound[key]}")
    owner = capture.facts.get(call.owner)
    if owner is not None and owner.compiled:
        return Refusal(site, Reason.COMPILED, f"{call.owner or 'the model'} is TorchScript")
    if site.module is None:
        return Refusal(
            site, Reason.NO_MODULE, f"the operator is called in {call.owner or 'the model'} itself"
        )
    facts = capture.facts[site.module]
    if facts.hooks:
        return Refusal(site, Reason.HOOKED, f"{site.module} has {' and '.join(facts.hooks)}")
    return None


def _keeps(call: Call, module: ModuleCall | None, known: _Index) -> tuple[Part, ...] | str:
    """What the module does behind its BatchNorm, as parts in a row; a sentence if it is no row."""
    if module is None or len(module.outputs) != 1:
        return "its module returns something else than one tensor"
    if not module.plain:
        return "it is called with something else than one positional argument"
    if len(module.inputs) != 1 or module.inputs[0].id != call.args["input"].id:
        return "its module changes the input before it normalises"
    parts: list[Part] = []
    now, index = call.outputs[0], call.index + 1
    children = [m for m in known.children[module.path] if module.start <= m.start and m.end <= module.end]
    while now.id != module.outputs[0].id or index < module.end:
        child = next(
            (m for m in children if m.start == index and m.inputs == (now,) and len(m.outputs) == 1), None
        )
        step = known.calls.get(index) if index < module.end else None
        if child is not None:
            children.remove(child)
            name = child.path.rpartition(".")[2]
            if name in {part.name for part in parts} or hasattr(nn.Sequential, name):
                return (
                    f"{child.path} is called twice, or has a name that its place in a Sequential cannot have"
                )
            if child.outputs != child.inputs:  # else it is an Identity
                parts.append(Part(name))
            now, index = child.outputs[0], child.end
        elif (
            step is not None
            and step.owner == module.path
            and step.op in ACTIVATIONS
            and _reads_only(step, now)
        ):
            name, args = ACTIVATIONS[step.op]
            now, index = step.outputs[0], index + 1
            parts.append(Part(f"act{len(parts)}", name, tuple(step.args[a] for a in args)))
        else:
            return f"{module.path} also runs {step.op if step else 'something else'} behind it"
    if parts and not module.path:
        return "it is the model itself, in whose place nothing can be put"
    return tuple(parts)


def _reads_only(call: Call, value: Value) -> bool:
    return [r for r in call.reads() if isinstance(r, Value)] == [value] == [call.args["self"]]


def _unanswered(capture: Capture, found: Sequence[BatchNorm]) -> tuple[Refusal, ...]:
    """Modules that normalise and have no site: not reached, or computing in a way of their own."""
    answered = {bn.site.module for bn in found}
    answered.update(c.owner for c in capture.calls if c.op == "instance_norm")
    # A BatchNorm may be read by another module's functional call.
    read = {k for bn in found for k in getattr(bn.call.args["running_mean"], "keys", ())}
    called = {m.path for m in capture.modules}
    refusals = []
    for path, facts in capture.facts.items():
        if (
            not (facts.statistics or facts.batchnorm)
            or path in answered
            or key_of(path, "running_mean") in read
        ):
            continue
        site = site_of(path, facts)
        if path not in called:
            refusals.append(Refusal(site, Reason.UNREACHED, "no call reached it on these inputs"))
        else:
            refusals.append(
                Refusal(site, Reason.UNRECOGNISED, f"{facts.kind} normalises in a way of its own")
            )
    return tuple(refusals)


def _parent(path: str) -> str | None:
    return path.rpartition(".")[0] if path else None

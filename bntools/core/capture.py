"""A model and an example input become a plain description of the computation.

The model runs once on the example, and every operator is written down below autograd, where
``conv2d``, ``linear`` and ``batch_norm`` still are one operator each. The run is a real one, so control
flow on data is no obstacle, tensors are joined to parameters by identity and views to their memory by
fact. docs/decisions/001 says why this is not ``torch.export``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from bntools.core.calls import Call, Capture
from bntools.core.example import Example
from bntools.core.facts import facts_of, hooks_see, unsound_tensors
from bntools.core.leaves import held_besides
from bntools.core.lift import lift
from bntools.core.maps import factors_of, norms_of
from bntools.core.names import modules_of, named_tensors
from bntools.core.plan import Site
from bntools.core.sites import site_of
from bntools.core.trace import Trace
from bntools.core.untouched import untouched
from bntools.errors import CaptureError, UsageError, in_a_line


def capture(model: nn.Module, example: Example) -> Capture:
    """Run *model* once on *example*, in its own mode, and write down what it computed.

    Args:
        model: any eager module; it is as it was afterwards.
        example: the arguments of the forward.

    Returns:
        the operators in order of execution, joined to the modules and tensors of the model.

    Raises:
        CaptureError: if the model does not run on the example.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
        >>> [call.op for call in capture(net, Example((torch.ones(1, 1, 5, 5),))).calls]
        ['conv2d', 'batch_norm']
    """
    try:
        trace = _run(model, example, sliced=True)
        if trace.memories.straddled:
            trace = _run(model, example, sliced=False)
    except CaptureError:  # of a program that says itself what it does not understand
        raise
    except Exception as error:
        raise CaptureError(
            f"the model does not run on {example} ({example.origin}): {in_a_line(error)}",
            todo="give inputs that it runs on (--input 2x3x224x224, or --inputs file.npz)",
        ) from error
    modules = tuple(sorted(trace.modules, key=lambda m: (m.start, -m.end)))
    facts = facts_of(model, modules, trace.calls)
    statistics = {path for path, f in facts.items() if f.statistics}
    held = held_besides(model)
    calls, tensors = lift(trace.calls, modules, statistics), dict(named_tensors(model))
    return Capture(
        calls=calls,
        modules=modules,
        facts=facts,
        varying=frozenset(trace.varying),
        outside={memory: tuple(who) for memory, who in trace.outside.items()},
        unsound=unsound_tensors(model),
        held={name: held[id(each)] for name, each in _named(model) if id(each) in held},
        norms=norms_of(calls, tensors),
        numbers=factors_of(calls, tensors),
        fingerprint=fingerprint(model),
        notes=_notes(trace),
        spelt=_normalising(calls) - _normalising(trace.calls),
    )


def _normalising(calls: Sequence[Call]) -> frozenset[str]:
    return frozenset(call.owner for call in calls if call.op == "batch_norm")


def _run(model: nn.Module, example: Example, *, sliced: bool) -> Trace:
    trace, call = Trace(model, hooks_see, sliced=sliced), example.fresh()
    with untouched(model):
        trace.run(model, call, call.tensors)
    return trace


def fingerprint(model: nn.Module) -> str:
    """A hash of the names and shapes of a model's tensors, not of their values.

    Equal for two instances of one architecture, whatever their weights, so that a plan made on a trained
    model fits a fresh one.
    """
    lines = sorted(f"{key} {list(t.shape)}" for key, t in named_tensors(model, persistent=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def check_eager(model: nn.Module) -> None:
    """Refuse what is no eager module, and say what to give instead.

    Raises:
        UsageError: for TorchScript, compiled models, exported programs and things that are no model.
    """
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise UsageError(
            f"expected an eager module, got TorchScript ({kind})", todo="give the module it was made of"
        )
    if isinstance(model, torch.export.ExportedProgram):
        raise UsageError(
            "expected an eager module, got an exported program", todo="give the module it was made of"
        )
    if not isinstance(model, nn.Module):
        raise UsageError(f"expected a torch.nn.Module, got {kind}")
    if isinstance(getattr(model, "_orig_mod", None), nn.Module):
        raise UsageError(
            "expected an eager module, got a compiled one", todo="give model._orig_mod, compile the result"
        )
    for key, tensor in named_tensors(model):
        if is_lazy(tensor):
            raise UsageError(
                f"{key} has no shape yet", todo="run the model once, so that lazy layers are made"
            )
        if tensor.is_meta:
            raise UsageError(f"{key} is on the meta device and has no values", todo="load the weights first")


def module_sites(model: nn.Module) -> tuple[Site, ...]:
    """A site for every module that is a BatchNorm or holds running statistics, without a run."""
    return tuple(
        site_of(path, facts) for path, facts in facts_of(model).items() if facts.statistics or facts.batchnorm
    )


def _named(model: nn.Module) -> Iterator[tuple[str, object]]:
    yield from modules_of(model)
    yield from named_tensors(model)


def _notes(trace: Trace) -> tuple[str, ...]:
    if not trace.branches:
        return ()
    where = sorted({owner or "the model" for owner in trace.branches})
    return (
        f"control flow may depend on data (in {', '.join(where)}): only the path of these inputs was seen",
    )

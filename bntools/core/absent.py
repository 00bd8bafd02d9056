"""Whether a module would use a parameter that it has not got: a bias of None, a norm without a weight."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from bntools.core.affine import HOSTS
from bntools.core.calls import Call, ModuleCall, Stored
from bntools.core.names import named_tensors
from bntools.core.operator import Operator
from bntools.core.trace import Trace
from bntools.core.untouched import untouched


def accepted(module: nn.Module, runs: Sequence[ModuleCall], calls: Sequence[Call]) -> frozenset[str]:
    """The names of absent parameters that the module's forward would hand to its operator if they were there.

    What torch's own layers have, they use. Another forward is tried out: it may mention a bias and add it
    somewhere else.

    Args:
        module: the one in question.
        runs: its calls in a capture.
        calls: all operators of that capture.
    """
    absent = [name for name, tensor in module._parameters.items() if tensor is None]
    if not absent or "forward" in vars(module) or isinstance(module, torch.jit.ScriptModule):
        return frozenset()
    if is_torchs(module) or isinstance(module, Operator):
        return frozenset(absent)
    return frozenset(name for name in absent if any(_uses(module, name, run, calls) for run in runs[:1]))


def is_torchs(module: nn.Module) -> bool:
    """Whether the forward that runs is one of torch's layers'."""
    if isinstance(module, torch.jit.ScriptModule) or "forward" in vars(module):
        return False
    return (getattr(type(module).forward, "__module__", None) or "").startswith("torch.nn.modules.")


def _uses(module: nn.Module, name: str, run: ModuleCall, calls: Sequence[Call]) -> bool:
    """Run the module by itself with a parameter of zeros, and see who reads that."""
    if module._forward_hooks or module._forward_pre_hooks:
        return False  # they may be somebody's, who counts the calls
    host = next((c for c in calls[run.start : run.end] if c.op in HOSTS and c.owner == run.path), None)
    spec = HOSTS[host.op](host) if host is not None else None
    if host is None or spec is None or len(run.inputs) != 1 or not run.plain:
        return False
    (value,) = run.inputs
    like = next((t for _, t in named_tensors(module) if t.is_floating_point()), torch.empty(0))
    zeros = torch.zeros(host.outputs[0].shape[spec.axis], dtype=like.dtype, device=like.device)
    twin = copy.copy(module)
    twin._parameters = {**module._parameters, name: nn.Parameter(zeros)}
    trace = Trace(twin, lambda _: frozenset())
    try:
        example = torch.zeros(value.shape, dtype=getattr(torch, value.dtype), device=like.device)
        with untouched(twin):
            trace.run(twin, lambda model: model(example), [example])
    except Exception:
        return False
    readers = [c for c in trace.calls if any(isinstance(r, Stored) and name in r.keys for r in c.reads())]
    slot = readers[0].args.get(name) if len(readers) == 1 else None
    return isinstance(slot, Stored) and name in slot.keys and readers[0].op == host.op

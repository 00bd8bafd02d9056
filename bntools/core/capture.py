"""A model and an example input become a plain description of the computation.

The model runs once on the example, and every operator is written down below autograd, where
``conv2d``, ``linear`` and ``batch_norm`` still are one operator each. The run is a real one, so control
flow on data is no obstacle, tensors are joined to parameters by identity and views to their memory by
fact. docs/decisions/001 says why this is not ``torch.export``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from bntools.core.calls import Capture, ModuleFacts
from bntools.core.example import Example
from bntools.core.leaves import held_besides
from bntools.core.lift import lift
from bntools.core.plan import Site
from bntools.core.trace import Trace
from bntools.core.untouched import untouched
from bntools.errors import CaptureError, UsageError

_HOOKS = {
    "_forward_pre_hooks": "a forward pre-hook",
    "_forward_hooks": "a forward hook",
    "_backward_hooks": "a backward hook",
    "_backward_pre_hooks": "a backward pre-hook",
    "_state_dict_hooks": "a state-dict hook",
    "_load_state_dict_pre_hooks": "a load-state-dict hook",
}


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
    except Exception as error:
        raise CaptureError(
            f"the model does not run on {example} ({example.origin}): "
            f"{type(error).__name__}: {first_line(error)}",
            todo="give inputs that it runs on (--input 2x3x224x224, or --inputs file.npz)",
        ) from error
    facts = {paths[0]: _facts(module, paths) for module, paths in _paths(model)}
    statistics = {path for path, f in facts.items() if f.statistics}
    held = held_besides(model)
    modules = tuple(sorted(trace.modules, key=lambda m: (m.start, -m.end)))
    return Capture(
        calls=lift(trace.calls, modules, statistics),
        modules=modules,
        facts=facts,
        varying=frozenset(trace.varying),
        outside={memory: tuple(who) for memory, who in trace.outside.items()},
        unsound=_unsound(model),
        held={name: held[i] for i, name in _named(model) if i in held},
        fingerprint=fingerprint(model),
        notes=_notes(trace),
    )


def _run(model: nn.Module, example: Example, *, sliced: bool) -> Trace:
    trace, call = Trace(model, _sees, sliced=sliced), example.fresh()
    with untouched(model):
        trace.run(model, call, call.tensors)
    return trace


def fingerprint(model: nn.Module) -> str:
    """A hash of the names and shapes of a model's tensors, not of their values.

    Equal for two instances of one architecture, whatever their weights, so that a plan made on a trained
    model fits a fresh one.
    """
    saved = model.state_dict(keep_vars=True)
    lines = sorted(f"{key} {list(t.shape)}" for key, t in saved.items() if isinstance(t, Tensor))
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
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise UsageError(
                f"{key} has no shape yet", todo="run the model once, so that lazy layers are made"
            )
        if tensor.is_meta:
            raise UsageError(f"{key} is on the meta device and has no values", todo="load the weights first")


def module_sites(model: nn.Module) -> tuple[Site, ...]:
    """A site for every module that is a BatchNorm or holds running statistics, without a run."""
    found = ((paths[0], _facts(module, paths)) for module, paths in _paths(model))
    return tuple(
        Site(path, path, f.kind, f.channels, f.eps, f.momentum, f.batches)
        for path, f in found
        if f.statistics or f.batchnorm
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's text, cut to a length that fits a screen."""
    text = str(error).strip().splitlines()
    return text[0][:200] if text else "no message"


def _paths(model: nn.Module) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
    paths: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(path)
        modules[id(module)] = module
    for key, module in modules.items():
        yield module, tuple(paths[key])


def _named(model: nn.Module) -> Iterator[tuple[int, str]]:
    """The ids of modules and tensors, each with all of its names."""
    for named in (model.named_modules, model.named_parameters, model.named_buffers):
        for name, each in named(remove_duplicate=False):
            yield id(each), name


def _facts(module: nn.Module, paths: tuple[str, ...]) -> ModuleFacts:
    mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    statistics = isinstance(mean, Tensor) and isinstance(var, Tensor)
    batchnorm = isinstance(module, _BatchNorm)
    normalises = statistics or batchnorm
    batches = getattr(module, "num_batches_tracked", None)
    momentum = getattr(module, "momentum", None)
    return ModuleFacts(
        paths=paths,
        kind=type(module).__name__,
        compiled=isinstance(module, torch.jit.ScriptModule),
        hooks=tuple(words for name, words in _HOOKS.items() if _registered(module, name)),
        parametrised=frozenset(_parametrised(module)),
        accepts=frozenset(n for n, p in module._parameters.items() if p is None and _mentions(module, n)),
        statistics=statistics,
        batchnorm=batchnorm,
        channels=mean.numel() if isinstance(mean, Tensor) else _number(module, "num_features"),
        eps=float(getattr(module, "eps", 0.0)) if normalises else 0.0,
        momentum=momentum if normalises and isinstance(momentum, float) else None,
        batches=int(batches) if isinstance(batches, Tensor) and batches.numel() == 1 else None,
    )


def _number(module: nn.Module, name: str) -> int:
    value = getattr(module, name, 0)
    return value if isinstance(value, int) else 0


def _registered(module: nn.Module, name: str) -> list[object]:
    """The hooks of one kind, without those by which torch computes a normalised weight."""
    hooks = getattr(module, name, None)
    if not hooks:
        return []
    ours = (WeightNorm, SpectralNorm)
    return [
        h
        for h in hooks.values()
        if not isinstance(h, ours) and not type(h).__name__.startswith("SpectralNorm")
    ]


def _parametrised(module: nn.Module) -> Iterator[str]:
    if parametrize.is_parametrized(module):
        yield from module.parametrizations  # type: ignore[misc]
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm | SpectralNorm):
            yield hook.name


def _mentions(module: nn.Module, name: str) -> bool:
    """Whether the forward that runs reads ``self.<name>``, as far as its code and its methods' tell."""
    if "forward" in vars(module):
        return False  # somebody has put another one on the instance
    seen, waiting = set(), ["forward"]
    while waiting:
        method = waiting.pop()
        for base in type(module).__mro__:
            code = getattr(vars(base).get(method), "__code__", None)
            if code is None:
                continue
            if name in code.co_names:
                return True
            seen.add(method)
            waiting += [n for n in code.co_names if n not in seen and hasattr(type(module), n)]
            if "super" not in code.co_names:
                break
    return False


def _sees(module: nn.Module) -> frozenset[str]:
    seen = set()
    if any(_registered(module, h) for h in ("_forward_pre_hooks", "_backward_pre_hooks")):
        seen.add("inputs")
    if any(_registered(module, h) for h in ("_forward_hooks", "_backward_hooks")):
        seen.update(("inputs", "outputs"))
    return frozenset(seen)


def _unsound(model: nn.Module) -> dict[str, str]:
    """Tensors beside running statistics that no number can come from."""
    found: list[tuple[str, str, Tensor]] = []
    for path, module in model.named_modules():
        var = getattr(module, "running_var", None)
        if not isinstance(var, Tensor):
            continue
        stem = f"{path}." if path else ""
        # The logarithm is finite where a normalisation is possible: above zero.
        above = var.detach() + float(getattr(module, "eps", 0.0))
        found.append((f"{stem}running_var", "is not positive", above.log()))
        for name in ("running_mean", "running_var", "weight", "bias"):
            tensor = getattr(module, name, None)
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                found.append((f"{stem}{name}", "is not finite", tensor.detach()))
    if _all_finite([tensor for _, _, tensor in found]):
        return {}
    return {key: why for key, why, tensor in found if not _all_finite([tensor])}


def _all_finite(tensors: list[Tensor]) -> bool:
    """Whether all are, with one look at each device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        wide = tensor if tensor.itemsize > 1 else tensor.float()  # float8 has no arithmetic
        by_device.setdefault(tensor.device, []).append(wide.flatten())
    return all(bool(torch.cat(parts).isfinite().all()) for parts in by_device.values())


def _notes(trace: Trace) -> tuple[str, ...]:
    if not trace.branches:
        return ()
    where = sorted({owner or "the model" for owner in trace.branches})
    return (
        f"control flow may depend on data (in {', '.join(where)}): only the path of these inputs was seen",
    )

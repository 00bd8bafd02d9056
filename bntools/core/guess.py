"""An example input where none is given: from timm's config, or by trying shapes until one fits."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)

from bntools.core.example import Example
from bntools.core.inputs import draw, type_and_device
from bntools.core.onnxinputs import declared
from bntools.core.quiet import quiet
from bntools.core.untouched import untouched
from bntools.errors import CaptureError, listed

_BATCH = 2
_LEAVES = 3  # the first layer that was made is not always the first that is called
_SIDES = (224, 32, 28, 64, 96, 128, 256, 8, 16, 299, 384, 512, 4, 1)
_LENGTHS = (128, 32, 1024, 64, 16, 8, 16000)
_VOLUMES = ((16, 112, 112), (8, 56, 56), (32, 32, 32), (16, 16, 16), (8, 8, 8), (64, 64, 64))
# What a fake tensor cannot tell: these shapes are tried once with numbers.
_UNDECIDED = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)


@dataclass(frozen=True, slots=True)
class _Shape:
    """One guess: a shape, and for whole numbers the first that is out of range."""

    sizes: tuple[int, ...]
    below: int | None = None

    def __str__(self) -> str:
        return "x".join(map(str, self.sizes))


def guess(model: nn.Module, seed: int = 0) -> Example:
    """Find an input that *model* runs on, by running shapes without numbers (fake tensors).

    The model is not run itself, but a copy that shares its tensors; it is left as it was.

    Args:
        model: any module.
        seed: what the values, normally distributed, are drawn from; the global random state is not used.

    Returns:
        An example of batch size 2, of the model's type and device; its origin is ``guessed``,
        ``timm's config`` or, for a program from an ONNX file, ``declared``.

    Raises:
        CaptureError: the model cannot be copied, or no shape fits.

    Example:
        >>> print(guess(nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))))
        2x5 float32
    """
    if (example := declared(model, seed) or configured(model, seed)) is not None:
        return example
    trial = _Trial.of(model)
    name = type(model).__name__
    if trial is None:
        raise CaptureError(f"{name}: no input is given, and it cannot be copied to try some", todo=_REMEDY)
    count = _required(model)
    shapes = list(dict.fromkeys(_shapes(model))) if count is not None else []
    with untouched(trial.model), quiet():  # torch logs what does not fit
        for shape in shapes:
            example = _example(model, [shape] * (count or 1), seed, "guessed")
            if trial.runs(example):
                return example
    if count is None:
        raise CaptureError(
            f"{name}: no input is given, and its forward needs keyword arguments", todo=_REMEDY
        )
    if not shapes:
        raise CaptureError(f"{name}: no input is given, and no layer of it tells a shape", todo=_REMEDY)
    tried = listed([*map(str, shapes)])
    several = f" for each of its {count} inputs" if (count or 1) > 1 else ""
    raise CaptureError(
        f"{name}: no input is given, and none of the guesses fits: {tried}{several}", todo=_REMEDY
    )


_REMEDY = "give the shape with --input 2x3x224x224 (once for each input), or values with --inputs file.npz"


def configured(model: nn.Module, seed: int = 0) -> Example | None:
    """The input that timm's config on *model* tells, if there is one and the model runs on it."""
    sizes = _configured_sizes(model)
    if sizes is None:
        return None
    example = _example(model, [_Shape((_BATCH, *sizes))], seed, "timm's config")
    trial = _Trial.of(model)
    if trial is None:
        return example
    with untouched(trial.model), quiet():
        return example if trial.runs(example) else None


def _configured_sizes(model: nn.Module) -> tuple[int, ...] | None:
    for name in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, name, None)
        sizes = config.get("input_size") if isinstance(config, dict) else getattr(config, "input_size", None)
        # A file may have put anything there.
        if not isinstance(sizes, tuple | list) or not all(type(s) is int and 0 < s <= 4096 for s in sizes):
            continue
        if len(sizes) == 3:
            first = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), sizes[0])
            return (first or sizes[0], *sizes[1:])  # in_chans=1 leaves the config as it was
    return None


def _example(model: nn.Module, shapes: Sequence[_Shape], seed: int, origin: str) -> Example:
    dtype, device = type_and_device(model)
    generator = torch.Generator().manual_seed(seed)
    tensors = [
        draw(s.sizes, dtype if s.below is None else torch.int64, device, generator, s.below or 2)
        for s in shapes
    ]
    return Example(tuple(tensors), origin=origin)


def _required(model: nn.Module) -> int | None:
    """How many tensors its forward needs; None if some of them go by name only."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return 1
    required = [
        p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if any(p.kind is p.KEYWORD_ONLY for p in required):
        return None
    return max(1, len(required))


def _shapes(model: nn.Module) -> Iterator[_Shape]:
    leaves = (leaf for leaf in model.modules() if not any(True for _ in leaf.children()))
    telling = (shapes for leaf in leaves if (shapes := list(_shapes_for(leaf))))
    for shapes in islice(telling, _LEAVES):
        yield from shapes


def _shapes_for(layer: nn.Module) -> Iterator[_Shape]:
    """The inputs that a layer, if it is the first, would take."""
    b = _BATCH
    match layer:
        case nn.ConvTranspose2d(in_channels=c) if c:
            yield from (_Shape((b, c, s, s)) for s in (1, 4, 7, 8, 16, 32, 64))
        case nn.Conv1d(in_channels=c) | nn.ConvTranspose1d(in_channels=c) if c:
            yield from (_Shape((b, c, s)) for s in _LENGTHS)
        case nn.Conv2d(in_channels=c) if c:
            # One channel is mostly MNIST; everything that shrinks it to one value also takes 224.
            sides = (28, *_SIDES) if c == 1 else _SIDES
            yield from (_Shape((b, c, s, s)) for s in sides)
        case nn.Conv3d(in_channels=c) | nn.ConvTranspose3d(in_channels=c) if c:
            yield from (_Shape((b, c, *v)) for v in _VOLUMES)
        case nn.Linear(in_features=f) if f:
            yield from (_Shape((b, f)), _Shape((b, 16, f)), _Shape((b, 7, 7, f)))
        case nn.Embedding(num_embeddings=n) | nn.EmbeddingBag(num_embeddings=n):
            yield from (_Shape((b, 16), n), _Shape((b, 1), n), _Shape((b,), n))
        case nn.BatchNorm1d(num_features=c) | nn.InstanceNorm1d(num_features=c) if c:
            yield from (_Shape((b, c)), *(_Shape((b, c, s)) for s in _LENGTHS))
        case nn.BatchNorm3d(num_features=c) | nn.InstanceNorm3d(num_features=c) if c:
            yield from (_Shape((b, c, *v)) for v in _VOLUMES)
        case nn.BatchNorm2d() | nn.SyncBatchNorm() | nn.InstanceNorm2d() | nn.GroupNorm():
            c = getattr(layer, "num_features", 0) or getattr(layer, "num_channels", 0)
            yield from (_Shape((b, c, s, s)) for s in _SIDES if c)
        case nn.LayerNorm(normalized_shape=sizes):
            yield from (_Shape((b, 16, *sizes)), _Shape((b, *sizes)))
        case nn.RNNBase(input_size=f):
            yield from (_Shape((b, 16, f)),)
        case nn.MultiheadAttention(embed_dim=f):
            yield from (_Shape((b, 16, f)),)
        case _:
            return


@dataclass(frozen=True, slots=True)
class _Trial:
    """A copy of a model to run: its modules are its own, its tensors are the model's."""

    model: nn.Module
    mode: Any

    @classmethod
    def of(cls, model: nn.Module) -> _Trial | None:
        tensors = [v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor)]
        shared = {id(t): t for t in (*model.parameters(), *model.buffers(), *tensors)}
        try:
            # A forward may keep tensors as attributes: here it keeps them on the copy.
            twin = copy.deepcopy(model, memo=dict(shared))
        except Exception:  # a module may hold anything, and anything may refuse to be copied
            return None
        for module in twin.modules():
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                # A user's hook may keep what it sees. Hooks that belong to a layer are objects with a class.
                for key in [
                    k for k, hook in hooks.items() if inspect.isroutine(hook) or isinstance(hook, partial)
                ]:
                    del hooks[key]
        return cls(twin.eval(), FakeTensorMode(allow_non_fake_inputs=True))

    def runs(self, example: Example) -> bool:
        for mode, call in ((self.mode, example.map(self.mode.from_tensor)), (nullcontext(), example)):
            try:
                with mode:
                    call(self.model)
            except _UNDECIDED:
                continue
            except Exception:  # a wrong shape fails in whatever way the layers fail
                return False
            return True
        return False

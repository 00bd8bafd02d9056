"""State dicts: which entry of a checkpoint is meant, and how it gets into a model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from bntools.core.keys import COUNTER, wrapper_of
from bntools.errors import SourceError, UnsafeError, UsageError

ENTRIES = ("state_dict", "model", "model_state_dict", "net")
EMA_ENTRIES = (
    "model_ema",
    "ema",
    "state_dict_ema",
    "ema_state_dict",
    "ema_model",
    "model_ema_state_dict",
    "ema_model_state_dict",
    "params_ema",
)
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Picked:
    """The entry of a checkpoint that is meant.

    Args:
        value: a module, or a dict of tensors.
        entry: its key, or None where the file holds nothing else.
        others: the other entries of the checkpoint, or None likewise.
        note: what else could have been meant, as a phrase for the report.
    """

    value: nn.Module | dict[str, Any]
    entry: str | None = None
    others: dict[str, Any] | None = field(default=None, repr=False)
    note: str = ""


def pick(where: str, value: Any, key: str | None = None, ema: bool = False) -> Picked:
    """Find the model or the weights in what a file holds.

    Args:
        where: the file, for messages.
        value: what was in it.
        key: the entry that the user asks for.
        ema: whether the moving average of the weights is meant.

    Raises:
        UsageError: both *key* and *ema* are given.
        SourceError: there is no such entry, or none that holds weights.
    """
    if key is not None and ema:
        raise UsageError("--key and --ema name two entries", todo="give one of them")
    if isinstance(value, nn.Module) or is_state(value):
        if key is not None or ema:
            flag = "--ema" if ema else f"--key {key}"
            raise SourceError(
                f"{where}: holds one model and no entries to choose from", todo=f"leave out {flag}"
            )
        return Picked(value if isinstance(value, nn.Module) else _ordered(value))
    if not isinstance(value, Mapping):
        raise SourceError(
            f"{where}: holds a {type(value).__name__}, not a model", todo="save the model or its weights"
        )
    usable = [k for k, v in value.items() if isinstance(k, str) and (isinstance(v, nn.Module) or is_state(v))]
    wanted = [key] if key is not None else [k for k in (EMA_ENTRIES if ema else ENTRIES) if k in usable]
    if not wanted or wanted[0] not in usable:
        raise SourceError(f"{where}: {_no_entry(value, key, ema)}", todo=_instead(usable, ema))
    entry = wanted[0]
    rest = [k for k in usable if k != entry]
    note = f"also there: {', '.join(map(_shown, rest))}; --key chooses" if rest and key is None else ""
    chosen = value[entry]
    others = {k: v for k, v in value.items() if k != entry}
    return Picked(chosen if isinstance(chosen, nn.Module) else _ordered(chosen), entry, others, note)


def is_state(value: Any) -> bool:
    """Whether *value* is a dict of tensors under names, as ``state_dict`` makes it.

    Example:
        >>> import torch
        >>> is_state({"weight": torch.ones(1)}), is_state({"epoch": 3}), is_state({})
        (True, False, False)
    """
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(
            isinstance(k, str) and (isinstance(v, Tensor) or k.endswith("_extra_state"))
            for k, v in value.items()
        )
    )


def _no_entry(value: Mapping[Any, Any], key: str | None, ema: bool) -> str:
    if key is not None and key in value:
        return f"its entry {_shown(key)} holds no weights but a {type(value[key]).__name__}"
    what = (
        f"there is no entry {_shown(key)}"
        if key
        else "there is no EMA entry"
        if ema
        else "no entry is known as weights"
    )
    there = [f"{_shown(k)} ({type(v).__name__})" for k, v in list(value.items())[:12]]
    more = f" and {len(value) - 12} more" if len(value) > 12 else ""
    return f"{what} among {', '.join(there) or 'none'}{more}"


def _instead(usable: list[str], ema: bool) -> str:
    if not usable:
        return "save the model or its state dict"
    averages = [k for k in usable if k in EMA_ENTRIES]
    if averages and not ema:
        return f"pass --ema for {_shown(averages[0])}"
    return "pass " + " or ".join(f"--key {k}" for k in map(_shown, usable[:6]))


def _shown(key: Any) -> str:
    return ascii(key)[:60]


def _plain(text: str) -> str:
    """Without what a hostile name could do to a terminal."""
    return ascii(text)[1:-1][:160]


def _ordered(state: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that may be changed, with the versions that modules leave in ``_metadata``."""
    copy: OrderedDict[str, Any] = OrderedDict(state)
    metadata = getattr(state, "_metadata", None)
    if isinstance(metadata, dict):
        copy._metadata = OrderedDict(metadata)  # type: ignore[attr-defined]
    return copy


def unwrap(state: dict[str, Any], known: set[str] | None = None) -> tuple[str, dict[str, Any]]:
    """Take off the names that DataParallel, DDP, AveragedModel and torch.compile put before each key.

    Args:
        state: changed in place.
        known: the model's keys; a prefix that is the model's own stays.

    Returns:
        The prefix, and entries that belong to the wrapper and not to the model.

    Example:
        >>> import torch
        >>> state = {"module._orig_mod.weight": torch.ones(1)}
        >>> unwrap(state), list(state)
        (('module._orig_mod.', {}), ['weight'])
    """
    taken, apart = "", {}
    while known is None or not known & set(state):
        wrapper = wrapper_of(state)
        if wrapper is None:
            break
        if COUNTER in state:
            apart[COUNTER] = state.pop(COUNTER)
        consume_prefix_in_state_dict_if_present(state, wrapper)
        taken += wrapper
    return taken, apart


def fill(where: str, model: nn.Module, state: dict[str, Any]) -> str:
    """Load *state* into *model*, strictly; the model takes over the floating-point type of each tensor.

    Returns:
        The type as a phrase, where it is not the one that the model was built in.

    Raises:
        SourceError: keys are missing or not expected, or shapes differ; the first of each are listed.
    """
    own = model.state_dict(keep_vars=True)
    shapes = _shapes_apart(own, state)
    changed = ""
    if shapes:
        missing, unexpected = [k for k in own if k not in state], [k for k in state if k not in own]
    else:
        changed = _match_types(own, state)
        try:
            missing, unexpected = model.load_state_dict(state, strict=False)
        except Exception as error:  # modules load their own parts with their own code
            reason = (str(error).splitlines() or [""])[-1].strip()
            raise SourceError(
                f"{where}: cannot be loaded into the model ({reason})", todo="check --arch"
            ) from error
    # Weights that are one tensor under two names may be stored under one of them.
    present = {id(own[key]) for key in state if key in own}
    missing = [key for key in missing if key not in own or id(own[key]) not in present]
    faults = [_some("missing", missing), _some("not expected", unexpected), _some("of another shape", shapes)]
    if any(faults):
        raise SourceError(
            f"{where}: the weights do not fit the model: {'; '.join(filter(None, faults))}",
            todo="check --arch and --arch-kwargs (such as num_classes), or choose another entry with --key",
        )
    return changed


def _shapes_apart(own: Mapping[str, Any], state: Mapping[str, Any]) -> list[str]:
    apart = []
    for key, value in state.items():
        mine = own.get(key)
        if not isinstance(mine, Tensor) or not isinstance(value, Tensor) or nn.parameter.is_lazy(mine):
            continue
        # load_state_dict takes a single number for a scalar; files from before PyTorch 0.4 have such.
        if mine.shape != value.shape and not (mine.dim() == 0 and value.shape == (1,)):
            apart.append(f"{key} ({_size(value)} in the file, {_size(mine)} in the model)")
    return apart


def _match_types(own: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """Give the model the file's floating-point types, in place: tied weights stay tied."""
    types = set()
    for key, value in state.items():
        mine = own.get(key)
        if not isinstance(mine, Tensor) or not isinstance(value, Tensor) or nn.parameter.is_lazy(mine):
            continue
        if mine.dtype != value.dtype and mine.is_floating_point() and value.is_floating_point():
            mine.data = mine.data.to(value.dtype)
            types.add(str(value.dtype).removeprefix("torch."))
    return " and ".join(sorted(types))


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _some(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = ", …" if len(names) > _SHOWN else ""
    return f"{len(names)} {what} ({', '.join(map(_plain, names[:_SHOWN]))}{more})"


def ensure_sane(where: str, tensors: Mapping[str, Any], size: int) -> None:
    """Refuse tensors that claim far more elements than the file has bytes for.

    Views with a stride of zero cost the file nothing and fill the memory when they are read.

    Raises:
        UnsafeError: they do.
    """
    claimed = sum(
        t.numel() * t.element_size() for t in tensors.values() if isinstance(t, Tensor) and not t.is_sparse
    )
    if claimed > 64 * 2**20 + 8 * size:
        raise UnsafeError(
            f"{where}: its tensors claim {claimed / 1e9:.1f} GB and the file has {size / 1e6:.1f} MB",
            todo="save copies of the tensors (clone) instead of expanded views",
        )

"""Whether opening a pickle would run code: judged by its opcodes alone, before anything is imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from bntools.core.opcodes import Call, Global, Reading
from bntools.core.sniff import Sniffed
from bntools.errors import UnsafeError, UsageError, listed

TRUSTED = ("torch.nn", "torchvision.models", "torchvision.ops", "timm", "bntools.norms")
"""The packages whose layer classes a file may name; a name matches by whole dotted parts."""

MOST = 20
"""So many names stand in a message at most."""
_SUBCLASS = "torch._tensor._rebuild_from_type_v2"
_REBUILD = frozenset(
    f"torch._utils._rebuild_{what}"
    for what in (
        "parameter",
        "parameter_with_state",
        "qtensor",
        "sparse_tensor",
        "tensor",
        "tensor_v2",
        "tensor_v3",
    )
)
_CALLED = _REBUILD | {
    "_codecs.encode",
    "builtins.complex",
    "builtins.set",
    "collections.OrderedDict",
    "torch.Size",
    "torch.device",
    "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout",
    _SUBCLASS,
}
"""What puts tensors and plain containers together: a part of what torch's weights-only reader allows."""
_PARTS = _CALLED | {
    "torch.Tensor",
    "torch.per_channel_affine",
    "torch.per_tensor_affine",
    "torch.storage.TypedStorage",
    "torch.storage.UntypedStorage",
}
"""These may be named as well. Calling a storage would make one of any size, of whatever is in memory."""


def trusted_package(name: str, trust: Sequence[str] = ()) -> str | None:
    """The trusted package that a dotted name lies in.

    Example:
        >>> trusted_package("torch.nn.modules.conv"), trusted_package("torch.nnevil")
        ('torch.nn', None)
    """
    inside = [p for p in (*TRUSTED, *trust) if name == p or name.startswith(p + ".")]
    return max(inside, key=len, default=None)


def package_of(text: str) -> str:
    """A package as ``--trust`` takes it, without the dot that may end it.

    Raises:
        UsageError: it is not written as in an import.
    """
    prefix = text.removesuffix(".")
    if not all(part.isidentifier() for part in prefix.split(".")):
        raise UsageError(
            f"--trust: {text!a} is no package", todo="write it as in an import, such as mylib.models"
        )
    return prefix


def _is_part(name: Global) -> bool:
    text = str(name)
    if name.module == "torch" and name.is_plain:
        kind = getattr(torch, name.name, None) if name.name in torch.__dict__ else None
        return text in _PARTS or isinstance(kind, torch.dtype) or name.name.endswith(("Storage", "Tensor"))
    return text in _PARTS or (name.module == "torch.cuda" and name.name.endswith("Storage"))


def layers_of(reading: Reading) -> list[Global]:
    """The names that are no parts of tensors: to be layer classes, if the file is harmless."""
    return [name for name in reading.globals if not _is_part(name)]


def ensure_harmless(sniffed: Sniffed, prefixes: Sequence[str]) -> None:
    """Judge every name and call; of the names under *prefixes* only the place is known, not yet the thing.

    Raises:
        UnsafeError: opening the file would import or call something else; all of it is named.
    """
    reading = sniffed.reading
    assert reading is not None
    strangers = [g for g in layers_of(reading) if not g.is_plain or not trusted_package(g.module, prefixes)]
    if strangers or reading.unresolved:
        raise _refusal(sniffed, [*map(str, strangers), *reading.unresolved], strangers)
    bad = [phrase for call in reading.calls if (phrase := _wrong_with(call))]
    if bad:
        done = listed(list(dict.fromkeys(bad)), MOST)
        raise UnsafeError(
            f"{sniffed.path}: opening this {sniffed.kind} would {done}, which no "
            "file of torch.save asks for; nothing was run",
            todo="if you trust where the file comes from, pass --unsafe",
        )


def _wrong_with(call: Call) -> str:
    """Why a call is refused, as a phrase; empty if it only assembles tensors or makes an empty object."""
    if call.target is None:
        return "call something that the file computes"
    if not _is_part(call.target):
        # A trusted class may be made empty and filled; its constructor is code that the file would steer.
        empty = call.opcode == "NEWOBJ" and call.arguments == ()
        return "" if empty else f"call {call.target} with its own arguments"
    if str(call.target) not in _CALLED:
        return f"call {call.target}"
    arguments = call.arguments if isinstance(call.arguments, tuple) else ()
    if str(call.target) == "_codecs.encode" and arguments[1:] not in (("latin1",), ("latin-1",)):
        return "encode text by a codec of its choice"
    if str(call.target) == _SUBCLASS:  # it calls its first argument
        first = arguments[0] if arguments else None
        if not isinstance(first, Global) or str(first) not in _REBUILD:
            return f"call {first if isinstance(first, Global) else 'what it likes'} through {call.target}"
    return ""


def _refusal(sniffed: Sniffed, names: list[str], strangers: list[Global]) -> UnsafeError:
    scripts = [g for g in strangers if g.module == "__main__"]
    packages = sorted({g.module.split(".")[0] for g in strangers if _may_be_layer(g)})
    remedies = []
    if scripts:
        remedies.append(
            f"{scripts[0]} was pickled from a script, so its class cannot be imported: put the class in a "
            "module and pass --trust MODULE, or save the state dict and pass --arch"
        )
    if packages:
        flags = " ".join(f"--trust {package}" for package in packages)
        remedies.append(f"if you trust these packages and these are layer classes, pass {flags}")
    if len(scripts) + len([g for g in strangers if _may_be_layer(g)]) < len(names):
        remedies.append(
            "functions and other classes need --unsafe, which runs code from the file; a state dict does not"
        )
    called = listed(names, MOST)
    return UnsafeError(
        f"{sniffed.path}: opening this {sniffed.kind} would import or call {called}; nothing was run",
        todo="; ".join(remedies),
    )


def _may_be_layer(name: Global) -> bool:
    """Whether a stranger looks like a layer class: a capital name, of neither Python nor numpy."""
    top = name.module.split(".")[0]
    if top in sys.stdlib_module_names or top in ("torch", "numpy", "__main__"):
        return False
    return name.is_plain and name.name.lstrip("_")[:1].isupper()

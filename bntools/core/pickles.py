"""Opening what torch.save wrote, without running code from the file.

Two walls, one behind the other. First the pickle is judged by its opcodes (`opcodes.read_pickles`): every
name must be a part of a tensor or lie under a trusted package, and no call may do more than put a tensor
together or make an empty object. Only then are the names imported; all must be classes derived from
``nn.Module``, and torch's own weights-only reader, handed just those, opens the file.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bntools.core.harmless import MOST, TRUSTED, ensure_harmless, layers_of, package_of, trusted_package
from bntools.core.opcodes import Global
from bntools.core.sniff import Kind, Sniffed
from bntools.errors import SourceError, UnsafeError, in_a_line, listed

_BRINGS_CODE = (torch.fx.GraphModule, torch.jit.ScriptModule)
"""Layer classes whose code is data of the instance."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What a file holds.

    Args:
        value: the object: a module, a dict, or whatever was saved.
        classes: the layer classes that the file named, sorted.
        unsafe: whether it was opened with code from the file allowed to run.
    """

    value: Any
    classes: tuple[str, ...]
    unsafe: bool


def open_pickle(sniffed: Sniffed, *, trust: Sequence[str] = (), unsafe: bool = False) -> Opened:
    """Open a file that torch.save wrote; its tensors come to the CPU.

    Args:
        sniffed: the file, as `sniff` told it.
        trust: more packages whose layer classes the file may name.
        unsafe: open it with whatever code it brings. Never a fallback: the caller asks for it.

    Returns:
        The object, and the classes it is made of.

    Raises:
        UnsafeError: opening would import or call something that is not on the list; all of it is named.
        SourceError: the file is damaged, or a trusted class cannot be imported.
    """
    if sniffed.reading is None:
        raise SourceError(f"{sniffed.path}: {sniffed.detail}, which torch.load does not open")
    classes = layers_of(sniffed.reading)
    if unsafe:
        return Opened(_read(sniffed, [], weights_only=False), tuple(map(str, classes)), unsafe=True)
    prefixes = (*TRUSTED, *map(package_of, trust))
    ensure_harmless(sniffed, prefixes)
    found = _resolve(sniffed.path, classes)
    _ensure_readable(sniffed)
    value = _read(sniffed, found, weights_only=True)
    return Opened(value, tuple(sorted(map(str, classes))), unsafe=False)


def _resolve(path: Path, names: list[Global]) -> list[type[nn.Module]]:
    """Import the classes: trusted packages only, and of those only what is really a layer class."""
    found, strangers = [], []
    for name in names:
        thing = _imported(path, name)
        if _is_layer_class(thing, name):
            found.append(thing)
        else:
            strangers.append((name, thing))
    if strangers:
        phrases = listed([f"{name} ({_what(thing)})" for name, thing in strangers], MOST)
        raise UnsafeError(
            f"{path}: this pickle is made of more than layer classes: {phrases}; nothing was run",
            todo="if you trust where it comes from, pass --unsafe; or save its state dict and pass --arch",
        )
    return found


def _imported(path: Path, name: Global) -> Any:
    try:
        with warnings.catch_warnings(), importable_from_here(trusted_package(name.module) is None):
            warnings.simplefilter("ignore")
            return getattr(importlib.import_module(name.module), name.name)
    except ModuleNotFoundError as error:
        package = name.module.split(".")[0]
        # Never `pip install`: what a file names may be a stranger's.
        missing = f"run from the folder that holds {package}, or install it" if error.name == package else ""
        raise SourceError(
            f"{path}: needs {name}, and there is no module {error.name!r} here",
            todo=missing or f"install the release of {package} that saved it",
        ) from error
    except Exception as error:  # importing runs the package's own code, which may raise anything
        package = name.module.split(".")[0]
        lacking = isinstance(error, AttributeError)
        remedy = f"install the release of {package} that saved it" if lacking else works_first(name.module)
        raise SourceError(
            f"{path}: needs {name}, which cannot be imported ({in_a_line(error)})",
            todo=f"{remedy}, or save its state dict where it was made",
        ) from error


def works_first(module: str) -> str:
    """What to do where an import fails for reasons of its own, such as a build against another torch."""
    return f"make python -c 'import {module}' work first"


@contextmanager
def importable_from_here(wanted: bool = True) -> Iterator[None]:
    """Let imports find modules in the current folder, as ``python -m`` does: for names that the user gave."""
    if not wanted:
        yield
        return
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")


def _is_layer_class(thing: Any, name: Global) -> bool:
    if not (isinstance(thing, type) and issubclass(thing, nn.Module)):
        return False
    if issubclass(thing, _BRINGS_CODE):
        return False
    return thing.__module__ == name.module and thing.__qualname__ == name.name


def _what(thing: Any) -> str:
    if not isinstance(thing, type):
        return "a function" if callable(thing) else "no class"
    if not issubclass(thing, nn.Module):
        return "no layer class"
    if issubclass(thing, _BRINGS_CODE):
        return "a class that carries its code as data"
    return f"now {thing.__module__}.{thing.__qualname__}"


def _ensure_readable(sniffed: Sniffed) -> None:
    reading = sniffed.reading
    assert reading is not None
    if reading.foreign:
        raise SourceError(
            f"{sniffed.path}: a {sniffed.kind} with pickle opcodes that torch reads only with code allowed "
            f"to run ({', '.join(reading.foreign[:5])})",
            todo="save it again with torch.save's own protocol, or pass --unsafe if you trust its origin",
        )
    if sniffed.kind is Kind.MODULE and sniffed.legacy:
        raise SourceError(
            f"{sniffed.path}: {sniffed.detail}, which torch reads only with code allowed to run",
            todo="load it where it was made and save it again, or pass --unsafe if you trust its origin",
        )


def _read(sniffed: Sniffed, classes: list[type[nn.Module]], *, weights_only: bool) -> Any:
    # Those that are allowed already stay so afterwards: the context manager takes away what it is given.
    new = [c for c in classes if c not in torch.serialization.get_safe_globals()]
    try:
        with (
            sniffed.path.open("rb") as file,
            warnings.catch_warnings(),
            torch.serialization.safe_globals(new),  # type: ignore[arg-type]
            importable_from_here(not weights_only),
        ):
            warnings.simplefilter("ignore")
            # From the open file, not the path: torch.load takes a name's ending for the kind.
            return torch.load(file, map_location="cpu", weights_only=weights_only)
    except Exception as error:  # damaged bytes make torch raise anything
        raise SourceError(
            f"{sniffed.path}: {sniffed.detail} that torch cannot open ({_cause(error)})",
            todo="it may be damaged or cut off: download or save it again",
        ) from error


def _cause(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 2 and lines[-1].startswith("Check the documentation"):
        # torch puts its advice first and the cause last.
        return f"{type(error).__name__}: {lines[-2][:200]}"
    return in_a_line(error)

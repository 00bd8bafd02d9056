"""Architectures by name: ``timm:NAME``, ``torchvision:NAME`` and ``package.module:factory``."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from bntools.core.pickles import importable_from_here, works_first
from bntools.errors import SourceError, UsageError, in_a_line

_SPEC = re.compile(r"(?P<where>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<name>[\w.\-]+)")


def is_spec(text: str) -> bool:
    """Whether *text* is written as an architecture.

    Example:
        >>> is_spec("timm:resnet18"), is_spec("model.pt"), is_spec("C:/model.pt")
        (True, False, False)
    """
    return _SPEC.fullmatch(text) is not None


def build(spec: str, arch_kwargs: Mapping[str, Any] | None = None) -> nn.Module:
    """Build the model that *spec* names, in eval mode; the same spec gives the same random weights.

    Args:
        spec: ``timm:NAME``, ``torchvision:NAME`` or ``package.module:factory``, where the factory is
            called and returns a module. The current folder is searched as well.
        arch_kwargs: keyword arguments for it.

    Raises:
        UsageError: *spec* is not written as one.
        SourceError: the package or the name does not exist, or building fails.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise UsageError(
            f"{spec!a} is no architecture",
            todo="write timm:NAME, torchvision:NAME or package.module:factory",
        )
    where, name, keywords = match["where"], match["name"], dict(arch_kwargs or {})
    # Building draws random weights: the caller's random state is put back.
    with torch.random.fork_rng(devices=[]):
        if where in ("timm", "torchvision"):
            with warnings.catch_warnings():  # their own chatter, such as about how Inception starts one day
                warnings.simplefilter("ignore")
                model = (_timm if where == "timm" else _torchvision)(spec, name, keywords)
        else:
            model = _factory(spec, where, name, keywords)
    return model.eval()


def _timm(spec: str, name: str, keywords: dict[str, Any]) -> nn.Module:
    timm = _package("timm", spec)
    _ensure_known(spec, name.split(".")[0], timm.list_models(), "timm")
    return _call(spec, timm.create_model, name, **{"pretrained": False, **keywords})


def _torchvision(spec: str, name: str, keywords: dict[str, Any]) -> nn.Module:
    models = _package("torchvision.models", spec)
    _ensure_known(spec, name.lower(), models.list_models(), "torchvision")
    takes = inspect.signature(models.get_model_builder(name)).parameters
    # Without this, a detector downloads its backbone.
    bare = {"weights_backbone": None} if "weights_backbone" in takes else {}
    return _call(spec, models.get_model, name, **{"weights": None, **bare, **keywords})


def call_spec(spec: str) -> Any:
    """What ``package.module:factory`` returns, whatever it is; a thing that cannot be called is that itself.

    Raises:
        SourceError: if it is not there, or fails.
    """
    where, _, name = spec.rpartition(":")
    with importable_from_here():
        thing = _named(spec, where, name)
        try:
            return thing() if callable(thing) else thing
        except Exception as error:
            raise _failed(f"{spec}: calling it", error, "let it work without arguments") from error


def _factory(spec: str, where: str, name: str, keywords: dict[str, Any]) -> nn.Module:
    with importable_from_here():
        thing = _named(spec, where, name)
        if isinstance(thing, nn.Module) and not keywords:
            return thing
        if isinstance(thing, nn.Module) or not callable(thing):
            raise SourceError(
                f"{spec}: {type(thing).__name__} cannot be called with arguments",
                todo="name a class or a function that returns the model",
            )
        return _call(spec, thing, **keywords)


def _named(spec: str, where: str, name: str) -> Any:
    """Import a module, and find a name in it."""
    try:
        thing: Any = importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise _not_imported(spec, where, error) from error
        raise SourceError(
            f"{spec}: there is no module {error.name!r}",
            todo="check the spelling, run it from the folder that holds it, or install it",
        ) from error
    except Exception as error:
        raise _not_imported(spec, where, error) from error
    module = thing
    for part in name.split("."):
        if not hasattr(thing, part):
            raise SourceError(f"{spec}: {where} has no {part!r}", todo=_similar(part, vars(module)))
        thing = getattr(thing, part)
    return thing


def _package(name: str, spec: str) -> Any:
    package = name.split(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise _not_imported(spec, name, error) from error
        raise SourceError(f"{spec}: {package} is not installed", todo=f"pip install {package}") from error
    except Exception as error:  # a build against another torch fails in its own ways
        raise _not_imported(spec, name, error) from error


def _call(spec: str, factory: Any, *arguments: Any, **keywords: Any) -> nn.Module:
    try:
        # Seeded here, as an import may have drawn numbers; torch.manual_seed would reach every device.
        torch.default_generator.manual_seed(0)
        model = factory(*arguments, **keywords)
    except Exception as error:
        raise _failed(f"{spec}: building it", error, "check its arguments") from error
    if not isinstance(model, nn.Module):
        raise SourceError(
            f"{spec}: gives a {type(model).__name__}, not an nn.Module", todo="return the model itself"
        )
    return model


def _not_imported(spec: str, name: str, error: Exception) -> SourceError:
    return _failed(f"{spec}: importing {name}", error, works_first(name))


def _failed(what: str, error: Exception, todo: str) -> SourceError:
    return SourceError(f"{what} failed with {in_a_line(error)}", todo=todo)


def _ensure_known(spec: str, name: str, names: Iterable[str], package: str) -> None:
    names = list(names)
    if name not in names:
        raise SourceError(f"{spec}: {package} has no model {name!r}", todo=_similar(name, names))


def _similar(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=3)
    return f"did you mean {' or '.join(close)}?" if close else "check the spelling"

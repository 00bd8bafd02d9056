"""``bntools --version``: its own version, and those of what it stands on."""

from __future__ import annotations

from contextlib import suppress

from bntools import __version__

STANDS_ON = (
    "torch",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "numpy",
    "safetensors",
    "greenlet",
    "typer",
    "rich",
)
"""The run-time dependencies, by their names in the package index."""


def versions() -> str:
    """A name and a version in each line, bntools' own in the first: nothing of all that is imported.

    Returns:
        ``not installed`` where a version would be, for a package that is missing.

    Example:
        >>> versions().splitlines()[0] == f"bntools {__version__}"
        True
    """
    import platform

    lines = [f"bntools {__version__}", f"python {platform.python_version()}"]
    return "\n".join([*lines, *(f"{name} {_installed(name)}" for name in STANDS_ON)])


def _installed(name: str) -> str:
    from importlib import metadata

    found = None
    # An uninstall that was cut short leaves a folder without a version: None, or a KeyError, by the Python.
    with suppress(metadata.PackageNotFoundError, KeyError):
        found = metadata.version(name)
    return found or "not installed"

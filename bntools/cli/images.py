"""The options that say how a folder of images is read."""

from __future__ import annotations

import os.path
from typing import Annotated, Any

import typer

from bntools.errors import UsageError

_PANEL = "The data"
_NAMES = ("resize", "crop", "mean", "std", "workers")

Resize = Annotated[
    int | None,
    typer.Option(
        metavar="PIXELS",
        help="What the shorter side of an image becomes.",
        min=1,
        rich_help_panel=_PANEL,
        envvar="BNTOOLS_RESIZE",
        show_default="of timm's model, else 256",
    ),
]
Crop = Annotated[
    int | None,
    typer.Option(
        metavar="PIXELS",
        help="The side of the square from its middle.",
        min=1,
        rich_help_panel=_PANEL,
        envvar="BNTOOLS_CROP",
        show_default="of timm's model, else 224",
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        metavar="R,G,B",
        help="Of values from 0 to 1; one number makes images grey.",
        rich_help_panel=_PANEL,
        envvar="BNTOOLS_MEAN",
        show_default="of timm's model, else ImageNet's",
    ),
]
Std = Annotated[
    str | None,
    typer.Option(
        metavar="R,G,B",
        help="As many numbers as the mean.",
        rich_help_panel=_PANEL,
        envvar="BNTOOLS_STD",
        show_default="of timm's model, else ImageNet's",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="How many threads read images.",
        min=1,
        rich_help_panel=_PANEL,
        envvar="BNTOOLS_WORKERS",
        show_default="processors, 4 at most",
    ),
]


def asked(context: typer.Context, data: str) -> dict[str, Any]:
    """What the options of a command say about its data, as `bntools.core.data.open_data` takes it.

    Raises:
        UsageError: if one is given for data that is no folder, or is no list of numbers. A default from the
            environment or from a file is for folders only.
    """
    given = context.params
    if os.path.isdir(data):
        numbers = {name: _numbers(f"--{name}", given[name]) for name in ("mean", "std")}
        return {name: given[name] for name in _NAMES} | numbers
    for name in _NAMES:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(
                f"--{name}: is for a folder of images, --data {data} is none", todo="leave it out"
            )
    return {}


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{option}: {text!r} is no list of numbers", todo="write it as 0.485,0.456,0.406"
        ) from None

"""The options that say what data is read, and how much of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from bntools.cli.render import Sink

if TYPE_CHECKING:  # they import torch
    from torch import nn

    from bntools.core.data import Data as Opened

_PANEL = "The data"
_DATA = typer.Option(
    metavar="DATA",
    help="A folder of images, a .npy, .npz, .safetensors or .pt file, or package.module:factory.",
    rich_help_panel=_PANEL,
    envvar="BNTOOLS_DATA",
    show_default=False,
)

Data = Annotated[str, _DATA]
"""What a verb cannot do without."""
MoreData = Annotated[str | None, _DATA]
"""What a verb can do without."""
BatchSize = Annotated[
    int,
    typer.Option(help="Of a file or a folder.", min=1, rich_help_panel=_PANEL, envvar="BNTOOLS_BATCH_SIZE"),
]
SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad",
        help="Leave out images that cannot be read, and what holds NaN or infinity.",
        rich_help_panel=_PANEL,
    ),
]
MaxSamples = Annotated[
    int,
    typer.Option(help="How many to read.", min=1, rich_help_panel=_PANEL, envvar="BNTOOLS_MAX_SAMPLES"),
]


def opened(out: Sink, name: str, model: nn.Module, rows: int, **how: Any) -> Opened:
    """The data that ``--data`` names, in batches of so many rows, with a note on what is done to images.

    Args:
        out: where the note goes.
        name, model, rows, how: as `bntools.core.data.open_data` takes them.
    """
    from bntools.core.data import open_data

    source = open_data(name, model, rows, **how)
    if source.preparation is not None:
        out.note(f"images: {source.preparation}")
    return source

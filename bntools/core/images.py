"""A folder of images as batches, read ahead by threads.

Pillow lets go of Python's lock while it decodes and resizes. The threads make bytes and leave the arithmetic
to the one that asks for batches: torch would start a pool of workers in each of them.
"""

from __future__ import annotations

import os
from bisect import insort
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import ModuleType

import numpy as np
from torch import Tensor

from bntools.core.preparation import Preparation
from bntools.errors import SourceError, UsageError, first_line

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
"""Of the files that are taken for images."""
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
"""What Pillow may take them for: it hands some others to programs, PostScript to Ghostscript for one."""
_AHEAD = 2
"""How many batches are read ahead."""
_REPAIR = "repair it, or leave such files out with --skip-bad"


def find_images(folder: Path) -> list[Path]:
    """The images below a folder, in the order of their paths. Hidden files and folders are left out.

    Args:
        folder: links to other folders below it are followed, each of them once.

    Raises:
        SourceError: if there are none, or a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise SourceError(f"{error.filename}: cannot be read: {error.strerror}", todo="look at its rights")

    found, seen = [], set()
    for here, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        place = os.path.realpath(here)  # a link may lead back to where it was found
        folders[:] = [] if place in seen else sorted(name for name in folders if not name.startswith("."))
        names = [] if place in seen else [name for name in files if not name.startswith(".")]
        seen.add(place)
        found += [Path(here, name) for name in names if os.path.splitext(name)[1].lower() in ENDINGS]
    if not found:
        kinds = ", ".join(ending[1:] for ending in ENDINGS)
        raise SourceError(f"{folder}: a folder without images", todo=f"give one with {kinds} files below it")
    return sorted(found)


@dataclass(frozen=True, slots=True)
class Images:
    """Batches of images, each time anew.

    Args:
        folder: that they are below, for their names.
        paths: of the images, in the order in which they are to come.
        preparation: what is done to each.
        batch_size: how many make a batch; the last may be smaller.
        workers: how many threads read; None for as many as there are processors, four at most.
        skip: leave out what cannot be read, instead of raising.
        left_out: gets the names of what was left out, sorted.

    Raises:
        UsageError: if Pillow is missing.
    """

    folder: Path
    paths: Sequence[Path]
    preparation: Preparation
    batch_size: int
    workers: int | None = None
    skip: bool = False
    left_out: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        _pillow()

    def __iter__(self) -> Iterator[Tensor]:
        """The batches, ``(images, channels, crop, crop)``; the threads end with the iteration.

        Raises:
            SourceError: if an image cannot be read.
        """
        _pillow().init()  # at once: a thread that looks while another one loads the formats would miss some
        workers = self.workers or min(4, os.cpu_count() or 1)
        pool = ThreadPoolExecutor(workers, "bntools-images")
        most = max(_AHEAD * self.batch_size, 2 * workers)
        waiting, ready = iter(self.paths), list[np.ndarray]()
        ahead = deque[tuple[Path, Future[np.ndarray]]]()
        try:
            while True:
                more = islice(waiting, most - len(ahead))
                ahead.extend((path, pool.submit(self._read, path)) for path in more)
                if not ahead:
                    break
                path, future = ahead.popleft()
                try:
                    ready.append(future.result())
                except SourceError:
                    if not self.skip:
                        raise
                    self._leave_out(path)
                if len(ready) == self.batch_size:
                    yield self.preparation.batch(ready)
                    ready = []
            if ready:
                yield self.preparation.batch(ready)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, path: Path) -> np.ndarray:
        pillow = _pillow()
        if not path.is_file():  # a pipe would be waited for
            raise SourceError(f"{path}: no ordinary file", todo=_REPAIR)
        try:
            with pillow.open(path, formats=_FORMATS) as opened:
                self._check(pillow.MAX_IMAGE_PIXELS, path, *opened.size)
                opened.load()
                # Which colour stands for transparent changes no pixel, but Pillow warns of some.
                opened.info.pop("transparency", None)
                image = opened.convert(self.preparation.mode)
        except SourceError:
            raise
        except Exception as error:  # a damaged file makes the decoders raise whatever they meet
            unknown = isinstance(error, pillow.UnidentifiedImageError)
            why = "no image" if unknown else getattr(error, "strerror", None) or first_line(error)
            raise SourceError(f"{path}: cannot be read: {why}", todo=_REPAIR) from error
        return self.preparation.pixels(image)

    def _check(self, most: int | None, path: Path, width: int, height: int) -> None:
        """Refuse what a few kilobytes claim to be, and a thin line that would become as large.

        Pillow only warns of the first, which filters for warnings may hide.
        """
        for wide, high in ((width, height), self.preparation.size(width, height)):
            if most is not None and wide * high > most:
                what = f"{width}x{height} pixels, which take {wide}x{high}"
                raise SourceError(f"{path}: {what}; {most} at most are read", todo=_REPAIR)

    def _leave_out(self, path: Path) -> None:
        name = str(path.relative_to(self.folder))
        if name not in self.left_out:  # it may be read again
            insort(self.left_out, name)


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError(
            "--data: a folder of images needs Pillow", todo="pip install 'bntools[images]'"
        ) from error
    return Image

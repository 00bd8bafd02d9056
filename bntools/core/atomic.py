"""A file appears whole or not at all. Standard library only."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bntools.errors import SourceError, UsageError


@contextmanager
def replacing(path: Path, *, force: bool) -> Iterator[Path]:
    """A temporary file that takes the place of *path* when the block ends well, and vanishes if not.

    Raises:
        UsageError: if *path* exists and not *force*.
        SourceError: if it cannot be written.
    """
    part: Path | None = None
    try:
        path = Path(os.path.realpath(path))  # the file behind a link is replaced, not the link
        check_free(path, force)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".part", dir=path.parent)
        os.close(handle)
        part = Path(name)
        yield part
        check_free(path, force)
        _settle(part, path)
        part = None
    except OSError as error:
        raise SourceError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if part is not None:
            with suppress(OSError):
                part.unlink()


@contextmanager
def replacing_with(path: Path, *, force: bool) -> Iterator[Path]:
    """A temporary folder, whose files take their places beside *path* when the block ends well, and *path*
    last: it may name the others, so they must be there first.

    Raises:
        UsageError: if *path* exists and not *force*, or is a link and there are other files.
        SourceError: if something cannot be written.
    """
    folder: Path | None = None
    try:
        place = Path(os.path.realpath(path))
        check_free(place, force)
        folder = Path(tempfile.mkdtemp(prefix=f".{place.name[:40]}.", suffix=".part", dir=place.parent))
        yield folder
        others = sorted(each for each in folder.iterdir() if each.name != path.name)
        if others and path.is_symlink():
            raise UsageError(
                f"{path}: a link, and weights beside it would not be found", todo=f"write to {place}"
            )
        for each in others:
            check_free(place.parent / each.name, force=True)
            _settle(each, place.parent / each.name)
        check_free(place, force)
        _settle(folder / path.name, place)
    except OSError as error:
        raise SourceError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _settle(part: Path, path: Path) -> None:
    """Let a file take its place, with all that is in it on the disk."""
    with part.open("r+b") as file:
        os.fsync(file.fileno())
    part.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
    part.replace(path)


def check_place(path: Path, force: bool) -> None:
    """Refuse a place where nothing can be written, before minutes go into what is to be written there.

    Raises:
        UsageError: if there is no such folder, or as for `check_free`.
    """
    try:
        if not path.parent.is_dir():
            raise UsageError(f"{path}: there is no folder {path.parent}", todo="make it first")
        check_free(path, force)
    except OSError as error:
        raise UsageError(f"{str(path)[:80]}: {error.strerror}", todo="choose another name") from None


def check_free(path: Path, force: bool) -> None:
    """Refuse a folder, and a file that is there already unless *force*."""
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise UsageError(f"{path}: a folder", todo="name a file")
    if os.path.lexists(path) and not path.is_file():
        raise UsageError(f"{path}: no ordinary file", todo="name another")
    if path.exists() and not force:
        raise UsageError(
            f"{path}: exists", todo="name another file, or replace it with --force (in Python: force=True)"
        )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""A file appears whole or not at all. Standard library only."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bntools.errors import BntoolsError, SourceError, UsageError


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
        with part.open("r+b") as file:
            os.fsync(file.fileno())
        part.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        check_free(path, force)
        part.replace(path)
        part = None
    except BntoolsError:
        raise
    except OSError as error:
        raise SourceError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if part is not None:
            with suppress(OSError):
                part.unlink()


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

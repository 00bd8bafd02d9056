"""The directory of a zip file, checked before any of its records is read. Standard library only.

The checks hold what ``torch.save`` holds by construction. They also leave no room for two readers of one
file to disagree: Python looks at the directory here, torch's own zip reader opens the records later.
"""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bntools.errors import SourceError, UnsafeError

MAX_RECORDS = 10_000
_MAX_DIRECTORY = 16 * 2**20
_END, _END64, _LOCATOR64, _LOCAL = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x03\x04"
_DAMAGED = "download or copy it again: a zip keeps its directory at its end"


@dataclass(frozen=True, slots=True)
class Record:
    """One record: where its bytes lie in the file, and how many there are."""

    name: str
    offset: int
    size: int
    compressed: bool


@dataclass(frozen=True, slots=True)
class Archive:
    """The records of a zip under their common folder.

    Args:
        path: the file.
        root: the folder that all records lie in, or empty if there is no such folder.
        records: by name, without the root.
    """

    path: Path
    root: str
    records: dict[str, Record]

    def read(self, name: str) -> bytes:
        """The bytes of a record that is not compressed."""
        record = self.records[name]
        with self.path.open("rb") as file:
            file.seek(record.offset)
            return file.read(record.size)

    def ensure_stored(self, kind: str) -> None:
        """Refuse compressed records, as ``torch.save`` and ``torch.export.save`` never write any.

        Raises:
            UnsafeError: there are some: a few bytes could fill the memory.
        """
        if found := [r for r in self.records.values() if r.compressed]:
            raise UnsafeError(
                f"{self.path}: {kind} with {_count(len(found), 'compressed record')}, which torch never "
                "writes and which can fill the memory; nothing was read",
                todo="if you compressed it yourself, unpack it and save the model again with torch.save",
            )


def read_directory(path: Path) -> Archive:
    """Read the names and places of the records, and no record.

    Raises:
        SourceError: the zip is truncated or damaged.
        UnsafeError: it has too many records, records larger than the file, names that leave their
            folder, or records that share a name or bytes.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            start = _ensure_bounded(path, file, size)
            with zipfile.ZipFile(file) as archive:
                entries, found = archive.infolist(), archive.start_dir
            if found != start:
                raise zipfile.BadZipFile("there are bytes before the archive")
            _ensure_named(path, entries)
            if sum(entry.file_size for entry in entries) > size and not any(e.compress_type for e in entries):
                raise UnsafeError(
                    f"{path}: a zip whose records claim more bytes than the file has; nothing was read"
                )
            records = _placed(path, file, entries, start)
    except (
        zipfile.BadZipFile,
        struct.error,
        ValueError,
        NotImplementedError,
        OverflowError,
        EOFError,
    ) as error:
        raise SourceError(f"{path}: a damaged zip ({error}), not a readable model", todo=_DAMAGED) from error
    roots = {name.split("/", 1)[0] if "/" in name else "" for name in records}
    root = roots.pop() if len(roots) == 1 else ""
    cut = len(root) + 1 if root else 0
    return Archive(path, root, {name[cut:]: record for name, record in records.items() if name[cut:]})


def _ensure_bounded(path: Path, file: IO[bytes], size: int) -> int:
    """The start of the directory; it is refused by its size before zipfile builds objects from it."""
    file.seek(max(0, size - 22))
    end = file.read(22)
    if len(end) < 22 or end[:4] != _END or end[20:] != b"\0\0":
        file.seek(max(0, size - 65_600))
        if _END in file.read():
            raise zipfile.BadZipFile("there are bytes after the archive's end")
        raise SourceError(f"{path}: a truncated zip, not a readable model", todo=_DAMAGED)
    count, length, start = struct.unpack("<10xHLL2x", end)
    if size >= 42:
        file.seek(size - 42)
        locator = file.read(20)
        if locator[:4] == _LOCATOR64:
            file.seek(struct.unpack("<8xQ4x", locator)[0])
            record = file.read(56)
            if record[:4] != _END64:
                raise zipfile.BadZipFile("the 64-bit directory is not where it should be")
            count, length, start = struct.unpack("<32xQQQ", record)
    if count > MAX_RECORDS or length > _MAX_DIRECTORY:
        raise UnsafeError(
            f"{path}: a zip with {count} records; a model has at most {MAX_RECORDS}; nothing was read",
            todo="save the model again with torch.save",
        )
    return int(start)


def _ensure_named(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > MAX_RECORDS:
        raise UnsafeError(f"{path}: a zip with {len(entries)} records; a model has at most {MAX_RECORDS}")
    seen = set()
    for entry in entries:
        name = entry.orig_filename
        parts = name.replace("\\", "/").split("/")
        if "\0" in name or "\\" in name or ".." in parts or parts[0] == "" or parts[0][1:] == ":":
            raise UnsafeError(
                f"{path}: a zip with a record named {name!a}, outside its folder; nothing was read"
            )
        # torch's reader finds records without regard to case, so two such names are one to it.
        if name.lower() in seen:
            raise UnsafeError(f"{path}: a zip with two records named {name!a}; nothing was read")
        seen.add(name.lower())


def _placed(path: Path, file: IO[bytes], entries: list[zipfile.ZipInfo], end: int) -> dict[str, Record]:
    """Each record with its place, told from its local header; no two may share bytes."""
    records, free = {}, 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < free:
            raise UnsafeError(
                f"{path}: a zip whose record {entry.filename!a} overlaps another; nothing was read"
            )
        file.seek(entry.header_offset)
        header = file.read(30)
        if len(header) < 30 or header[:4] != _LOCAL or entry.flag_bits & 1:
            raise zipfile.BadZipFile(f"record {entry.filename!a} has no readable header")
        name_length, extra_length = struct.unpack("<26xHH", header)
        name = file.read(name_length)
        if name != entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437"):
            raise zipfile.BadZipFile(f"record {entry.filename!a} has two names")
        offset = entry.header_offset + 30 + name_length + extra_length
        compressed = entry.compress_type != zipfile.ZIP_STORED
        if not compressed and entry.file_size != entry.compress_size:
            raise UnsafeError(
                f"{path}: a zip whose record {entry.filename!a} has two sizes; nothing was read"
            )
        free = offset + entry.compress_size
        if free > end:
            raise zipfile.BadZipFile(f"record {entry.filename!a} ends beyond the records")
        records[entry.filename] = Record(entry.filename, offset, entry.file_size, compressed)
    return records


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")

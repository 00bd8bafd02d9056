"""What is inside a ``.pt2`` file of ``torch.export``: its records, its JSON, its weights. No torch here.

Of torch's format of version 0: ``models/NAME.json`` is the program, ``data/weights`` and ``data/constants``
hold tensors as raw bytes with a table beside them, ``data/sample_inputs`` a pickle, ``extra`` text.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bntools.core.schema import (
    Stranger,
    boolean,
    integer,
    mapping,
    optional,
    record,
    sequence,
    shown,
    text,
    union,
)
from bntools.core.zips import Archive, read_directory
from bntools.errors import SourceError, UnsafeError

UNSAFE = "if you trust where the file comes from, pass --unsafe (in Python: unsafe=True), which runs it"
_AGAIN = "export the model again with the torch that is installed, or pass --unsafe if you trust the file"
_OLD = frozenset({"serialized_exported_program.json", "serialized_state_dict.pt"})
_PLAIN = frozenset(
    {"archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id", "version"}
)
_KNOWN = re.compile(r"models/\w+\.json|data/weights/weight_\d+|data/constants/tensor_\d+|extra/.+", re.ASCII)
_TABLES = re.compile(r"data/(?:weights/\w+_weights|constants/\w+_constants)_config\.json", re.ASCII)
_SAMPLES = re.compile(r"data/sample_inputs/\w+\.pt", re.ASCII)
_RUNS = {
    "data/aotinductor/": "compiled code",
    "data/constants/custom_obj_": "an object of a C++ class",
    "data/constants/opaque_obj_": "a pickled object",
    "data/executorch/": "a program of ExecuTorch",
}
"""What torch would run, load or unpickle, by where it lies."""

_LARGEST_JSON = 2**28

_SIZE = union({"as_int": integer})
_PAYLOAD = record(
    {
        "path_name": text(r"\w+", "name of a record"),
        "is_param": boolean,
        "use_pickle": boolean,
        "tensor_meta": optional(
            record(
                {
                    "dtype": integer,
                    "sizes": sequence(_SIZE),
                    "strides": sequence(_SIZE),
                    "storage_offset": _SIZE,
                    "requires_grad": boolean,
                    "device": lambda value: None,  # all tensors come to the CPU
                    "layout": integer,
                }
            )
        ),
    }
)
_TABLE = record({"config": mapping(text(r"[^\x00-\x1f\x7f]{1,1000}", "name of a tensor"), _PAYLOAD)})


@dataclass(frozen=True, slots=True)
class Payload:
    """A tensor of the file: which bytes it is, and how to look at them.

    Args:
        record: the name of the record, which several tensors may share.
        dtype: torch's number of the type.
        sizes, strides, offset: in elements.
        parameter: whether it is one, and not a buffer.
        trained: whether it takes part in training.
    """

    record: str
    dtype: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    parameter: bool
    trained: bool


@dataclass(frozen=True, slots=True)
class ProgramFile:
    """A ``.pt2`` file whose directory was read.

    Args:
        archive: its records.
        name: of its program, ``model`` if torch.export.save wrote it.
    """

    archive: Archive = field(repr=False)
    name: str

    @property
    def path(self) -> Path:
        """The file."""
        return self.archive.path

    def document(self) -> Any:
        """The JSON of the program, as it is."""
        return self._json(f"models/{self.name}.json")

    def weights(self) -> dict[str, Payload]:
        """The tensors of its state dict, by their names."""
        return self._table(f"data/weights/{self.name}_weights_config.json", "data/weights")

    def constants(self) -> dict[str, Payload]:
        """Its other tensors: buffers that are not saved with a state dict, and constants."""
        return self._table(f"data/constants/{self.name}_constants_config.json", "data/constants")

    def sample_inputs(self) -> bytes:
        """A pickle of the inputs that it was exported on; empty if there are none."""
        name = f"data/sample_inputs/{self.name}.pt"
        return self.archive.read(name) if name in self.archive.records else b""

    def extra(self, name: str) -> str:
        """A text that was put beside the program; empty if there is none of that name."""
        inside = f"extra/{name}"
        if inside not in self.archive.records:
            return ""
        return self.archive.read(inside).decode("utf-8", errors="replace")

    def ensure_no_more(self) -> None:
        """Refuse what is no part of a plain program.

        Raises:
            UnsafeError: there is a record that torch would run or unpickle, or one that is not known.
        """
        for name in self.archive.records:
            known = name in _PLAIN or any(each.fullmatch(name) for each in (_KNOWN, _TABLES, _SAMPLES))
            if not known:
                kind = next((what for start, what in _RUNS.items() if name.startswith(start)), "not known")
                raise UnsafeError(
                    f"{self.path}: a program with a record {shown(name)} ({kind}); nothing was run",
                    todo=UNSAFE,
                )

    def damaged(self, why: str) -> SourceError:
        """An error for bytes that are not what they should be."""
        return SourceError(f"{self.path}: a damaged torch.export program ({why})", todo=_AGAIN)

    def refused(self, stranger: Stranger) -> UnsafeError:
        """An error for what was found in it."""
        return UnsafeError(
            f"{self.path}: this program has {stranger.what}"
            f"{f', at {stranger.where}' if stranger.where else ''}; nothing was run",
            todo=UNSAFE,
        )

    def _json(self, name: str) -> Any:
        found = self.archive.records.get(name)
        if found is None:
            raise self.damaged(f"there is no {name}")
        if found.size > _LARGEST_JSON:
            raise self.damaged(f"{name} has {found.size} bytes")
        try:
            return json.loads(self.archive.read(name))
        except (ValueError, RecursionError) as error:
            raise self.damaged(f"{name} is no JSON") from error

    def _table(self, name: str, folder: str) -> dict[str, Payload]:
        try:
            table = _TABLE(self._json(name))["config"]
        except Stranger as stranger:
            raise self.damaged(f"{name}: {stranger}") from stranger
        return {key: self._payload(key, entry, folder) for key, entry in table.items()}

    def _payload(self, key: str, entry: dict[str, Any], folder: str) -> Payload:
        meta, inside = entry["tensor_meta"], f"{folder}/{entry['path_name']}"
        if entry["use_pickle"] or meta is None:
            raise UnsafeError(
                f"{self.path}: {shown(key)} is a pickle and not plain bytes; nothing was run", todo=UNSAFE
            )
        if inside not in self.archive.records:
            raise self.damaged(f"{shown(key)}: there is no {inside}")
        sizes, strides = ([each["as_int"] for each in meta[part]] for part in ("sizes", "strides"))
        offset = meta["storage_offset"]["as_int"]
        if len(sizes) != len(strides) or min([*sizes, *strides, offset], default=0) < 0:
            raise self.damaged(f"{shown(key)}: sizes {shown(sizes)}, strides {shown(strides)}")
        return Payload(
            inside,
            meta["dtype"],
            tuple(sizes),
            tuple(strides),
            offset,
            entry["is_param"],
            meta["requires_grad"],
        )


def read_program_file(path: Path) -> ProgramFile:
    """Read the directory of a ``.pt2`` file.

    Args:
        path: what `bntools.core.sniff` takes for a program.

    Raises:
        SourceError: it is damaged, or of another version of the format.
        UnsafeError: it is in the format of torch 2.7, all of whose weights are pickles, or holds several
            programs.
    """
    archive = read_directory(path)
    archive.ensure_stored("a torch.export program")
    if _OLD & archive.records.keys():
        raise UnsafeError(
            f"{path}: a torch.export program in the format of torch 2.7, whose weights are pickles",
            todo=_AGAIN,
        )
    models = [name for name in archive.records if name.startswith("models/")]
    file = ProgramFile(archive, models[0].removeprefix("models/").removesuffix(".json") if models else "")
    for name, known in (("archive_format", b"pt2"), ("archive_version", b"0")):
        if name not in archive.records or archive.records[name].size > 64 or archive.read(name) != known:
            raise file.damaged(f"its {name} is not {known.decode()}")
    if "byteorder" in archive.records and archive.read("byteorder") != b"little":
        raise file.damaged("its numbers are not little-endian")
    if len(models) != 1 or not _KNOWN.fullmatch(models[0]):
        raise UnsafeError(
            f"{path}: a file with {len(models)} programs, and torch.export.save writes one; nothing was run",
            todo="export one model to one file",
        )
    return file

"""Hostile and damaged files: nothing in them runs, and nothing but a BntoolsError comes out."""

from __future__ import annotations

import builtins
import io
import pickle
import pickletools
import random
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from bntools.core.pickles import open_pickle
from bntools.core.sniff import sniff
from bntools.core.source import load, state_of
from bntools.errors import BntoolsError, SourceError, UnsafeError


class Runs:
    """Pickles into a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def touch(canary: Path) -> Runs:
    return Runs(builtins.exec, f"open({str(canary)!r}, 'w').close()")


def everything_that_opens(path: Path, **options: Any) -> list[Callable[[], Any]]:
    return [
        lambda: load(path, **options),
        lambda: load(path, arch="torch.nn:Linear", **options),
        lambda: state_of(path, **options),
        lambda: open_pickle(sniff(path), **options),
    ]


def hidden_in(value: Any) -> dict[str, Any]:
    """The places that code hides in."""
    model = nn.Sequential(nn.Linear(2, 2))
    model.note = value
    hooked = nn.Linear(2, 2)
    hooked._forward_hooks[0] = value
    return {
        "alone": value,
        "in a state dict": {"weight": torch.ones(2), "bias": value},
        "beside a state dict": {"state_dict": {"weight": torch.ones(2)}, "args": value},
        "on a module": model,
        "as a hook": hooked,
        "as a key": {("a", value): 1},
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("place", hidden_in(None))
def test_code_in_a_pickle_does_not_run(tmp_path: Path, place: str, zipped: bool) -> None:
    canary, path = tmp_path / "canary", tmp_path / "m.pt"
    torch.save(hidden_in(touch(canary))[place], path, _use_new_zipfile_serialization=zipped)
    for open_it in everything_that_opens(path):
        with pytest.raises(UnsafeError, match=r"builtins\.exec.*nothing was run") as caught:
            open_it()
        assert "--unsafe" in caught.value.todo
    assert not canary.exists()


def test_the_canary_can_sing(tmp_path: Path) -> None:
    """The twin: the same file does run its code under --unsafe, and says so."""
    canary, path = tmp_path / "canary", tmp_path / "m.pt"
    torch.save(hidden_in(touch(canary))["on a module"], path)
    found = load(path, unsafe=True)
    assert canary.exists()
    assert found.unsafe
    assert "--unsafe" in found.what


def test_code_in_the_other_pickles_of_an_old_file_does_not_run(tmp_path: Path) -> None:
    """An old file is five pickles in a row; each of them can carry code."""
    canary, path = tmp_path / "canary", tmp_path / "m.pt"
    stream = io.BytesIO()
    torch.save({"weight": torch.ones(2)}, stream, _use_new_zipfile_serialization=False)
    stream.seek(0)
    parts = []
    for _ in range(5):
        start = stream.tell()
        for _ in pickletools.genops(stream):
            pass
        parts.append(stream.getvalue()[start : stream.tell()])
    rest = stream.read()
    path.write_bytes(b"".join(parts) + rest)
    assert torch.equal(state_of(path).tensors["weight"], torch.ones(2))
    for number in range(1, 5):
        evil = [pickle.dumps(touch(canary), 2) if i == number else part for i, part in enumerate(parts)]
        path.write_bytes(b"".join(evil) + rest)
        for open_it in everything_that_opens(path):
            with pytest.raises(UnsafeError, match=r"builtins\.exec"):
                open_it()
    assert not canary.exists()


EVIL_MODULE = "open({canary!r}, 'w').close()\nfrom torch import nn\nclass Layer(nn.Linear):\n    pass\n"


def test_a_module_that_the_file_names_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary, path = tmp_path / "canary", tmp_path / "m.pt"
    (tmp_path / "evilmod.py").write_text(EVIL_MODULE.format(canary=str(canary)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Linear(2, 2), path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    records["m/data.pkl"] = records["m/data.pkl"].replace(
        b"ctorch.nn.modules.linear\nLinear", b"cevilmod\nLayer"
    )
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    for open_it in everything_that_opens(path):
        with pytest.raises(UnsafeError, match=r"evilmod\.Layer") as caught:
            open_it()
        assert "--trust evilmod" in caught.value.todo
    assert "evilmod" not in sys.modules
    assert not canary.exists()
    assert type(load(path, trust=["evilmod"]).model).__name__ == "Layer"  # the twin: trust imports it
    assert canary.exists()
    del sys.modules["evilmod"]


def test_one_stranger_keeps_everything_from_being_imported(tmp_path: Path) -> None:
    """Judging comes before importing, for the trusted names as well."""
    name = "timm.models.xception"
    program = f"}}(U\x01ac{name}\nXception\n)\x81U\x01bcos\nsystem\nu".encode("latin-1")
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02" + program + b".")
    saved = {n: sys.modules.pop(n) for n in list(sys.modules) if n == name}
    try:
        with pytest.raises(UnsafeError, match=r"os\.system"):
            load(tmp_path / "m.pt")
        assert name not in sys.modules
    finally:
        sys.modules.update(saved)


def test_functions_of_trusted_packages_are_refused(tmp_path: Path) -> None:
    """Handed to torch's weights-only reader, a function would run with the file's arguments."""
    canary, path = tmp_path / "canary", tmp_path / "m.pt"
    torch.save({"a": Runs(torch.nn.init.constant_, torch.ones(2), 3.0)}, path)
    with pytest.raises(UnsafeError, match=r"torch\.nn\.init\.constant_"):
        load(path)
    model = nn.Linear(2, 2)
    model.act = torch.nn.functional.relu
    torch.save(model, path)
    with pytest.raises(UnsafeError, match=r"torch\.nn\.functional\.relu \(a function\)") as caught:
        load(path)
    assert "--unsafe" in caught.value.todo
    torch.save({"a": Runs(nn.Linear, 2, 2)}, path)
    with pytest.raises(UnsafeError, match=r"call torch\.nn\.modules\.linear\.Linear with its own arguments"):
        load(path)
    assert not canary.exists()


def test_a_bomb_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """292 KB that would inflate to a tensor of 300 MB."""
    path = tmp_path / "m.pt"
    torch.save({"weight": torch.zeros(75_000_000 // 1000)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/0")}
    # 75 000 elements become 75 000 000: as a number in the pickle, and as bytes that compress well.
    small, large = (75_000).to_bytes(4, "little"), (75_000_000).to_bytes(4, "little")
    records["m/data.pkl"] = records["m/data.pkl"].replace(b"J" + small, b"J" + large)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, data)
        info = zipfile.ZipInfo("m/data/0")
        info.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(info, "w") as record:
            for _ in range(300):
                record.write(bytes(1_000_000))
    assert path.stat().st_size < 400_000

    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the file was read")

    monkeypatch.setattr(torch, "load", forbidden)
    monkeypatch.setattr(zipfile.ZipFile, "open", forbidden)
    for unsafe in (False, True):
        for open_it in everything_that_opens(path, unsafe=unsafe):
            with pytest.raises(UnsafeError, match="a torch zip with 1 compressed record") as caught:
                open_it()
            assert caught.value.exit_code == 3
            assert "torch.save" in caught.value.todo


def test_an_export_program_is_not_unpickled(tmp_path: Path) -> None:
    """torch.export.load falls back to unsafe pickles."""
    canary, path = tmp_path / "canary", tmp_path / "m.pt2"
    stream = io.BytesIO()
    torch.save(touch(canary), stream)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/archive_format", b"pt2")
        archive.writestr("m/archive_version", b"0")
        archive.writestr("m/models/model.json", b"{}")
        archive.writestr("m/data/sample_inputs/model.pt", stream.getvalue())
    for unsafe in (False, True):
        for open_it in everything_that_opens(path, unsafe=unsafe)[:3]:
            with pytest.raises(SourceError, match=r"a damaged torch\.export program"):
                open_it()
    assert not canary.exists()


def test_deep_pickles_are_one_line(tmp_path: Path) -> None:
    program = b"\x80\x02}U\x01a" + b"(" * 100_000 + b"t" * 100_000 + b"s."
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", program)
    with pytest.raises(SourceError):
        load(tmp_path / "m.pt")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()


def originals() -> dict[str, bytes]:
    def saved(value: Any, **options: Any) -> bytes:
        stream = io.BytesIO()
        torch.save(value, stream, **options)
        return stream.getvalue()

    return {
        "module": saved(net()),
        "state dict": saved(net().state_dict()),
        "checkpoint": saved({"model": net().state_dict(), "epoch": 3}),
        "old": saved(net().state_dict(), _use_new_zipfile_serialization=False),
        "safetensors": safetensors.torch.save(net().state_dict()),
    }


ORIGINALS = originals()


@pytest.mark.parametrize("name", ORIGINALS)
def test_files_cut_off_anywhere_are_one_line(tmp_path: Path, name: str) -> None:
    content, path = ORIGINALS[name], tmp_path / "m.pt"
    path.write_bytes(content)
    assert "0.weight" in (state_of(path).tensors if name != "module" else load(path).model.state_dict())
    for cut in {*range(40), *range(40, len(content), len(content) // 40 + 1), len(content) - 1}:
        path.write_bytes(content[:cut])
        for open_it in everything_that_opens(path)[:3]:
            with pytest.raises(SourceError) as caught:
                open_it()
            assert str(path) in caught.value.message
            assert caught.value.todo
            assert "\n" not in str(caught.value)


def flipped(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        # Half of the flips go where the pickle or the header is: the rest is mostly numbers.
        at = rng.randrange(min(len(data), 2000) if rng.random() < 0.5 else len(data))
        data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


def noise(rng: random.Random) -> bytes:
    starts = [
        b"",
        b"PK\x03\x04",
        b"\x80\x02",
        ORIGINALS["old"][:14],
        ORIGINALS["old"][:40],
        b"\x08\x07",
        b"\x89HDF",
    ]
    return rng.choice(starts) + rng.randbytes(rng.choice([0, 1, 7, 60, 600, 6000]))


@pytest.mark.parametrize("name", [*ORIGINALS, "noise"])
def test_damaged_bytes_give_an_error_of_ours_or_a_model(tmp_path: Path, name: str) -> None:
    rng, path = random.Random(name), tmp_path / "m.pt"
    opened = refused = several_lines = 0
    start = time.monotonic()
    for _ in range(50):
        path.write_bytes(noise(rng) if name == "noise" else flipped(ORIGINALS[name], rng))
        for open_it in everything_that_opens(path)[:3]:
            try:
                open_it()
                opened += 1
            except BntoolsError as error:
                refused += 1
                several_lines += "\n" in str(error)
    assert several_lines == 0
    assert refused > 20
    assert opened > 0 or name == "noise"
    assert time.monotonic() - start < 60

"""What a file is, is told from its content; every message names the kind, the file and the remedy."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from torch import nn

from bntools.core.sniff import Kind, sniff
from bntools.core.zips import MAX_RECORDS
from bntools.errors import SourceError, UnsafeError


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()


def save_onnx(path: Path) -> None:
    info = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [info], [onnx.helper.make_tensor_value_info("y", 1, [1])])
    onnx.save(onnx.helper.make_model(graph), path)


def save_script(path: Path) -> None:
    # The extension that torch.jit.save would write, without its deprecation warnings.
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"model/{name}", pickle.dumps({}, 2))


def save_program(path: Path) -> None:
    program = torch.export.export(net(), (torch.ones(1, 3, 8, 8),))
    torch.export.save(program, path)


MODELS = {
    "module": (lambda p: torch.save(net(), p), Kind.MODULE, "a pickled module (zip, "),
    "old module": (
        lambda p: torch.save(net(), p, _use_new_zipfile_serialization=False),
        Kind.MODULE,
        "before PyTorch 1.6",
    ),
    "state dict": (lambda p: torch.save(net().state_dict(), p), Kind.STATE_DICT, "a state dict"),
    "old state dict": (
        lambda p: torch.save(net().state_dict(), p, _use_new_zipfile_serialization=False),
        Kind.STATE_DICT,
        "before PyTorch 1.6",
    ),
    "checkpoint": (lambda p: torch.save({"model": net(), "epoch": 3}, p), Kind.STATE_DICT, "checkpoint"),
    "safetensors": (
        lambda p: safetensors.torch.save_file(net().state_dict(), p),
        Kind.SAFETENSORS,
        "7 tensors",
    ),
    "foreign metadata": (
        lambda p: safetensors.torch.save_file(net().state_dict(), p, {"format": "pt"}),
        Kind.SAFETENSORS,
        "safetensors file",
    ),
    "artefact": (
        lambda p: safetensors.torch.save_file(net().state_dict(), p, {"bntools": "{}"}),
        Kind.ARTEFACT,
        "bntools artefact",
    ),
    "program": (save_program, Kind.PROGRAM, "torch.export program"),
    "script": (save_script, Kind.TORCHSCRIPT, "TorchScript archive"),
    "onnx": (save_onnx, Kind.ONNX, "ONNX model"),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("ending", ["bin", "safetensors", "onnx"])
def test_models_are_known_by_content_whatever_their_name(tmp_path: Path, name: str, ending: str) -> None:
    write, kind, phrase = MODELS[name]
    path = tmp_path / f"file.{ending}"
    with path.open("wb") as file:  # from a handle: torch.save and export.save look at names
        write(file if name not in ("onnx", "script", "safetensors", "foreign metadata", "artefact") else path)
    found = sniff(path)
    assert found.kind is kind
    assert phrase in found.detail
    assert found.path == path


def tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model"), io.BytesIO())
    return stream.getvalue()


def zipped(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return stream.getvalue()


def saved(value: object, **options: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ones(3))
    return stream.getvalue()


NOT_MODELS = {
    "empty": (b"", "an empty file", "do it again"),
    "html": (
        b"\n  <!DOCTYPE html><html><body>Sign in</body></html>",
        "an HTML page",
        "download the file itself",
    ),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML document", "download"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "a Git LFS pointer",
        "run `git lfs pull`",
    ),
    "gzip": (gzip.compress(b"model"), "a gzip archive", "unpack"),
    "tar": (tar(), "a tar archive", "unpack"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file (as Keras writes)", "convert"),
    "numpy": (array(), "a numpy array", "torch.save"),
    "npz": (zipped("a.npy", "b.npy"), "a numpy .npz archive", "torch.save"),
    "keras": (zipped("config.json", "model.weights.h5"), "a Keras archive", "torch.save"),
    "zip": (zipped("notes.txt"), "a zip archive that torch.save did not write", "torch.save"),
    "pickle": (pickle.dumps({"a": 1}), "a plain pickle (as pickle or joblib write)", "torch.save"),
    "text": (b"learning_rate: 0.1\nmodel: resnet18 \xe2\x80\x94 best\n", "plain text", "torch.save"),
    "noise": (bytes(range(128, 256)) * 3, "a file of unknown content", "torch.save"),
    "zeros": (bytes(4096), "a file of unknown content", "torch.save"),
    "tensor": (saved(torch.ones(3)), "a torch file that holds one tensor", "the model or its weights"),
    "list": (saved([torch.ones(3)]), "a torch file that holds a list", "state dict"),
    "number": (saved(3), "a torch file that holds a plain value", "state dict"),
    "cut zip": (saved(net())[:-30], "a truncated zip", "again"),
    "cut old file": (saved(net(), _use_new_zipfile_serialization=False)[:400], "damaged or cut off", "again"),
    "cut safetensors": (
        safetensors.torch.save({"a": torch.ones(9)})[:-3],
        "a truncated safetensors file",
        "again",
    ),
    "cut header": (
        safetensors.torch.save({"a": torch.ones(9)})[:30],
        "a truncated safetensors file",
        "again",
    ),
    "bad header": (struct.pack("<Q", 9) + b'{"a": 1, }', "a safetensors file with a damaged header", "again"),
    "zip with a tail": (saved(net()) + b"tail", "a damaged zip (there are bytes after", "again"),
    "zip with a head": (b"PK" + saved(net()), "a damaged zip", "again"),
}


@pytest.mark.parametrize("name", NOT_MODELS)
def test_what_is_no_model_is_named(tmp_path: Path, name: str) -> None:
    content, kind, remedy = NOT_MODELS[name]
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        sniff(path)
    assert kind in caught.value.message
    assert str(path) in caught.value.message
    assert remedy in caught.value.todo
    assert "\n" not in str(caught.value)


def test_missing_files_and_directories(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no such file"):
        sniff(tmp_path / "nothing.pt")
    with pytest.raises(SourceError, match="a directory, not a model file"):
        sniff(tmp_path)


def test_onnx_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save_onnx(path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(SourceError, match="a truncated ONNX file"):
        sniff(path)


def write_zip(path: Path, records: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return path


GOOD = {"m/data.pkl": pickle.dumps({}, 2), "m/version": b"3\n", "m/data/0": bytes(64)}


def test_a_plain_zip_of_the_right_records_passes(tmp_path: Path) -> None:
    """The twin of the refusals below: each of them changes one thing about this file."""
    assert sniff(write_zip(tmp_path / "m", GOOD)).kind is Kind.STATE_DICT


@pytest.mark.parametrize("name", ["m/../../x", "/etc/x", "m/..", "C:/x", "m\\x", "../m/x"])
def test_names_outside_their_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafeError, match="outside its folder") as caught:
        sniff(write_zip(tmp_path / "m", {**GOOD, name: b"x"}))
    assert caught.value.exit_code == 3


def test_compressed_records_are_refused_only_where_torch_writes_none(tmp_path: Path) -> None:
    with pytest.raises(UnsafeError, match="a torch zip with 3 compressed records"):
        sniff(write_zip(tmp_path / "m", GOOD, zipfile.ZIP_DEFLATED))
    script = {**GOOD, "m/constants.pkl": b"x", "m/code/a.py": b"a" * 9999}
    assert sniff(write_zip(tmp_path / "s", script, zipfile.ZIP_DEFLATED)).kind is Kind.TORCHSCRIPT


def test_too_many_records_are_refused_by_the_count_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {f"m/extra/{i}": b"" for i in range(MAX_RECORDS - len(GOOD))}
    assert sniff(write_zip(tmp_path / "most", {**GOOD, **names})).kind is Kind.STATE_DICT
    path = write_zip(tmp_path / "m", {**GOOD, **names, "m/data/one": b""})
    monkeypatch.setattr(zipfile, "ZipFile", None)  # the directory is not even parsed
    with pytest.raises(UnsafeError, match=f"{MAX_RECORDS + 1} records"):
        sniff(path)


@pytest.mark.parametrize("second", ["m/data.pkl", "m/DATA.PKL"])
def test_two_records_of_one_name_are_refused(tmp_path: Path, second: str) -> None:
    """torch's reader takes no notice of case: it could open another record than the one that was judged."""
    path = write_zip(tmp_path / "m", GOOD)
    with zipfile.ZipFile(path, "a") as archive, pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *a, **k: None)
        archive.writestr(second, b"x")
    with pytest.raises(UnsafeError, match="two records named"):
        sniff(path)


def edited(path: Path, entry: int, field: int, form: str, value: int) -> Path:
    """Change a field in the central directory's record number *entry*."""
    data = bytearray(path.read_bytes())
    at = -1
    for _ in range(entry + 1):
        at = data.index(b"PK\x01\x02", at + 1)
    struct.pack_into(form, data, at + field, value)
    path.write_bytes(bytes(data))
    return path


def test_records_that_share_bytes_are_refused(tmp_path: Path) -> None:
    path = edited(write_zip(tmp_path / "m", GOOD), entry=0, field=20, form="<L", value=90)
    path = edited(path, entry=0, field=24, form="<L", value=90)
    with pytest.raises(UnsafeError, match="overlaps another"):
        sniff(path)


def test_sizes_beyond_the_file_are_refused(tmp_path: Path) -> None:
    path = edited(write_zip(tmp_path / "m", GOOD), entry=2, field=24, form="<L", value=10**9)
    with pytest.raises(UnsafeError, match="claim more bytes than the file has"):
        sniff(path)


def test_two_names_for_one_record_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "m", GOOD)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"m/version", b"m/wersion", 1))  # in the record only, not in the directory
    with pytest.raises(SourceError, match="has two names"):
        sniff(path)


def test_sniffing_imports_no_torch(tmp_path: Path) -> None:
    """It answers before the two seconds that importing torch takes."""
    torch.save(net(), tmp_path / "m.pt")
    code = (
        "import sys; from bntools.core.sniff import sniff; print(sniff(sys.argv[1]).kind);"
        "heavy = {'torch', 'numpy', 'rich', 'safetensors'} & set(sys.modules); assert not heavy, heavy"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.pt")], capture_output=True, text=True, check=False
    )
    assert (run.stdout, run.stderr) == ("pickled module\n", "")


def test_a_huge_json_header_is_no_trap(tmp_path: Path) -> None:
    text = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    (tmp_path / "m").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(SourceError, match="damaged header"):
        sniff(tmp_path / "m")
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 10**15]}}).encode()
    (tmp_path / "n").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(SourceError, match="a truncated safetensors file"):
        sniff(tmp_path / "n")


def test_bytes_before_the_archive_are_refused(tmp_path: Path) -> None:
    """Python's reader steps over them and torch's does not: the two would read different records."""
    path = write_zip(tmp_path / "m", GOOD)
    path.write_bytes(b"PK\x03\x04before" + path.read_bytes())
    with pytest.raises(SourceError, match="there are bytes before the archive"):
        sniff(path)


@pytest.mark.parametrize("end", ['"x"', "null", "1.5", "[]"])
def test_an_offset_that_is_no_number(tmp_path: Path, end: str) -> None:
    header = f'{{"w":{{"dtype":"F32","shape":[1],"data_offsets":[0,{end}]}}}}'.encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(SourceError, match="damaged header"):
        sniff(path)


def test_an_old_file_that_claims_more_than_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"w": torch.ones(7)}, path, _use_new_zipfile_serialization=False)
    assert sniff(path).legacy
    data = path.read_bytes()
    at = data.index(b"K\x07", data.index(b"cpu"))
    path.write_bytes(data[:at] + b"J" + (2**30).to_bytes(4, "little") + data[at + 2 :])
    with pytest.raises(SourceError, match=f"says it holds {2**30} numbers"):
        sniff(path)

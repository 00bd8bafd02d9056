"""Calibration data from files and from code, and what is said of what is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import bntools as bn
from bntools.core.data import open_data
from tests.must_fold import Apply

X = torch.arange(24.0).reshape(8, 3)


def by_name() -> nn.Module:
    class Named(nn.Module):
        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            return ids * mask

    return Named()


def written(folder: Path, kind: str, arrays: dict[str, Tensor]) -> Path:
    path = folder / f"data.{kind}"
    first = next(iter(arrays.values()))
    if kind == "npy":
        np.save(path, first.numpy())
    elif kind == "npz":
        np.savez(path, **{name: each.numpy() for name, each in arrays.items()})
    elif kind == "safetensors":
        save_file(arrays, path)
    else:
        torch.save(first if len(arrays) == 1 else arrays, path)
    return path


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors", "pt", "pth"])
def test_a_file_is_cut_into_batches(tmp_path: Path, kind: str) -> None:
    batches: list[Any] = [*open_data(str(written(tmp_path, kind, {"x": X})), nn.Linear(3, 2), 3)]
    assert [len(batch.tensors[0]) for batch in batches] == [3, 3, 2]
    assert torch.equal(torch.cat([batch.tensors[0] for batch in batches]), X)


@pytest.mark.parametrize("kind", ["npz", "safetensors", "pt"])
def test_arrays_go_by_their_names_and_labels_are_left_out(tmp_path: Path, kind: str) -> None:
    file = written(tmp_path, kind, {"ids": X, "labels": X[:, 0].clone(), "mask": X + 1})
    (batch,) = open_data(str(file), by_name(), 8)
    assert set(batch.kwargs) == {"ids", "mask"}
    (batch,) = open_data(str(file), nn.Linear(3, 2), 8)
    assert not batch.kwargs
    assert [t.shape for t in batch.args] == [X.shape]


def test_code_makes_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
def loader(): return iter([1, 2])
ready = [3]
def none(): return 5
def fails(): return 1 / 0
"""
    (tmp_path / "their_data.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    assert [*open_data("their_data:loader", nn.Identity(), 1)] == [1, 2]
    assert [*open_data("their_data:ready", nn.Identity(), 1)] == [3]
    for name, message in {
        "none": "gives a int, no batches",
        "fails": "calling it failed with ZeroDivisionError",
        "missing": "has no 'missing'",
    }.items():
        with pytest.raises(bn.BntoolsError, match=message):
            open_data(f"their_data:{name}", nn.Identity(), 1)
    with pytest.raises(bn.BntoolsError, match="no module"):
        open_data("nobodys_data:loader", nn.Identity(), 1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.npy", None, "there is no such file; check the path given to --data"),
        ("x.pt", None, "there is no such file; check the path given to --data"),
        ("x.png", b"", r"\.png is not read"),
        ("x.npy", b"words", "no numpy file"),
        ("x.pt", b"words", "no file of plain tensors"),
        ("x.safetensors", b"words", "no file of plain tensors"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(bn.BntoolsError, match=message):
        open_data(str(path), nn.Identity(), 1)


@pytest.mark.parametrize("held", [{"a": 1}, [], {}, {"a": X, "b": "words"}])
def test_a_file_of_other_things_is_no_data(tmp_path: Path, held: Any) -> None:
    torch.save(held, tmp_path / "x.pt")
    with pytest.raises(bn.BntoolsError, match="expected tensors, it holds"):
        open_data(str(tmp_path / "x.pt"), nn.Identity(), 1)


def test_a_file_that_would_run_code_is_not_opened(tmp_path: Path) -> None:
    torch.save(Apply(print), tmp_path / "x.pt")
    with pytest.raises(bn.BntoolsError, match="no file of plain tensors"):
        open_data(str(tmp_path / "x.pt"), nn.Identity(), 1)


@pytest.mark.parametrize("arrays", [{"ids": X, "mask": X[:4]}, {"x": torch.tensor(1.0)}, {"x": X[:0]}])
def test_rows_that_do_not_fit_are_named(tmp_path: Path, arrays: dict[str, Tensor]) -> None:
    with pytest.raises(bn.BntoolsError, match="expected as many rows"):
        open_data(str(written(tmp_path, "npz", arrays)), by_name(), 2)


def test_a_folder_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(bn.BntoolsError, match="a folder"):
        open_data(str(tmp_path), nn.Identity(), 1)

"""Calibration data from files and from code, and what is said of what is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
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
    data = open_data(str(written(tmp_path, kind, {"x": X})), nn.Linear(3, 2), 3)
    for _ in range(2):
        batches = [*data]
        assert [len(batch.tensors[0]) for batch in batches] == [3, 3, 2]
        rows = torch.cat([batch.tensors[0] for batch in batches])
        assert torch.equal(rows[rows[:, 0].argsort()], X)
    assert data.samples == 8
    assert data.left_out == []


def rows_of(data: Iterable[Any]) -> list[int]:
    return torch.cat([batch.tensors[0] for batch in data])[:, 0].int().tolist()


def test_rows_are_drawn_the_same_ones_on_every_run(tmp_path: Path) -> None:
    """Of a file sorted by label, 100 rows of each of ten, neither a batch nor a part may be one label."""
    numbers = torch.arange(1000.0)
    file = str(written(tmp_path, "npy", {"x": torch.stack([numbers, numbers // 100], 1)}))
    data = open_data(file, nn.Linear(2, 2), 50, max_samples=200)
    rows = rows_of(data)
    assert data.samples == len(rows) == len(set(rows)) == 200
    counts = Counter(row // 100 for row in rows)
    # Drawn without replacement: 20 of each label, with a spread of 3.8.
    assert all(abs(counts[label] - 20) < 4 * 3.8 for label in range(10)), counts
    assert all(len({row // 100 for row in rows_of([batch])}) > 5 for batch in data)
    torch.manual_seed(1)
    assert rows_of(open_data(file, nn.Linear(2, 2), 7))[:200] == rows_of(data) == rows
    torch.manual_seed(2)
    assert rows_of(open_data(file, nn.Linear(2, 2), 7, max_samples=2000)) != list(range(1000))


def test_arrays_of_a_file_are_drawn_together(tmp_path: Path) -> None:
    file = written(tmp_path, "npz", {"ids": X, "mask": X + 1})
    for batch in open_data(str(file), by_name(), 3):
        assert torch.equal(batch.kwargs["ids"] + 1, batch.kwargs["mask"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_rows_that_are_not_finite_are_named_or_left_out(
    tmp_path: Path, bad: float, dtype: torch.dtype
) -> None:
    mask = X.to(dtype, copy=True)
    mask[5, 1] = mask[2, 2] = bad
    file = written(tmp_path, "safetensors", {"ids": X.long(), "mask": mask})
    with pytest.raises(bn.SourceError, match=r"data\.safetensors: row 2 holds NaN or infinity; .*--skip-bad"):
        open_data(str(file), by_name(), 3)
    data = open_data(str(file), by_name(), 3, skip=True)
    assert data.left_out == ["row 2", "row 5"]
    assert data.samples == 6
    for _ in range(2):
        batches = [*data]
        assert [len(batch.kwargs["ids"]) for batch in batches] == [3, 3]
        ids = torch.cat([batch.kwargs["ids"] for batch in batches])
        assert sorted(ids[:, 0].tolist()) == [0, 3, 9, 12, 18, 21]
    assert data.left_out == ["row 2", "row 5"]


def test_a_row_is_looked_at_in_all_arrays(tmp_path: Path) -> None:
    for name in ("ids", "mask"):
        arrays = {"ids": X.clone(), "mask": X.clone()}
        arrays[name][4, 0] = float("nan")
        data = open_data(str(written(tmp_path, "npz", arrays)), by_name(), 3, skip=True)
        assert data.left_out == ["row 4"]


def test_only_rows_that_were_drawn_are_looked_at(tmp_path: Path) -> None:
    drawn = rows_of(open_data(str(written(tmp_path, "pt", {"x": X})), nn.Linear(3, 2), 3, max_samples=5))
    for row in range(8):
        spoilt = X.clone()
        spoilt[row] = float("nan")
        data = open_data(
            str(written(tmp_path, "pt", {"x": spoilt})), nn.Linear(3, 2), 3, max_samples=5, skip=True
        )
        assert data.left_out == ([f"row {row}"] if 3 * row in drawn else [])
        assert rows_of(data) == [each for each in drawn if each != 3 * row]


def test_rows_may_hold_one_number_none_or_all_be_left_out(tmp_path: Path) -> None:
    for shape in ((8,), (8, 0, 2), (8, 2, 1, 3)):
        data = open_data(str(written(tmp_path, "npy", {"x": torch.zeros(shape)})), nn.Linear(3, 2), 3)
        assert [batch.tensors[0].shape for batch in data] == [(n, *shape[1:]) for n in (3, 3, 2)]
    none = open_data(str(written(tmp_path, "npy", {"x": X / 0})), nn.Linear(3, 2), 3, skip=True)
    assert (none.samples, [*none], len(none.left_out)) == (0, [], 8)


@pytest.mark.parametrize("kind", ["npz", "safetensors", "pt"])
def test_arrays_go_by_their_names_and_labels_are_left_out(tmp_path: Path, kind: str) -> None:
    file = written(tmp_path, kind, {"ids": X, "labels": X[:, 0].clone(), "mask": X + 1})
    (batch,) = open_data(str(file), by_name(), 8)
    assert set(batch.kwargs) == {"ids", "mask"}
    (batch,) = open_data(str(file), nn.Linear(3, 2), 8)
    assert not batch.kwargs
    assert batch.args[0].sum(0).tolist() == X.sum(0).tolist()
    assert [t.shape for t in batch.args] == [X.shape]


def test_code_makes_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
def loader(): return iter([1, 2])
ready = [3, float("inf"), 4]
def none(): return 5
def fails(): return 1 / 0
"""
    (tmp_path / "their_data.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    assert [*open_data("their_data:loader", nn.Identity(), 1)] == [1, 2]
    ready = open_data("their_data:ready", nn.Identity(), 1, max_samples=1)
    assert [*ready] == [*ready] == [3, float("inf"), 4]  # as they are: in their order, and all of them
    assert (ready.samples, ready.left_out, ready.preparation) == (None, [], None)
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
        ("x" * 5000 + ".pt", None, "there is no such file"),
        ("x" * 5000, None, "no ending is not read"),
        ("x.png", b"", r"\.png is not read; give a folder of images, a \.npy"),
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

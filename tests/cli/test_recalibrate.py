"""`bntools recalibrate`: what it writes, what it says, and how it ends."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

import bntools as bn
from tests.cli.conftest import Run, digests
from tests.season import season

Saved = Callable[..., Path]


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3, 2)
        return season(nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(), second, nn.BatchNorm2d(5)))


@pytest.fixture
def data(folder: Path) -> np.ndarray:
    array = np.random.default_rng(0).normal(1, 2, (70, 3, 9, 9)).astype(np.float32)
    np.save(folder / "x.npy", array)
    return array


def test_it_writes_what_the_api_gives(run: Run, saved: Saved, data: np.ndarray) -> None:
    saved(net(), "my model.pt")
    ran = run("recalibrate", "my model.pt", "--data", "x.npy", "--batch-size", "16")
    assert ran.code == 0, ran.err
    assert "2 of 2 BatchNorms recalibrated" in ran.out
    assert "70 samples in 5 batches, all in lock-step: exact" in ran.out
    found = bn.load("my model.recalibrated.pt").state_dict()
    expected = bn.recalibrate(net(), [torch.from_numpy(data)]).model.state_dict()
    for key, value in expected.items():
        if "num_batches" not in key:
            torch.testing.assert_close(found[key], value)
    assert found["1.num_batches_tracked"] == 5


def test_the_same_file_twice_is_the_same_bytes(run: Run, saved: Saved, data: np.ndarray) -> None:
    saved(net())
    for name in ("a.pt", "b.pt"):
        assert run("recalibrate", "model.pt", "--data", "x.npy", "-o", name).code == 0
    assert Path("a.pt").read_bytes() == Path("b.pt").read_bytes()


def test_weights_keep_their_other_entries_and_replay(run: Run, saved: Saved, data: np.ndarray) -> None:
    saved({"state_dict": net().state_dict(), "epoch": 7}, "weights.pt")
    Path("arch.py").write_text("from tests.cli.test_recalibrate import net\n")
    ran = run("recalibrate", "weights.pt", "--arch", "arch:net", "--data", "x.npy")
    assert ran.code == 0, ran.err
    held = torch.load("weights.recalibrated.pt", weights_only=True)
    assert held["epoch"] == 7
    again = bn.replay("weights.recalibrated.pt", net()).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in held["state_dict"].items())
    net().load_state_dict(held["state_dict"])  # the architecture is what it was


def test_json_is_one_object(run: Run, saved: Saved, data: np.ndarray) -> None:
    saved(net())
    ran = run("recalibrate", "model.pt", "--data", "x.npy", "--json", "--dry-run", "--only", "4")
    told: dict[str, Any] = json.loads(ran.out)
    assert told["command"] == "recalibrate"
    assert [edit["site"]["name"] for edit in told["plan"]["edits"]] == ["4"]
    assert [refusal["reason"] for refusal in told["plan"]["refusals"]] == ["not-selected"]
    assert [layer["path"] for layer in told["drift"]["layers"]] == ["4"]
    assert told["drift"]["samples"] == 70
    assert told["output"] is None
    assert not Path("model.recalibrated.pt").exists()


@pytest.mark.parametrize(("form", "words"), [("github", "::notice"), ("markdown", "| `1` |")])
def test_the_other_formats(run: Run, saved: Saved, data: np.ndarray, form: str, words: str) -> None:
    saved(net())
    ran = run("recalibrate", "model.pt", "--data", "x.npy", "--format", form, "--dry-run")
    assert ran.code == 0
    assert words in ran.out


def test_groups_and_what_they_are_bounded_by(run: Run, saved: Saved, data: np.ndarray) -> None:
    saved(net())
    how = ("--virtual-batch", "16", "--no-stop", "--dry-run")
    ran = run("recalibrate", "model.pt", "--data", "x.npy", *how)
    assert "70 samples in 5 batches, 5 groups of at most 16" in ran.out
    ran = run("recalibrate", "model.pt", "--data", "x.npy", "--moving-average", "--dry-run")
    assert "3 groups of at most 32" in ran.out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data", "y.npy"], 2, "y.npy: there is no such file"),
        (["--data", "x.npy", "--only", "9"], 2, "only: '9' matches no BatchNorm"),
        (["--data", "x.npy", "--virtual-batch", "some"], 2, "--virtual-batch: 'some' is none"),
        (["--data", "x.npy", "-o", "model.onnx"], 2, ".onnx is not written"),
        (["--data", "x.npy", "-o", "model.pt"], 2, "exists"),
        (["--data", "bad.npy"], 2, "bad.npy: row 40 holds NaN or infinity"),
        (["--data", "flat.npy"], 4, "batch 0: the model does not run on it"),
        (["--data", "x.npy", "--only", "1", "--strict"], 1, "1 of 2 BatchNorms keep their statistics"),
        (
            ["--data", "x.npy", "--resize", "9"],
            2,
            "--resize: is for a folder of images, --data x.npy is none",
        ),
        (["--data", "x.npy", "--workers", "2"], 2, "--workers: is for a folder of images"),
        (["--data", "photos", "--mean", "0.5,half"], 2, "--mean: '0.5,half' is no list of numbers"),
        (["--data", "photos", "--std", ""], 2, "--std: '' is no list of numbers"),
        (["--data", "photos", "--std", "1,1,0"], 2, "a --std above 0"),
        (["--data", "photos", "--mean", "0.5"], 2, "expected one number each or three, there are 1 and 3"),
        (["--data", "photos", "--resize", "8", "--crop", "9"], 2, "--crop: 9 pixels do not fit"),
        (["--data", "photos"], 2, "bad.png: cannot be read: no image"),
        (["--data", "empty"], 2, "empty: a folder without images"),
        ([], 2, "--data"),
    ],
)
def test_what_goes_wrong_writes_nothing(
    run: Run, saved: Saved, data: np.ndarray, folder: Path, arguments: list[str], code: int, message: str
) -> None:
    saved(net())
    bad = data.copy()
    bad[40, 0, 0, 0] = np.nan
    np.save("bad.npy", bad)
    np.save("flat.npy", data.reshape(70, -1))
    for name in ("photos", "empty"):
        Path(name).mkdir()
    Path("photos/bad.png").write_bytes(b"words")
    before = digests(folder)
    ran = run("recalibrate", "model.pt", *arguments)
    assert ran.code == code, ran.err
    assert message in ran.err
    assert digests(folder) == before


def test_bad_rows_are_left_out_and_named(run: Run, saved: Saved, data: np.ndarray) -> None:
    saved(net())
    data[40, 0, 0, 0] = np.inf
    np.save("bad.npy", data)
    ran = run("recalibrate", "model.pt", "--data", "bad.npy", "--skip-bad")
    assert ran.code == 0
    assert "69 samples in 3 batches" in ran.out
    assert re.search(r"^left out +row 40$", ran.out, re.MULTILINE)
    found = bn.load("model.recalibrated.pt").state_dict()
    others = torch.from_numpy(np.delete(data, 40, 0))
    for key, value in bn.recalibrate(net(), [others]).model.state_dict().items():
        if "num_batches" not in key:
            torch.testing.assert_close(found[key], value)


@pytest.mark.parametrize("form", ["json", "github", "markdown"])
def test_every_format_says_what_was_left_out(run: Run, saved: Saved, data: np.ndarray, form: str) -> None:
    saved(net())
    data[20:40, 0, 0, 0] = np.nan
    np.save("bad.npy", data)
    for name, rows in (("bad.npy", [f"row {row}" for row in range(20, 40)]), ("x.npy", [])):
        ran = run("recalibrate", "model.pt", "--data", name, "--skip-bad", "--dry-run", "--format", form)
        assert ran.code == 0, ran.err
        if form == "json":
            assert json.loads(ran.out)["left_out"] == rows
        else:
            assert ("row 20" in ran.out) == ("row 27" in ran.out) == bool(rows)
            assert ("and 12 more" in ran.out) == bool(rows)
            assert "row 28" not in ran.out


def test_what_was_not_drawn_is_not_missed(run: Run, saved: Saved, data: np.ndarray) -> None:
    saved(net())
    data[20:40, 0, 0, 0] = np.nan
    np.save("bad.npy", data)
    how = ("--data", "bad.npy", "--skip-bad", "--dry-run", "--json", "--max-samples", "30")
    told = json.loads(run("recalibrate", "model.pt", *how).out)
    assert told["drift"]["samples"] + len(told["left_out"]) == 30


@pytest.fixture
def photos(folder: Path) -> Path:
    """Two classes of photos of many sizes, and one file that is none."""
    photos = folder / "my photos"
    for at in range(21):
        path = photos / "äb"[at % 2] / f"{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (20 + at, 30 - at // 3, 3)
        Image.fromarray(np.random.default_rng(at).integers(0, 256, size, dtype=np.uint8)).save(path)
    (photos / "words.png").write_bytes(b"words")
    return photos


SMALL = ("--resize", "12", "--crop", "10", "--mean", "0.1,0.2,0.3", "--std", "0.4,0.5,0.6")


def test_a_folder_of_images(run: Run, saved: Saved, photos: Path) -> None:
    saved(net())
    how = ("--data", photos, *SMALL, "--workers", "2", "--batch-size", "4", "--skip-bad")
    ran = run("recalibrate", "model.pt", *how)
    assert ran.code == 0, ran.err
    assert "21 samples in 6 batches" in ran.out
    assert re.search(r"^left out +words\.png$", ran.out, re.MULTILINE)
    told = "resize 12, crop 10, bilinear, mean 0.1 0.2 0.3, std 0.4 0.5 0.6"
    assert re.search(f"^note +images: {told}$", ran.err, re.MULTILINE)
    transform = transforms.Compose(
        [
            transforms.Resize(12),
            transforms.CenterCrop(10),
            transforms.ToTensor(),
            transforms.Normalize((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        ]
    )
    whole = torch.stack([transform(Image.open(path)) for path in photos.glob("?/*.png")])
    found = bn.load("model.recalibrated.pt").state_dict()
    for key, value in bn.recalibrate(net(), [whole]).model.state_dict().items():
        if "num_batches" not in key:
            torch.testing.assert_close(found[key], value)


def test_a_part_of_a_folder_is_the_same_twice(run: Run, saved: Saved, photos: Path) -> None:
    saved(net())
    for name in ("a.pt", "b.pt"):
        how = ("--data", photos, *SMALL, "--skip-bad", "--max-samples", "9", "-o", name)
        ran = run("recalibrate", "model.pt", *how)
        assert ran.code == 0, ran.err
    assert re.search(r" [89] samples in 1 batch,", ran.out)  # eight, if the one that is none is among them
    assert Path("a.pt").read_bytes() == Path("b.pt").read_bytes()


def test_defaults_for_images_do_not_disturb_files(
    run: Run, saved: Saved, data: np.ndarray, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(net())
    for option, value in zip(SMALL[::2], SMALL[1::2], strict=True):
        monkeypatch.setenv(f"BNTOOLS_{option[2:].upper()}", value)
    Path("pyproject.toml").write_text("[tool.bntools.recalibrate]\nworkers = 1\n")
    assert run("recalibrate", "model.pt", "--data", "x.npy", "--dry-run").code == 0
    ran = run("recalibrate", "model.pt", "--data", photos, "--dry-run", "--skip-bad", "--crop", "11")
    assert ran.code == 0
    assert "images: resize 12, crop 11, bilinear, mean 0.1 0.2 0.3" in ran.err


def test_batches_of_code_are_left_out_by_their_number(run: Run, saved: Saved, data: np.ndarray) -> None:
    saved(net())
    data[40, 0, 0, 0] = np.inf
    np.save("bad.npy", data)
    Path("their_batches.py").write_text(
        "import numpy, torch\ndef loader(): return torch.from_numpy(numpy.load('bad.npy')).split(32)\n"
    )
    ran = run("recalibrate", "model.pt", "--data", "their_batches:loader", "--skip-bad", "--dry-run")
    assert ran.code == 0, ran.err
    assert "38 samples in 2 batches" in ran.out
    assert "left out with NaN or infinity: 1" in ran.out


def test_the_drift_is_drawn_on_demand(run: Run, saved: Saved, data: np.ndarray) -> None:
    saved(net())
    ran = run("recalibrate", "model.pt", "--data", "x.npy", "--plot", "the drift.svg")
    assert ran.code == 0, ran.err
    assert "the drift.svg" in ran.out
    assert "<svg" in Path("the drift.svg").read_text()
    for arguments, message in {
        ("--plot", "drift.doc"): "drift.doc",
        ("--plot", "the drift.svg", "--force", "--strict", "--only", "1"): "keep their statistics",
        ("--plot", "the drift.svg", "-o", "other.pt"): "exists",
    }.items():
        Path("model.recalibrated.pt").unlink(missing_ok=True)
        before = Path("the drift.svg").read_bytes()
        ran = run("recalibrate", "model.pt", "--data", "x.npy", *arguments)
        assert ran.code in (1, 2)
        assert message in ran.err
        assert Path("the drift.svg").read_bytes() == before
        assert not Path("other.pt").exists()


def test_where_and_in_what_type_it_runs(run: Run, saved: Saved, data: np.ndarray) -> None:
    saved(net())
    ran = run("recalibrate", "model.pt", "--data", "x.npy", "--autocast", "bfloat16", "--device", "cpu")
    assert ran.code == 0, ran.err
    found = bn.load("model.recalibrated.pt")[1].running_mean
    near = bn.recalibrate(net(), [torch.from_numpy(data)]).model[1].running_mean
    assert 1e-6 < (found - near).abs().max() < 0.05
    for arguments, message in {
        ("--autocast", "int8"): "--autocast: 'int8' is none; ",
        ("--device", "gpu7"): "--device: 'gpu7' cannot be used",
        ("--device", "meta"): "nothing is computed on meta",
    }.items():
        ran = run("recalibrate", "model.pt", "--data", "x.npy", "--dry-run", *arguments)
        assert ran.code == 2
        assert message.rstrip("; ") in ran.err

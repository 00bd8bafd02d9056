"""A folder of images: the pixels of torchvision and timm, in a fair order, and nothing stays behind."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.datasets.folder import default_loader

import bntools as bn
from bntools.core.data import open_data
from bntools.core.images import Images, find_images
from bntools.core.preparation import Preparation

SMALL = Preparation(20, 16, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
KINDS = {
    "RGB": ["jpg", "png", "bmp", "webp", "tiff", "ppm", "JPEG"],
    "L": ["jpg", "png", "pgm", "tif"],
    "RGBA": ["png", "webp"],
    "LA": ["png"],
    "P": ["png", "gif"],
    "1": ["png"],
    "CMYK": ["jpg", "tif"],
    "I;16": ["png"],
}
SIZES = [(50, 37), (37, 50), (20, 31), (300, 21), (7, 5), (20, 20)]


def image(mode: str, size: tuple[int, int] = (50, 37), seed: int = 0) -> Image.Image:
    numbers = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(numbers.integers(0, 2**16, size[::-1], dtype=np.uint16))
    channels = {"L": (), "1": (), "RGBA": (4,), "CMYK": (4,), "LA": (2,)}.get(mode, (3,))
    noise = Image.fromarray(
        numbers.integers(0, 256, (*size[::-1], *channels), dtype=np.uint8), mode if mode == "CMYK" else None
    )
    return noise if noise.mode == mode else noise.quantize(64) if mode == "P" else noise.convert(mode)


def written(folder: Path, count: int) -> list[Path]:
    for at in range(count):
        image("RGB", (24, 21), at).save(folder / f"{at:03}.png")
    return sorted(folder.iterdir())


def read(path: Path, preparation: Preparation) -> Tensor:
    (batch,) = Images(path.parent, [path], preparation, 1)
    return batch


def torchvisions(path: Path, preparation: Preparation) -> Tensor:
    filters = transforms.InterpolationMode
    steps: list[Any] = [
        transforms.Resize(preparation.resize, filters(preparation.interpolation)),
        transforms.CenterCrop(preparation.crop),
        transforms.ToTensor(),
        transforms.Normalize(preparation.mean, preparation.std),
    ]
    if len(preparation.mean) == 1:
        steps.insert(0, transforms.Grayscale())
    return by_loader(path, transforms.Compose(steps))


def by_loader(path: Path, transform: Callable[[Any], Tensor]) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of palettes with transparent colours
        return transform(default_loader(str(path)))[None]


@pytest.fixture
def reading() -> Iterator[Callable[[], int]]:
    """How many threads read; none of them may outlive the test."""

    def count() -> int:
        return sum(each.name.startswith("bntools-images") for each in threading.enumerate())

    yield count
    until(lambda: not count())


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize(("mode", "kind"), [(mode, kind) for mode in KINDS for kind in KINDS[mode]])
@pytest.mark.parametrize("grey", [False, True])
def test_pixels_are_those_of_torchvision(tmp_path: Path, mode: str, kind: str, grey: bool) -> None:
    path = tmp_path / f"x.{kind}"
    image(mode).save(path)
    preparation = Preparation(20, 16, (0.3,), (0.7,)) if grey else SMALL
    assert torch.equal(read(path, preparation), torchvisions(path, preparation))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "lanczos"])
@pytest.mark.parametrize(("resize", "crop"), [(20, 16), (20, 15), (21, 16), (16, 16)])
def test_sizes_are_those_of_torchvision(
    tmp_path: Path, size: tuple[int, int], interpolation: str, resize: int, crop: int
) -> None:
    path = tmp_path / "x.png"
    image("RGB", size).save(path)
    preparation = Preparation(resize, crop, interpolation=interpolation)
    assert torch.equal(read(path, preparation), torchvisions(path, preparation))


def test_a_batch_lies_in_memory_as_a_loader_makes_it(tmp_path: Path) -> None:
    (batch,) = Images(tmp_path, written(tmp_path, 3), SMALL, 3)
    assert (batch.dtype, batch.shape) == (torch.float32, (3, 3, 16, 16))
    assert batch.is_contiguous()


def test_orientation_and_transparent_colours_change_nothing(tmp_path: Path) -> None:
    turned, glassy = tmp_path / "x.jpg", tmp_path / "x.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    image("RGB").save(turned, exif=exif)
    image("P").save(glassy, transparency=bytes(range(64)))
    for path in (turned, glassy):
        assert torch.equal(read(path, SMALL), torchvisions(path, SMALL))


def test_a_model_of_timm_gets_what_timm_gives_it(tmp_path: Path) -> None:
    model = timm.create_model("resnet18")
    config = timm.data.resolve_model_data_config(model)
    assert (config["crop_pct"], config["interpolation"]) == (0.95, "bicubic")  # others than ours
    image("RGB", (301, 260)).save(tmp_path / "x.png")
    (batch,) = open_data(str(tmp_path), model, 1)
    assert torch.equal(batch, by_loader(tmp_path / "x.png", timm.data.create_transform(**config)))
    (batch,) = open_data(str(tmp_path), model, 1, crop=96)
    config["input_size"] = (3, 96, 96)
    assert torch.equal(batch, by_loader(tmp_path / "x.png", timm.data.create_transform(**config)))


def with_config(**entries: Any) -> nn.Module:
    model = nn.Identity()
    model.pretrained_cfg = entries
    return model


def test_a_configuration_may_be_an_object_and_may_squash(tmp_path: Path) -> None:
    found = timm.models.get_pretrained_cfg("tf_efficientnetv2_l.in1k")
    assert found.crop_mode == "squash"
    model = nn.Identity()
    model.default_cfg = found
    image("RGB", (301, 260)).save(tmp_path / "x.png")
    (batch,) = open_data(str(tmp_path), model, 1)
    config = timm.data.resolve_data_config(pretrained_cfg=found.to_dict())
    assert torch.equal(batch, by_loader(tmp_path / "x.png", timm.data.create_transform(**config)))


def test_what_was_asked_for_goes_before_what_the_model_says() -> None:
    plain = nn.Identity()
    assert Preparation.of(plain) == Preparation()
    assert Preparation.of(plain, crop=112) == Preparation(128, 112)
    assert Preparation.of(plain, resize=300, crop=112) == Preparation(300, 112)
    grey = with_config(input_size=(1, 28, 28), mean=[0.1], std=[0.3], crop_pct=0.9, interpolation="bilinear")
    assert Preparation.of(grey) == Preparation(31, 28, (0.1,), (0.3,))
    colours = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    assert Preparation.of(grey, mean=colours[0], std=colours[1]) == Preparation(31, 28, *colours)
    assert Preparation.of(with_config(input_size=(3, 32, 32))).interpolation == "bicubic"  # as timm has it
    told = "resize 256, crop 224, bilinear, mean 0.485 0.456 0.406, std 0.229 0.224 0.225"
    assert str(Preparation()) == told


@pytest.mark.parametrize(
    ("config", "asked", "message"),
    [
        ({}, {"crop": 300, "resize": 256}, "--crop: 300 pixels do not fit into the shorter side"),
        ({}, {"mean": (0.5,)}, "one number each or three, there are 1 and 3"),
        ({}, {"mean": (0.5, 0.5), "std": (0.5, 0.5)}, "one number each or three, there are 2 and 2"),
        ({}, {"std": (0.5, 0.5, 0.0)}, "give finite numbers, and a --std above 0"),
        ({}, {"std": (0.5, 0.5, -0.5)}, "give finite numbers, and a --std above 0"),
        ({}, {"mean": (0.5, float("nan"), 0.5)}, "give finite numbers"),
        ({"input_size": (1, 28, 28)}, {}, "expected a mean for each of 1 channels"),
        ({"input_size": (4, 28, 28)}, {}, "expected a mean for each of 4 channels"),
        ({"input_size": (3, 320, 256)}, {}, "expected squares from the middle, it wants images of 320x256"),
        ({"crop_mode": "border"}, {"crop": 112}, "expected squares from the middle"),
        ({"interpolation": "random"}, {}, "'random' is none of nearest"),
        ({"input_size": "large"}, {}, "expected what timm writes there"),
        ({"crop_pct": 0}, {}, "expected what timm writes there"),
    ],
)
def test_what_does_not_fit_is_a_usage_error(
    config: dict[str, Any], asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(bn.UsageError, match=message):
        Preparation.of(with_config(**config), **asked)


def test_the_way_out_is_to_say_what_is_wanted() -> None:
    """The twin of the errors above: with these, nothing is left to be guessed."""
    for config in ({"input_size": (3, 320, 256)}, {"crop_mode": "border"}):
        assert Preparation.of(with_config(**config), resize=64, crop=32).crop == 32
    grey = with_config(input_size=(1, 28, 28))
    assert Preparation.of(grey, mean=(0.5,), std=(0.5,)).mode == "L"


def test_images_are_found_by_their_ending(tmp_path: Path) -> None:
    there = ["b.PNG", "a/x.jpeg", "a/deep er/ß ü.Jpg", "c/日本.webp"]
    aside = [".hidden.png", ".cache/x.png", "a/._x.jpeg", "a/x.txt", "png", "a/x.png.part"]
    for name in (*there, *aside):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(tmp_path) == sorted(tmp_path / name for name in there)


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.png").touch()
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / name).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    assert find_images(folder) == [folder / "one" / "x.png"]


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ".x.png").touch()
    (tmp_path / "x.txt").touch()
    with pytest.raises(bn.SourceError, match="a folder without images; give one with jpg, jpeg, png"):
        open_data(str(tmp_path), nn.Identity(), 1)


def test_a_folder_that_may_not_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, 1)
    (tmp_path / "closed").mkdir()
    real = os.scandir

    def scandir(path: Any) -> Any:  # rights do not keep root out
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(bn.SourceError, match="closed: cannot be read: Permission denied"):
        open_data(str(tmp_path), nn.Identity(), 1)


def damaged(path: Path, what: str) -> None:
    if what == "cut short":
        image("RGB").save(path, "JPEG")
        path.write_bytes(path.read_bytes()[:-900])
    elif what == "cut in its head":
        image("RGB").save(path, "PNG")
        path.write_bytes(path.read_bytes()[:40])
    elif what == "PostScript":  # which Pillow would hand to Ghostscript
        image("RGB").save(path, "EPS")
    elif what == "a link to nothing":
        path.symlink_to("gone")
    elif what == "a pipe":
        os.mkfifo(path)
    elif what == "a thin line":
        image("RGB", (5000, 1)).save(path, "PNG")
    else:
        path.write_bytes(what.encode())


BAD = {
    "cut short": "cannot be read: ",
    "cut in its head": "cannot be read: ",
    "PostScript": "cannot be read: no image",
    "words": "cannot be read: no image",
    "": "cannot be read: no image",
    "a link to nothing": "no ordinary file",
    "a pipe": "no ordinary file",
    "a thin line": "5000x1 pixels, which take 1280000x256; ",
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_read_is_named_or_left_out(tmp_path: Path, what: str) -> None:
    fine = written(tmp_path, 6)
    (tmp_path / "class a").mkdir()
    bad = tmp_path / "class a" / "bäd.jpg"
    damaged(bad, what)
    with pytest.raises(bn.SourceError) as caught:
        [*open_data(str(tmp_path), nn.Identity(), 2)]
    assert str(caught.value).startswith(f"{bad}: {BAD[what]}")
    assert "--skip-bad" in caught.value.todo
    data = open_data(str(tmp_path), nn.Identity(), 2, skip=True)
    for _ in range(2):  # the second time the name is known
        batches = [*data]
        assert [len(batch) for batch in batches] == [2, 2, 2]
        assert data.left_out == ["class a/bäd.jpg"]
    rows = {tuple(row.flatten().tolist()) for row in torch.cat(batches)}
    assert rows == {tuple(torchvisions(path, Preparation()).flatten().tolist()) for path in fine}


def test_what_was_left_out_is_sorted(tmp_path: Path) -> None:
    written(tmp_path, 12)
    bad = [f"{at:03}.png" for at in range(0, 12, 2)]
    for name in bad:
        (tmp_path / name).write_bytes(b"words")
    data = open_data(str(tmp_path), nn.Identity(), 4, skip=True)
    assert [len(batch) for batch in data] == [4, 2]
    assert data.left_out == bad
    assert data.samples == 12


@pytest.mark.parametrize("most", [50 * 37 - 1, 50 * 37 // 2 - 1], ids=["Pillow warns", "Pillow refuses"])
@pytest.mark.parametrize("filter_", ["error", "ignore"])
def test_a_bomb_is_a_file_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, filter_: Any
) -> None:
    path = tmp_path / "x.png"
    image("RGB").save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50 * 37)
    read(path, SMALL)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
    images = Images(tmp_path, [path], SMALL, 1, skip=True)
    with warnings.catch_warnings():
        warnings.simplefilter(filter_)
        with pytest.raises(bn.SourceError, match=r"x\.png: .*pixels"):
            read(path, SMALL)
        assert [*images] == []
    assert images.left_out == ["x.png"]


def test_without_pillow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, 1)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(bn.UsageError, match=r"needs Pillow; pip install 'bntools\[images\]'"):
        open_data(str(tmp_path), nn.Identity(), 1)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_order_is_drawn_and_always_the_same(tmp_path: Path, workers: int) -> None:
    in_order = [read(path, Preparation()) for path in written(tmp_path, 11)]
    data = open_data(str(tmp_path), nn.Identity(), 4, workers=workers)
    batches = [*data]
    torch.manual_seed(1)
    again = [*open_data(str(tmp_path), nn.Identity(), 4)]
    assert data.samples == 11
    assert [len(batch) for batch in batches] == [4, 4, 3]
    for other in ([*data], again):
        assert all(torch.equal(a, b) for a, b in zip(batches, other, strict=True))
    rows = [row.flatten().tolist() for row in torch.cat(batches)]
    expected = [row.flatten().tolist() for row in in_order]
    assert rows != expected
    assert sorted(rows) == sorted(expected)


def test_a_part_is_like_the_whole(tmp_path: Path) -> None:
    """Of each of four classes, sorted by name, 100 images; a quarter of all is drawn."""
    for label, name in enumerate("abcd"):
        (tmp_path / name).mkdir()
        for at in range(100):
            Image.new("RGB", (2, 2), (label, at, 0)).save(tmp_path / name / f"{at}.png")
    plain: dict[str, Any] = {"crop": 2, "resize": 2, "mean": (0.0,) * 3, "std": (1 / 255,) * 3}
    data = open_data(str(tmp_path), nn.Identity(), 25, max_samples=100, **plain)
    batches = [*data]
    seen = torch.cat(batches)[:, :2, 0, 0].round().int().tolist()
    assert data.samples == len(seen) == len(set(map(tuple, seen))) == 100
    counts = Counter(label for label, _ in seen)
    # As for rows without replacement: 25 of each class, with a spread of 3.8.
    assert all(abs(counts[label] - 25) < 4 * 3.8 for label in range(4)), counts
    assert all(
        len({label for label, *_ in batch[:, :, 0, 0].round().int().tolist()}) > 2 for batch in batches
    )


def test_threads_read_a_little_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reading: Callable[[], int]
) -> None:
    opened: list[Any] = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path, **how: (opened.append(path), real(path, **how))[1])
    batches = iter(Images(tmp_path, written(tmp_path, 60), SMALL, 4, 3))
    assert not reading()
    next(batches)
    assert 1 <= reading() <= 3
    most = 4 + 2 * 4  # a batch, and two ahead
    until(lambda: len(opened) >= most - 1)
    time.sleep(0.1)
    assert len(opened) <= most
    del batches


def test_threads_end_with_the_iteration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reading: Callable[[], int]
) -> None:
    """Whoever stops half-way waits for nothing, and what was not begun is not read any more."""
    paths = written(tmp_path, 60)
    opened: list[Path] = []
    gate = threading.Event()
    real = Image.open

    def slow(path: Path, **how: Any) -> Any:
        opened.append(path)
        assert path in paths[:4] or gate.wait(20)
        return real(path, **how)

    monkeypatch.setattr(Image, "open", slow)
    batches = iter(Images(tmp_path, paths, SMALL, 4, 3))
    next(batches)
    until(lambda: len(opened) == 4 + 3)
    batches.close()  # type: ignore[attr-defined]
    assert reading() == 3
    gate.set()
    until(lambda: not reading())
    assert len(opened) == 4 + 3


def test_threads_end_where_an_image_is_bad(tmp_path: Path, reading: Callable[[], int]) -> None:
    paths = written(tmp_path, 30)
    paths[1].write_bytes(b"words")
    with pytest.raises(bn.SourceError, match="no image"):
        [*Images(tmp_path, paths, SMALL, 4, 3)]
    until(lambda: not reading())
    assert len([*Images(tmp_path, paths[2:], SMALL, 4, 3)]) == 7  # and to the end
    until(lambda: not reading())

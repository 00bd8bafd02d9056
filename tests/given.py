"""What the pages take as given: the files and the names that they speak of without making them."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import bntools
from bntools.__main__ import main
from tests.season import season


def network() -> nn.Module:
    """A trained network, as a file can hold it without code: ``layer1``, ``layer2``, ``head``.

    The statistics of one layer are young, which is a warning of `inspect`, and no error.
    """
    sizes = ((1, 3, 4), (2, 32, 2), (3, 32, 1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [
            (f"layer{n}", nn.Sequential(nn.Conv2d(i, 32, 3, by, bias=False), nn.BatchNorm2d(32), nn.ReLU()))
            for n, i, by in sizes
        ]
        rest = [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("head", nn.Linear(32, 10))]
        model = season(nn.Sequential(OrderedDict([*layers, *rest])).eval())
    model.get_buffer("layer1.1.num_batches_tracked").fill_(20)
    return model


def write_given(folder: Path) -> None:
    """The files that pages speak of without making them."""
    torch.save(network(), folder / "model.pt")
    generator = np.random.default_rng(0)
    images = generator.normal(0.3, 1.2, (24, 3, 32, 32)).astype(np.float32)
    np.save(folder / "images.npy", images)
    for name in ("photos", "images", "new"):
        (folder / name).mkdir()
        for number in range(4):
            pixels = generator.integers(0, 256, (48, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    with contextlib.chdir(folder):
        for line in (
            "fold model.pt -o model.pt2 --no-verify",
            "export model.pt -o model.onnx --no-compare --no-verify",
            "freeze model.pt -o model.frozen.pt",
            "inspect model.pt --write-baseline known.json",
        ):
            assert main([*line.split(), "--quiet"]) == 0, line


def given() -> dict[str, Any]:
    """The names that the Python of a page takes as given; each page has its own."""
    images = torch.from_numpy(np.load("images.npy"))
    inputs = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    return {
        "torch": torch,
        "nn": nn,
        "bn": bntools,
        "model": network(),
        "fresh_model": network(),
        "inputs": inputs,
        "x": inputs,
        "images": images,
        "loader": list(images.split(8)),
    }

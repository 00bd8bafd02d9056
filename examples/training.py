"""Data and training, the same for all examples."""

from __future__ import annotations

import copy
from functools import cache

import torch
import torch.nn.functional as F
from nets import ResidualNet
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn


def digits(size: int = 8) -> list[Tensor]:
    """Training images, test images, training labels, test labels; images are (N, 1, size, size) in [0, 1]."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    if size != 8:
        images = F.interpolate(images, (size, size), mode="bilinear")
    labels = torch.tensor(data.target)
    return train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)


def fit(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, size=64, rate=2e-3) -> None:
    """Train for some epochs, in batches of *size*; afterwards the model is in eval."""
    torch.set_num_threads(min(2, torch.get_num_threads()))  # layers this small gain nothing from more
    even = len(images) // 2 * 2  # one image alone has no variance
    steps = epochs * -(-len(images) // size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images))[:even].split(size):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch], label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images that a model in eval gets right."""
    return (model(images).argmax(1) == labels).float().mean().item()


def trained() -> ResidualNet:
    """A network that knows the digits, after some seconds; each call returns another copy of it."""
    return copy.deepcopy(_trained())


@cache
def _trained() -> ResidualNet:
    torch.manual_seed(0)
    model, (images, _, labels, _) = ResidualNet(), digits()
    fit(model, images, labels, epochs=4)
    return model

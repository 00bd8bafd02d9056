"""Data and training, the same for both examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

GOAL = 0.97


def digits(size: int = 8) -> list[Tensor]:
    """Training images, test images, training labels, test labels; images are (N, 1, size, size) in [0, 1]."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    if size != 8:
        images = F.interpolate(images, (size, size), mode="bilinear")
    return train_test_split(
        images, torch.tensor(data.target), test_size=0.25, random_state=0, stratify=data.target
    )


def fit(
    model: nn.Module, images: Tensor, labels: Tensor, epochs: int, size: int = 64, rate: float = 2e-3
) -> None:
    """Train for some epochs, in batches of *size*; afterwards the model is in eval."""
    torch.set_num_threads(2)  # layers this small lose more by waiting for other threads than they gain
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


def train(model: nn.Module, size: int, out: Path, epochs: int) -> int:
    """Train, write ``model.pt`` and ``test.npz`` into *out*, and return the exit code: 1 below the goal."""
    images, test_images, labels, test_labels = digits(size)
    fit(model, images, labels, epochs)
    right = accuracy(model, test_images, test_labels)
    out.mkdir(parents=True, exist_ok=True)
    torch.save(model, out / "model.pt")
    np.savez(out / "test.npz", images=test_images.numpy(), labels=test_labels.numpy())
    print(f"test accuracy {right:.2%} on {len(test_labels)} digits; wrote {out / 'model.pt'}")
    return 0 if right >= GOAL else 1

"""What is done to an image before a model sees it, pixel for pixel as torchvision and timm do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bntools.errors import UsageError

if TYPE_CHECKING:  # Pillow is an extra
    from PIL.Image import Image

_CROP, _SHARE = 224, 0.875
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FILTERS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
_ENTRIES = ("input_size", "crop_pct", "crop_mode", "mean", "std", "interpolation")
_BY_HAND = "or prepare the images yourself, in package.module:factory"


@dataclass(frozen=True, slots=True)
class Preparation:
    """Resize, cut out the middle, and normalise: ``(pixel / 255 − mean) / std``.

    Args:
        resize: what the shorter side becomes, in pixels; the ratio of the sides stays.
        crop: the side of the square that is cut out of the middle, in pixels.
        mean: of each channel; one number makes images grey.
        std: of each channel.
        interpolation: the name of a filter of Pillow's, which looks at all pixels when it makes smaller.
        squash: resize both sides, whatever their ratio.

    Raises:
        UsageError: if they contradict one another.

    Example:
        >>> print(Preparation(mean=(0.5,), std=(0.25,)))
        resize 256, crop 224, bilinear, grey, mean 0.5, std 0.25
    """

    resize: int = 256
    crop: int = _CROP
    mean: tuple[float, ...] = _MEAN
    std: tuple[float, ...] = _STD
    interpolation: str = "bilinear"
    squash: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.crop <= self.resize:
            raise UsageError(
                f"--crop: {self.crop} pixels do not fit into the shorter side, which becomes {self.resize}",
                todo="give a smaller --crop or a larger --resize",
            )
        counts = len(self.mean), len(self.std)
        if counts not in ((1, 1), (3, 3)):
            raise UsageError(
                f"--mean and --std: expected one number each or three, there are {counts[0]} and {counts[1]}",
                todo="give both",
            )
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise UsageError(
                f"--mean and --std: {_spaced(self.mean)} and {_spaced(self.std)} are none",
                todo="give finite numbers, and a --std above 0",
            )
        if self.interpolation not in _FILTERS:
            raise UsageError(
                f"interpolation: {self.interpolation!r} is none of {', '.join(_FILTERS)}",
                todo="correct the model's pretrained_cfg",
            )

    @classmethod
    def of(
        cls,
        model: nn.Module,
        *,
        resize: int | None = None,
        crop: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> Preparation:
        """What was asked for; the rest as timm's configuration of the model says, or as for ImageNet.

        Args:
            model: with a ``pretrained_cfg`` or ``default_cfg`` if it is timm's.
            resize, crop, mean, std: what was asked for. If only *crop* was, *resize* keeps its ratio to it.

        Raises:
            UsageError: if the model wants something else than this can do, or the values do not fit.
        """
        config = _config(model)
        where = f"{type(model).__name__}.pretrained_cfg"
        try:
            channels, height, width = map(int, config.get("input_size", (3, _CROP, _CROP)))
            share = float(config.get("crop_pct", _SHARE))
            means, stds = (tuple(map(float, config.get(k, v))) for k, v in (("mean", _MEAN), ("std", _STD)))
            derived = math.floor((crop or width) / share)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise UsageError(
                f"{where}: expected what timm writes there, it holds {str(config)[:200]}", todo="correct it"
            ) from error
        mode = config.get("crop_mode", "center")
        if (resize is None or crop is None) and (height != width or mode not in ("center", "squash")):
            what = f"images of {height}x{width}, {mode}"
            raise UsageError(
                f"{where}: expected squares from the middle, it wants {what}",
                todo=f"give --resize and --crop, {_BY_HAND}",
            )
        if mean is None and len(means) != channels:
            raise UsageError(
                f"{where}: expected a mean for each of {channels} channels, it holds {_spaced(means)}",
                todo=f"give --mean and --std, one number each or three, {_BY_HAND}",
            )
        return cls(
            resize or derived,
            crop or width,
            mean or means,
            std or stds,
            str(config.get("interpolation", "bicubic" if config else "bilinear")),
            mode == "squash",
        )

    @property
    def mode(self) -> Literal["L", "RGB"]:
        """What Pillow calls images of so many channels."""
        return "L" if len(self.mean) == 1 else "RGB"

    def size(self, width: int, height: int) -> tuple[int, int]:
        """How wide and high an image is after it was resized."""
        if self.squash:
            return self.resize, self.resize
        long = int(self.resize * max(width, height) / min(width, height))
        return (self.resize, long) if width <= height else (long, self.resize)

    def pixels(self, image: Image) -> np.ndarray:
        """The bytes of what is cut out, ``(channels, crop, crop)``."""
        from PIL.Image import Resampling

        size = self.size(*image.size)
        if size != image.size:
            image = image.resize(size, Resampling[self.interpolation.upper()])
        left, top = (round((side - self.crop) / 2.0) for side in size)
        image = image.crop((left, top, left + self.crop, top + self.crop))
        rows = np.asarray(image).reshape(self.crop, self.crop, -1)
        return np.ascontiguousarray(rows.transpose(2, 0, 1))  # or the batch would keep the channels last

    def batch(self, images: list[np.ndarray]) -> Tensor:
        """The bytes of some images as the model takes them, ``(images, channels, crop, crop)``."""
        mean, std = (torch.tensor(each, dtype=torch.float32)[:, None, None] for each in (self.mean, self.std))
        return torch.from_numpy(np.stack(images)).to(torch.float32).div_(255).sub_(mean).div_(std)

    def __str__(self) -> str:
        resize = f"{self.resize}x{self.resize}" if self.squash else str(self.resize)
        grey = ", grey" if self.mode == "L" else ""
        size = f"resize {resize}, crop {self.crop}, {self.interpolation}{grey}"
        return f"{size}, mean {_spaced(self.mean)}, std {_spaced(self.std)}"


def _config(model: nn.Module) -> dict[str, Any]:
    """What timm knows of a model, where that is anything; a dict or an object, by its version."""
    for name in ("pretrained_cfg", "default_cfg"):
        held = getattr(model, name, None)
        values = held if isinstance(held, Mapping) else {key: getattr(held, key, None) for key in _ENTRIES}
        if known := {key: values[key] for key in _ENTRIES if values.get(key) is not None}:
            return known
    return {}


def _spaced(numbers: tuple[float, ...]) -> str:
    return " ".join(f"{number:g}" for number in numbers)

"""Batch augmentation: whole batches of uint8 images, cropped, mirrored and normalised where they lie.

What happens to a sample in an epoch is drawn from (seed, epoch, sample index) alone: one table of draws per epoch,
looked up by the sample's index. Batch size, ranks, workers and resuming cannot change it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

AUGMENTATIONS = ("none", "crop", "flip", "crop_flip")
"""What `dataset.augment` may say for sets that are held in memory."""


def draw_seed(seed: int, epoch: int, purpose: str, index: int | None = None) -> int:
    """Return the seed for one purpose (`order`, `crop`, `flip`) in one epoch, of one sample if given.

    It has 63 bits, of which a CPU generator uses the lower 32.

    >>> draw_seed(0, 0, "order") == draw_seed(0, 1, "order")
    False
    """
    text = f"qexp/{seed}/{epoch}/{purpose}" + ("" if index is None else f"/{index}")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, epoch: int, purpose: str) -> torch.Generator:
    """Return a CPU generator for one purpose in one epoch; the draws are then the same on every device."""
    return torch.Generator().manual_seed(draw_seed(seed, epoch, purpose))


@dataclass(frozen=True)
class Draws:
    """One epoch's draws, indexed by sample.

    Attributes:
        offsets: (samples, 2) int64, top and left corner of the crop in the padded image, 0 ... 2 * padding;
            or None.
        mirrored: (samples,) bool; or None.
    """

    offsets: Tensor | None
    mirrored: Tensor | None


def draw(augment: str, samples: int, padding: int, seed: int, epoch: int, device: torch.device) -> Draws:
    """Draw the crops and flips of every sample for one epoch, on the CPU, and move them to `device`."""
    offsets = mirrored = None
    if "crop" in augment:
        corners = torch.randint(0, 2 * padding + 1, (samples, 2), generator=generator(seed, epoch, "crop"))
        offsets = corners.to(device)
    if "flip" in augment:
        coins = torch.randint(0, 2, (samples,), generator=generator(seed, epoch, "flip"))
        mirrored = coins.bool().to(device)
    return Draws(offsets, mirrored)


def pad_crop(images: Tensor, offsets: Tensor, padding: int) -> Tensor:
    """Pad with black on all sides, then cut each image's own window out of it.

    Args:
        images: uint8 (samples, height, width, channels), contiguous.
        offsets: int64 (samples, 2), top and left corner, 0 ... 2 * padding.
        padding: pixels on each side.

    Returns:
        uint8, the shape of `images`, contiguous.
    """
    samples, height, width, channels = images.shape
    side = padding * channels
    rows = F.pad(images.view(samples, height, width * channels), (side, side, padding, padding))
    # All windows as a view, indexed by their corner: one gather that copies whole pixel rows.
    corners = 2 * padding + 1
    line = rows.shape[2]
    windows = rows.as_strided(
        (samples, corners, corners, height, width * channels),
        (rows.shape[1] * line, line, channels, line, 1),
    )
    order = torch.arange(samples, device=images.device)
    return windows[order, offsets[:, 0], offsets[:, 1]].view(samples, height, width, channels)


def flip(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror the images marked in `mirrored` left to right; uint8 (samples, height, width, channels)."""
    return torch.where(mirrored[:, None, None, None], images.flip(2), images)


def normalise(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return `pixel * scale + shift` in float32 as (samples, channels, height, width), channels last in memory.

    `scale` and `shift` hold one value per number of an image (height * width * channels): with three values the
    inner loop would be three numbers long. Product and sum are two operations, each rounded by itself, so that
    an image's values do not depend on where in the batch it stands.

    Args:
        images: uint8 (samples, height, width, channels), contiguous.
        scale, shift: float32 (height * width * channels,).
    """
    samples, height, width, channels = images.shape
    values = images.flatten(1).to(torch.float32).mul_(scale).add_(shift)
    return values.view(samples, height, width, channels).permute(0, 3, 1, 2)

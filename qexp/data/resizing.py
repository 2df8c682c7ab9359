"""Resizing a whole set of images at once, before it is held in memory."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

BLOCK = 4096
"""Images resized at once, so that the float copy stays small."""


def resize(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 (samples, any, any, channels) to height x width: bilinear, antialiased, half-pixel centres."""
    if images.shape[1:3] == (height, width):
        return images
    resized = np.empty((len(images), height, width, images.shape[3]), dtype=np.uint8)
    for start in range(0, len(images), BLOCK):
        block = torch.from_numpy(images[start : start + BLOCK]).permute(0, 3, 1, 2).float()
        smooth = F.interpolate(block, size=(height, width), mode="bilinear", antialias=True)
        resized[start : start + BLOCK] = smooth.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return resized

"""Cutting one decoded image to the size that a network takes; chance comes from (seed, epoch, sample) alone."""

from __future__ import annotations

import math
import random

from PIL import Image

from qexp.data.augment import draw_seed
from qexp.data.images import centre, resize_shorter

CROPS = ("none", "crop_flip", "resized_crop")
"""What `dataset.augment` may say for sets that are decoded as they go."""


def cut(image: Image.Image, augment: str, resize: int, crop: int, sample: tuple[int, int, int]) -> Image.Image:
    """Return a crop x crop piece of `image`.

    Args:
        image: any size.
        augment: `none`: the shorter side to `resize`, then the middle; `crop_flip`: the same with a random place,
            and a flip by a coin; `resized_crop`: a random area, resized, and a flip by a coin.
        resize, crop: pixels.
        sample: (seed, epoch, sample index), which decides everything random here.
    """
    if augment == "none":
        return centre(resize_shorter(image, resize, resize), crop, crop)
    seed, epoch, index = sample
    chance = random.Random(draw_seed(seed, epoch, augment, index))
    if augment == "crop_flip":
        image = resize_shorter(image, resize, resize)
        left, top = chance.randint(0, image.width - crop), chance.randint(0, image.height - crop)
        image = image.crop((left, top, left + crop, top + crop))
    else:
        box = random_area(image.width, image.height, chance)
        image = image.resize((crop, crop), Image.Resampling.BILINEAR, box=box)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if chance.random() < 0.5 else image


def random_area(width: int, height: int, chance: random.Random) -> tuple[int, int, int, int]:
    """Draw a box of 8 to 100 % of the area, sides between 3:4 and 4:3 (Szegedy et al. 2015, section 6).

    Returns:
        (left, upper, right, lower); the largest box in the middle when ten draws do not fit.
    """
    for _ in range(10):
        area = width * height * chance.uniform(0.08, 1.0)
        ratio = math.exp(chance.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = chance.randint(0, width - w), chance.randint(0, height - h)
            return left, upper, left + w, upper + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h

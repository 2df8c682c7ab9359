"""A Pascal VOC of a few images, in the form of the real one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

OBJECT = """  <object>
    <name>{name}</name><difficult>{difficult}</difficult>
    <bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>
  </object>
"""


def palette() -> list[int]:
    """VOC's colours: the bits of the class number spread over red, green and blue."""
    colours = []
    for number in range(256):
        channels = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                channels[channel] |= (
                    ((number >> (3 * bit + channel)) & 1) << (7 - bit) if 3 * bit + channel < 8 else 0
                )
        colours += channels
    return colours


def make(folder: Path, year: int, *, train: int = 4, test: int = 3) -> Path:
    """Write VOCdevkit/VOC<year> below `folder`, with masks and boxes for all images; return `folder`."""
    place = folder / "VOCdevkit" / f"VOC{year}"
    for name in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation", "ImageSets/Main"):
        (place / name).mkdir(parents=True)
    numbers = np.random.default_rng(0)
    names = [f"{year}_{index:06d}" for index in range(train + test)]
    for index, name in enumerate(names):
        height, width = 40 + 3 * index, 64 - 2 * index
        pixels = numbers.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / "JPEGImages" / f"{name}.jpg")
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[5:20, 5:30] = 1 + index % 20
        mask[5, 5:30] = 255
        image = Image.fromarray(mask, mode=None)
        image.putpalette(palette())
        image.save(place / "SegmentationClass" / f"{name}.png")
        objects = OBJECT.format(name="dog", difficult=0, x1=6, y1=6, x2=30, y2=20)
        objects += OBJECT.format(name="person", difficult=1, x1=1, y1=1, x2=width, y2=height)
        (place / "Annotations" / f"{name}.xml").write_text(f"<annotation>\n{objects}</annotation>\n")
    for task, lists in (("Segmentation", ("train", "val")), ("Main", ("trainval", "test"))):
        for each, part in zip(lists, (names[:train], names[train:]), strict=True):
            (place / "ImageSets" / task / f"{each}.txt").write_text("\n".join(part) + "\n")
    return folder

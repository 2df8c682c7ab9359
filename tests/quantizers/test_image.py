from __future__ import annotations

import pytest
import torch

from qexp.errors import ConfigError
from qexp.quantizers.base import Site
from qexp.quantizers.image import ImageGrid

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
LOWEST = tuple(-mean / std for mean, std in zip(MEAN, STD, strict=True))
HIGHEST = tuple((1 - mean) / std for mean, std in zip(MEAN, STD, strict=True))


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


def grid(bits: int, shape: tuple[int, ...] = (3, 16, 16)) -> ImageGrid:
    return ImageGrid(bits, Site("conv.input", "input", shape, signed=True), lowest=LOWEST, highest=HIGHEST)


def every_pixel() -> torch.Tensor:
    return torch.arange(256).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)


def test_eight_bits_reproduce_an_eight_bit_image() -> None:
    images = normalised(every_pixel())
    torch.testing.assert_close(grid(8)(images), images, rtol=0, atol=1e-6)
    assert torch.equal(grid(8).codes(images).values, every_pixel().int())


@pytest.mark.parametrize("bits", range(1, 9))
def test_fewer_bits_are_the_nearest_of_equally_spaced_levels(bits: int) -> None:
    images, steps = normalised(every_pixel()), 2**bits - 1
    codes = grid(bits).codes(images)
    assert codes.values.unique().tolist() == list(range(2**bits))
    scaled = every_pixel() * (steps / 255)
    assert (codes.values - scaled).abs().max() <= 0.5 + 1e-4
    assert torch.equal(codes.decode(), grid(bits)(images))


def test_black_and_white_are_levels() -> None:
    ends = torch.stack([torch.tensor(LOWEST), torch.tensor(HIGHEST)]).reshape(2, 3, 1, 1)
    torch.testing.assert_close(grid(1, (3, 1, 1))(ends), ends)


def test_nothing_is_learned_and_thirty_two_bits_change_nothing() -> None:
    images = normalised(every_pixel())
    assert not list(grid(4).parameters()) and not grid(4).state_dict()
    assert torch.equal(grid(32)(images), images)
    with pytest.raises(ConfigError, match="32 bits are not rounded"):
        grid(32).codes(images)


def test_a_flattened_image_keeps_the_range_of_each_channel() -> None:
    images = normalised(torch.randint(256, (2, 3, 16, 16)))
    flat = grid(3, (3 * 16 * 16,))(images.flatten(1))
    assert torch.equal(flat, grid(3)(images).flatten(1))

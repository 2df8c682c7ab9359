from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qexp.data.augment import draw, flip, normalise, pad_crop
from qexp.data.batches import Plan
from qexp.data.npz import Npz
from qexp.errors import CheckpointError, DataError

MEAN, STD = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]


@pytest.fixture
def source(npz_file) -> Npz:
    return Npz(file=str(npz_file), mean=MEAN, std=STD, augment="crop_flip")


def numbered(count: int) -> torch.Tensor:
    """Images whose every pixel names its sample, (count, 4, 4, 1)."""
    return torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 4, 4, 1).contiguous()


def number_source(tmp_path, count: int, **arguments) -> Npz:
    file = tmp_path / "numbers.npz"
    images, labels = numbered(count).numpy(), np.arange(count) % 5
    np.savez(file, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return Npz(file=str(file), mean=[0.0], std=[1.0], **arguments)


def numbers(images: torch.Tensor) -> list[int]:
    return (images[:, 0, 0, 0] * 255).round().int().tolist()


def epoch(batches, number: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    batches.load_state_dict({"epoch": number, "position": 0})
    return list(batches)


def same(left, right) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(left, right, strict=True)
    )


def test_same_seed_and_epoch_give_the_same_batches(source):
    first, second = source.train_batches(64, 3, "cpu"), source.train_batches(64, 3, "cpu")
    assert same(epoch(first, 2), epoch(second, 2))


def test_another_epoch_and_another_seed_give_other_batches(source):
    batches = source.train_batches(64, 3, "cpu")
    assert not same(epoch(batches, 0), epoch(batches, 1))
    assert not same(epoch(batches, 0), epoch(source.train_batches(64, 4, "cpu"), 0))


def test_batches_leave_the_global_generator_alone(source):
    before = torch.random.get_rng_state()
    list(source.train_batches(64, 0, "cpu"))
    assert torch.equal(before, torch.random.get_rng_state())


def test_promised_form(source):
    batches = source.train_batches(64, 0, "cpu")
    images, labels = next(iter(batches))
    assert images.dtype == torch.float32 and images.shape == (64, 3, 32, 32)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.dtype == torch.int64 and labels.shape == (64,)
    plain, _ = next(iter(source.train_batches(64, 0, "cpu", channels_last=False)))
    assert plain.is_contiguous() and torch.equal(plain, images)


def test_every_sample_once_in_an_epoch(tmp_path):
    batches = number_source(tmp_path, 200).train_batches(50, 0, "cpu")
    seen = [number for images, _ in epoch(batches, 1) for number in numbers(images)]
    assert sorted(seen) == list(range(200)) and seen != list(range(200))


def test_training_drops_the_last_partial_batch_and_evaluation_does_not(tmp_path):
    source = number_source(tmp_path, 110)
    training = source.train_batches(50, 0, "cpu")
    assert [len(labels) for _, labels in training] == [50, 50] and len(training) == 2
    testing = source.test_batches(50, "cpu")
    assert [number for images, _ in testing for number in numbers(images)] == list(range(110))
    assert len(testing) == 3 and len(list(testing)) == 3


@pytest.mark.parametrize("stop", range(8))
def test_resuming_at_any_position_equals_the_uninterrupted_sequence(source, stop):
    whole = epoch(source.train_batches(64, 0, "cpu"), 5)
    interrupted = source.train_batches(64, 0, "cpu")
    interrupted.load_state_dict({"epoch": 5, "position": 0})
    head = list(islice(interrupted, stop))
    resumed = source.train_batches(64, 0, "cpu")
    resumed.load_state_dict({"epoch": 5, "position": interrupted.position})
    assert same(head + list(resumed), whole)
    assert same(epoch(resumed, 6), epoch(source.train_batches(64, 0, "cpu"), 6))


def test_a_position_beyond_the_epoch_is_refused(source):
    with pytest.raises(CheckpointError, match=r"position 8 of epoch 0: an epoch has 7 batches"):
        source.train_batches(64, 0, "cpu").load_state_dict({"epoch": 0, "position": 8})


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_hold_the_batches_of_one_process(source, world_size):
    alone = epoch(source.train_batches(64, 0, "cpu"), 1)
    ranks = [
        epoch(source.train_batches(64, 0, "cpu", rank=rank, world_size=world_size), 1)
        for rank in range(world_size)
    ]
    joined = [tuple(torch.cat(parts) for parts in zip(*step, strict=True)) for step in zip(*ranks, strict=True)]
    assert same(joined, alone)


def test_ranks_cover_a_validation_split_that_does_not_divide(tmp_path):
    source = number_source(tmp_path, 202, validation=0.5)
    seen: list[int] = []
    for rank in range(2):
        batches = source.validation_batches(50, "cpu", rank=rank, world_size=2)
        assert len(list(batches)) == 3
        seen += [number for images, _ in batches for number in numbers(images)]
    assert len(seen) == len(set(seen)) == 101


def test_batch_size_does_not_change_what_a_sample_looks_like(tmp_path, source):
    def by_label_and_sum(batch_size: int) -> set[tuple[int, bytes]]:
        batches = source.train_batches(batch_size, 0, "cpu")
        return {
            (int(label), image.numpy().tobytes())
            for images, labels in epoch(batches, 3)
            for image, label in zip(images, labels, strict=True)
        }

    assert by_label_and_sum(100) == by_label_and_sum(20) == by_label_and_sum(4)


def test_order_is_that_of_the_set_without_shuffle():
    assert torch.equal(Plan(torch.arange(60), 20, training=True).order(3), torch.arange(60))


def slow_crop_flip(image: np.ndarray, top: int, left: int, mirrored: bool, padding: int) -> np.ndarray:
    """One image (height, width, channels), pixel by pixel."""
    height, width, _ = image.shape
    result = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            row, column = y + top - padding, (width - 1 - x if mirrored else x) + left - padding
            if 0 <= row < height and 0 <= column < width:
                result[y, x] = image[row, column]
    return result


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    channels=st.sampled_from([1, 3, 4]),
    padding=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_crop_and_flip_equal_a_slow_reference(height, width, channels, padding, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (6, height, width, channels), dtype=torch.uint8, generator=generator)
    draws = draw("crop_flip", 6, padding, seed, 0, torch.device("cpu"))
    assert draws.offsets is not None and draws.mirrored is not None
    fast = flip(pad_crop(images, draws.offsets, padding), draws.mirrored)
    for number in range(6):
        top, left = draws.offsets[number].tolist()
        slow = slow_crop_flip(images[number].numpy(), top, left, bool(draws.mirrored[number]), padding)
        assert np.array_equal(fast[number].numpy(), slow)


def test_draws_cover_all_corners_and_both_sides():
    draws = draw("crop_flip", 20_000, 4, 0, 0, torch.device("cpu"))
    corners, counts = draws.offsets.unique(dim=0, return_counts=True)
    assert len(corners) == 81 and counts.min() > 150 and counts.max() < 350
    assert 0.48 < draws.mirrored.float().mean() < 0.52


def test_normalised_values_are_those_of_the_formula(source, patches):
    images, _ = next(iter(source.test_batches(100, "cpu")))
    expected = (patches[500:] / 255 - np.array(MEAN)) / np.array(STD)
    assert np.abs(images.permute(0, 2, 3, 1).numpy() - expected).max() < 1e-6


def test_input_range_is_what_black_and_white_become(source):
    batches = source.test_batches(1, "cpu")
    low, high = source.input_range()
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 32, 32, 3).contiguous()
    values = normalise(pixels, batches.pixels.scale, batches.pixels.shift)
    assert values[0, :, 5, 7].tolist() == list(low) and values[1, :, 5, 7].tolist() == list(high)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: a batch holds at least one sample"),
        ({"batch_size": 11}, "batch_size=11: the training split has 10 samples; choose batch_size=10 or less"),
        ({"batch_size": 5, "world_size": 2}, "batch_size=5: .* multiple of their number, 2"),
        ({"batch_size": 4, "world_size": 2, "rank": 2}, "rank=2"),
    ],
)
def test_plans_without_meaning_are_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        Plan(torch.arange(10), training=True, **arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_gives_the_same_batches(source):
    here, there = epoch(source.train_batches(64, 0, "cpu"), 1), epoch(source.train_batches(64, 0, "cuda"), 1)
    assert there[0][0].device.type == there[0][1].device.type == "cuda"
    assert all(torch.equal(a[1], b[1].cpu()) for a, b in zip(here, there, strict=True))
    assert all(torch.allclose(a[0], b[0].cpu(), atol=1e-6) for a, b in zip(here, there, strict=True))

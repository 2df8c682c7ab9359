"""Checks of a data set's arguments as they come from a configuration; each failure is a DataError of one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qexp.errors import DataError, did_you_mean


def check_common(
    *,
    root: object,
    download: object,
    augment: object,
    augmentations: tuple[str, ...],
    validation: object,
    train_samples: object,
    eval_batch_size: object,
) -> Path:
    """Check the arguments that every data set has; return the root as a path."""
    check_flag("download", download)
    if not isinstance(root, str):
        raise DataError(f"dataset.root={root!r}: the path of a folder.")
    if augment not in augmentations:
        raise DataError(f"dataset.augment={augment!r} is not known.{did_you_mean(str(augment), augmentations)}")
    if not _is_number(validation) or not 0 <= validation < 1:  # type: ignore[operator]
        raise DataError(f"dataset.validation={validation}: a share of the training samples, 0 or more, below 1.")
    if train_samples is not None:
        check_whole("train_samples", train_samples, 1, ", or null for all")
    check_whole("eval_batch_size", eval_batch_size, least=1)
    return Path(root).expanduser()


def check_flag(key: str, value: object) -> None:
    """Refuse what is neither true nor false."""
    if not isinstance(value, bool):
        raise DataError(f"dataset.{key}={value!r}: true or false.")


def check_whole(key: str, value: object, least: int, note: str = "") -> None:
    """Refuse what is not a whole number of `least` or more; `note` goes behind the rule."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise DataError(f"dataset.{key}={value!r}: a whole number, {least} or more{note}.")


def check_statistics(mean: object, std: object, channels: int | None) -> None:
    """Refuse a mean or std that is not one finite number per channel, or a std that is not positive.

    None is allowed for either (taken from the data), and for `channels` (not known yet).
    """
    for key, values in (("mean", mean), ("std", std)):
        if values is None:
            continue
        listed = isinstance(values, (list, tuple)) and all(_is_number(value) for value in values)
        if not listed or (channels is not None and len(values) != channels):  # type: ignore[arg-type]
            wanted = "channel" if channels is None else f"of the {channels} channels"
            raise DataError(f"dataset.{key}={values}: one number for each {wanted} is needed.")
        if key == "std" and min(values) <= 0:  # type: ignore[call-overload]
            raise DataError(f"dataset.std={values}: a standard deviation is greater than 0.")


def given_shape(shape: object) -> tuple[int, int, int] | None:
    """Check a shape, three positive whole numbers [channels, height, width], or None; return it as a tuple."""
    if shape is None:
        return None
    sides = tuple(shape) if isinstance(shape, (list, tuple)) else ()
    if len(sides) != 3 or not all(type(side) is int and side > 0 for side in sides):
        raise DataError(f"dataset.shape={shape}: three positive numbers, [channels, height, width].")
    return sides[0], sides[1], sides[2]


def grey_or_colour(shape: object) -> tuple[int, int, int] | None:
    """Check a shape as `given_shape` does, and that it has 1 or 3 channels."""
    checked = given_shape(shape)
    if checked is not None and checked[0] not in (1, 3):
        raise DataError(f"dataset.shape={shape}: the first number counts channels, 1 (grey) or 3 (colour).")
    return checked


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))

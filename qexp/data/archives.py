"""The official archives of MNIST, CIFAR-10 and SVHN, found, fetched when asked for, and read by torchvision."""

from __future__ import annotations

import fcntl
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from qexp.data.npz import read_npz
from qexp.data.splits import Split, Splits, make_split
from qexp.errors import DataError

FAILURES = (OSError, RuntimeError, ValueError, TypeError, KeyError, EOFError, pickle.UnpicklingError)
"""What torchvision raises for an archive that it cannot fetch, find whole or read."""

PARTS = {"train": {"train": True}, "test": {"train": False}}
"""The arguments that select the two parts of MNIST and CIFAR-10, by split."""


def find_or_fetch(
    archive: str, root: Path, names: Sequence[str], parts: Sequence[dict[str, Any]], download: bool, npz: str = ""
) -> list[Path]:
    """Return the files of a data set: `root/npz` where it is there, else the archive's own.

    Args:
        archive: torchvision's name of the class.
        root: folder to look in, and to download into.
        names: the archive's files, relative to `root`.
        parts: arguments that make torchvision fetch each part, `{"train": True}` for instance.
        download: fetch what is missing.
        npz: name of a file that holds the same data as arrays; "" for none.

    Raises:
        DataError: not there, or the download failed.
    """
    if npz and (root / npz).is_file():
        return [root / npz]
    files = [root / name for name in names]
    missing = [file for file in files if not file.is_file()]
    if missing and not download:
        choice = f", or put {npz} (x_train, y_train, x_test, y_test) there" if npz else ""
        raise DataError(
            f"dataset.root={str(root)!r}: no {archive} there (no {missing[0].relative_to(root)}"
            f"{f', no {npz}' if npz else ''}); fetch it with dataset.download=true{choice}, or set dataset.root"
            " or QEXP_DATA to where it lies."
        )
    if missing:
        _fetch(archive, root, parts)
    return files


def _fetch(archive: str, root: Path, parts: Sequence[dict[str, Any]]) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        # The processes of one job ask at the same time; the first fetches, the others then find it whole.
        with _locked(root / f".{archive}.lock"):
            for part in parts:
                _open(archive, root, part, download=True)
    except FAILURES as error:
        raise DataError(
            f"dataset.download=true: {archive} could not be fetched into {root} ({_first_line(error)});"
            " try again, or put the files there by hand."
        ) from error


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def read_part(archive: str, root: Path, part: dict[str, Any], channels_first: bool = False) -> Split:
    """Read one part of an archive through torchvision, which compares the checksums of CIFAR's and SVHN's first.

    Args:
        part: arguments that select it.
        channels_first: whether torchvision holds this set as (samples, channels, height, width).

    Raises:
        DataError: a file is damaged.
    """
    try:
        data = _open(archive, root, part, download=False)
        images = np.asarray(data.data)
        labels = np.asarray(data.labels if hasattr(data, "labels") else data.targets)
    except FAILURES as error:
        raise DataError(
            f"dataset.root={str(root)!r}: {archive} there is damaged or not the official one"
            f" ({_first_line(error)}); remove it and fetch it again with dataset.download=true."
        ) from error
    if channels_first:
        images = images.transpose(0, 2, 3, 1)
    return make_split(images, labels, f"{archive} in {root}")


def read_train_and_test(archive: str, root: Path, file: Path) -> Splits:
    """Read the two parts of an archive, or in its place `file`, where that is an .npz file."""
    if file.suffix == ".npz":
        return read_npz(file)
    return {name: read_part(archive, root, part) for name, part in PARTS.items()}


def _open(archive: str, root: Path, part: dict[str, Any], download: bool) -> Any:
    import torchvision.datasets

    return getattr(torchvision.datasets, archive)(str(root), download=download, **part)


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__

"""Trees of image files, <split>/<class>/**: listed class by class, and the listing remembered.

ImageNet is 1.3 million files. Their names are held as one array, not as that many objects, so that a decoding
process gets them in one piece, and a listing is kept in the cache, so that the processes of a job and the jobs of
a sweep do not each ask for the size of every file.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qexp.data import cache
from qexp.errors import DataError
from qexp.paths import cache_folder

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Files with another ending are not images and are passed over, as are names that begin with a dot."""

_ENDINGS = tuple(suffix.encode() for suffix in SUFFIXES)
_FORMAT = 1


@dataclass(frozen=True)
class Listing:
    """The image files below a folder.

    Attributes:
        names: bytes (files,), relative to the folder, sorted.
        sizes: int64 (files,), bytes.
        folders: bytes (folders,), every folder below, relative, with a slash at its end; the folder itself is "".
        stamps: int64 (folders, 2), time of the last change (ns) and inode of each.
    """

    names: np.ndarray
    sizes: np.ndarray
    folders: np.ndarray
    stamps: np.ndarray

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the folders directly below, sorted."""
        direct = (os.fsdecode(bytes(each)[:-1]) for each in self.folders if bytes(each).count(b"/") == 1)
        return tuple(sorted(direct))

    @property
    def loose(self) -> np.ndarray:
        """Row numbers of the files that lie in no folder below."""
        return np.flatnonzero(np.char.find(self.names, b"/") < 0)


@dataclass(frozen=True)
class Tree:
    """One split of a tree.

    Attributes:
        classes: sorted; their positions are the labels.
        names: bytes (files,), relative to `folder`, sorted within each class.
        labels: int64, one for each file, ascending.
        sizes: int64, bytes of each file.
    """

    folder: Path
    classes: tuple[str, ...]
    names: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def file(self, row: int) -> Path:
        """Return the path of one file."""
        return self.folder / os.fsdecode(bytes(self.names[row]))

    @property
    def files(self) -> list[Path]:
        """The files' paths."""
        return [self.file(row) for row in range(len(self))]

    def lines(self) -> Iterator[bytes]:
        """Yield `class/name size` of each file: the same for a split in class folders and for the flat one."""
        classes = [os.fsencode(each) for each in self.classes]
        for name, label, size in zip(self.names.tolist(), self.labels.tolist(), self.sizes.tolist(), strict=True):
            yield b"%s %d\n" % (name if b"/" in name else classes[label] + b"/" + name, size)


def scan(folder: Path, classes: tuple[str, ...] | None = None) -> Tree:
    """List the images of `folder/<class>/**`.

    Args:
        folder: one split.
        classes: the class folders that must be there and no others (those of the training split); None: any.

    Raises:
        DataError: no such folder, no class folders, other classes, or a class without an image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; images lie in <root>/<split>/<class>/, set dataset.root.")
    listing = list_images(folder)
    found = listing.classes
    if not found:
        packed = "; its archives (*.tar) have to be unpacked" if any(folder.glob("*.tar")) else ""
        raise DataError(f"{folder}: no class folders in it; images lie in {folder}/<class>/{packed}.")
    if classes is None and len(found) == 1:
        raise DataError(
            f"{folder}: one class folder alone, {found[0]!r}; images lie in <root>/<split>/<class>/: is there a"
            " folder too many in between?"
        )
    if classes is not None and (other := sorted(set(found) ^ set(classes))):
        where = folder.name if other[0] in found else "the training split"
        raise DataError(
            f"{folder}: its classes are not those of the training split; {other[0]!r} is only in {where}"
            f"{f', and {len(other) - 1} more differ' if len(other) > 1 else ''}."
        )
    prefixes = [os.fsencode(each) for each in found]
    # The files of a class are neighbours: from "class/" to before "class0", "0" being the sign after "/".
    first = np.searchsorted(listing.names, [prefix + b"/" for prefix in prefixes])
    counts = np.searchsorted(listing.names, [prefix + b"0" for prefix in prefixes]) - first
    if len(empty := np.flatnonzero(counts == 0)):
        raise DataError(f"{folder / found[empty[0]]}: no image in this class; add some or remove the folder.")
    rows = np.concatenate([np.arange(start, start + count) for start, count in zip(first, counts, strict=True)])
    labels = np.repeat(np.arange(len(found), dtype=np.int64), counts)
    return Tree(folder, found, listing.names[rows], labels, listing.sizes[rows])


def list_images(folder: Path) -> Listing:
    """Return the image files of `folder/**`, from the cache where no folder has changed since.

    A file that is written over in place changes no folder: of each folder the first file's size is compared too.

    Raises:
        DataError: a folder or file cannot be read.
    """
    place = os.fsencode(folder.absolute())
    memo = cache_folder() / "listings" / f"{hashlib.sha256(place).hexdigest()[:16]}.npz"
    try:
        if (known := _remembered(memo)) is not None and _still_true(place, known):
            return known
        found = _walk(place)
    except OSError as error:
        at = os.fsdecode(error.filename) if error.filename else folder
        raise DataError(f"{at}: cannot be read ({error.strerror or error}).") from error
    # A folder changed this very moment can change again within the clock's resolution.
    if time.time_ns() - int(found.stamps[:, 0].max()) > 2e9:
        arrays = {"names": found.names, "sizes": found.sizes, "folders": found.folders, "stamps": found.stamps}
        cache.write_atomically(
            memo, lambda stream: np.savez(stream, allow_pickle=False, format=np.array(_FORMAT), **arrays)
        )
    return found


def _walk(place: bytes) -> Listing:
    names: list[bytes] = []
    sizes: list[int] = []
    folders: list[bytes] = []
    stamps: list[tuple[int, int]] = []
    waiting = [b""]
    while waiting:
        inside = waiting.pop()
        status = os.stat(os.path.join(place, inside))  # noqa: PTH116, PTH118
        folders.append(inside)
        stamps.append((status.st_mtime_ns, status.st_ino))
        with os.scandir(os.path.join(place, inside)) as entries:  # noqa: PTH118
            for entry in entries:
                if entry.name.startswith(b"."):
                    continue
                if entry.is_dir():
                    waiting.append(inside + entry.name + b"/")
                elif entry.name.lower().endswith(_ENDINGS):
                    names.append(inside + entry.name)
                    sizes.append(entry.stat().st_size)
    listed = np.array(names, dtype=np.bytes_)
    order = np.argsort(listed)
    return Listing(
        listed[order],
        np.array(sizes, dtype=np.int64)[order],
        np.array(folders, dtype=np.bytes_),
        np.array(stamps, dtype=np.int64),
    )


def _remembered(memo: Path) -> Listing | None:
    try:
        with memo.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            if int(archive["format"]) != _FORMAT:
                return None
            return Listing(archive["names"], archive["sizes"], archive["folders"], archive["stamps"])
    except cache.UNREADABLE:
        return None


def _still_true(place: bytes, known: Listing) -> bool:
    try:
        for inside, stamp in zip(known.folders.tolist(), known.stamps.tolist(), strict=True):
            status = os.stat(os.path.join(place, inside))  # noqa: PTH116, PTH118
            if [status.st_mtime_ns, status.st_ino] != stamp:
                return False
        for row in np.searchsorted(known.names, known.folders):  # the first file at or after each folder's name
            if row < len(known.names):
                name = bytes(known.names[row])
                if os.stat(os.path.join(place, name)).st_size != known.sizes[row]:  # noqa: PTH116, PTH118
                    return False
    except (OSError, ValueError):
        return False
    return True

"""ImageNet's val folder as it is unpacked, val/ILSVRC2012_val_00000001.JPEG ...: whose class a list tells.

Four lists are read, the first that is found:

- `val_map.txt` or `val.txt`, in val or beside it: a line is a file and its class, by the class folder's name
  (`ILSVRC2012_val_00000001.JPEG n01751748`) or by its place among the sorted folders from 0 (`... 65`, Caffe's);
- `LOC_val_solution.csv`, which Kaggle gives with the images;
- `ILSVRC2012_validation_ground_truth.txt` of the official development kit: line i is the class of image i, as a
  number whose order is the kit's own and not that of the sorted folders, so that `meta.mat` beside it is needed.

The last two are looked for in val, in the four folders above it, and in a development kit unpacked there.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from qexp.data.trees import Listing, Tree
from qexp.errors import DataError

PLAIN = ("val_map.txt", "val.txt")
KAGGLE = "LOC_val_solution.csv"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
KITS = ("", "ILSVRC2012_devkit_t12/data", "devkit/data", "data")
"""Where below a folder the development kit's files may lie."""

_LEVELS = 4


def flat_tree(folder: Path, listing: Listing, classes: tuple[str, ...], given: Path | None) -> Tree:
    """Return the images that lie loose in `folder`, in the order that class folders would give them.

    Args:
        folder: val.
        listing: of `folder`.
        classes: of the training split.
        given: the list to read; None: the first that is found.

    Raises:
        DataError: no list, one that cannot be read, or one that does not fit images and classes.
    """
    source = find_list(folder) if given is None else given
    answers = read_list(source, classes)
    names = listing.names[listing.loose]
    stems = [_stem(name.decode(errors="surrogateescape")) for name in names.tolist()]
    numbers = {name: number for number, name in enumerate(classes)}
    for stem in stems:
        if answers.get(stem) not in numbers:
            why = f"of class {answers[stem]!r}, which is not in train" if stem in answers else "not in it"
            raise DataError(f"{source}: the list does not fit {folder}, image {stem} is {why}.")
    if absent := sorted({stem for stem, name in answers.items() if name in numbers} - set(stems)):
        raise DataError(
            f"{folder}: {len(absent)} of the images in {source} are not there, {absent[0]} for one; copy them, or"
            " give a list without them with dataset.val_list=FILE."
        )
    labels = np.array([numbers[answers[stem]] for stem in stems], dtype=np.int64)
    if len(empty := np.setdiff1d(np.arange(len(classes)), labels)):
        raise DataError(f"{folder}: by {source} it has no image of class {classes[empty[0]]!r}.")
    order = np.argsort(labels, kind="stable")
    return Tree(folder, classes, names[order], labels[order], listing.sizes[listing.loose][order])


def find_list(folder: Path) -> Path:
    """Return the list for the images in `folder`.

    Raises:
        DataError: there is none; says what was looked for and where, and how to get it.
    """
    above = [folder, *folder.absolute().parents[:_LEVELS]]
    for place in above:
        plain = [place / name for name in PLAIN] if place in above[:2] else []
        official = [place / kit / name for kit in KITS for name in (KAGGLE, TRUTH)]
        for file in (*plain, *official):
            if file.is_file():
                return file
    raise DataError(
        f"{folder}: the images lie loose in it and no list tells their classes; looked for {' and '.join(PLAIN)}"
        f" there and in {above[1]}, for {KAGGLE} and {TRUTH} (with meta.mat) there and up to {above[-1]}. Unpack"
        f" ILSVRC2012_devkit_t12.tar.gz of https://image-net.org into {above[1]}, sort the images into class"
        " folders, or name a list with dataset.val_list=FILE."
    )


def read_list(file: Path, classes: tuple[str, ...]) -> dict[str, str]:
    """Return the class name of each image by its name without ending.

    Args:
        file: a list in one of the module's forms.
        classes: of the training split, sorted.

    Raises:
        DataError: the file, or meta.mat beside it, cannot be read or holds something else.
    """
    try:
        if file.name == TRUTH:
            return _read_truth(file)
        pairs = dict(_kaggle_pairs(file) if file.suffix == ".csv" else _plain_pairs(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: the list cannot be read ({error}).") from error
    if not pairs:
        raise DataError(f"{file}: an empty list; a line is an image and its class.")
    by_place = all(value.isdecimal() for value in pairs.values()) and not set(pairs.values()) <= set(classes)
    return {stem: _at(value, classes, file) for stem, value in pairs.items()} if by_place else pairs


def _at(value: str, classes: tuple[str, ...], file: Path) -> str:
    if int(value) >= len(classes):
        raise DataError(
            f"{file}: class {value} is outside 0 ... {len(classes) - 1}, the places of the sorted class folders;"
            " a list that counts otherwise has to name them (n01440764)."
        )
    return classes[int(value)]


def _plain_pairs(file: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if words := line.rsplit(maxsplit=1):
            if len(words) != 2:
                raise DataError(f"{file}, line {number}: {line[:60]!r}; a line is an image and its class.")
            yield _stem(words[0]), words[1]


def _kaggle_pairs(file: Path) -> Iterator[tuple[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        for number, row in enumerate(csv.DictReader(stream), start=2):
            boxes = (row.get("PredictionString") or "").split()
            if not row.get("ImageId") or not boxes:
                raise DataError(f"{file}, line {number}: a line is ImageId,PredictionString, the class first.")
            yield _stem(row["ImageId"]), boxes[0]


def _read_truth(file: Path) -> dict[str, str]:
    names = _kit_classes(file.with_name("meta.mat"), file)
    lines = file.read_text(encoding="utf-8").split()
    if unknown := [line for line in lines if not line.isdecimal() or int(line) not in names]:
        raise DataError(f"{file}: {unknown[0]!r} is no class of {file.with_name('meta.mat')}.")
    return {f"ILSVRC2012_val_{number:08d}": names[int(line)] for number, line in enumerate(lines, start=1)}


def _kit_classes(meta: Path, truth: Path) -> dict[int, str]:
    """Return the WordNet ID behind each ILSVRC2012_ID of the development kit's meta.mat."""
    if not meta.is_file():
        raise DataError(
            f"{truth}: no meta.mat beside it; its numbers are the development kit's own and only meta.mat tells"
            " which class folder each is. Both are in ILSVRC2012_devkit_t12/data."
        )
    from scipy.io import loadmat

    try:
        rows = np.atleast_1d(loadmat(meta, squeeze_me=True, variable_names=["synsets"])["synsets"])
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
    except Exception as error:  # scipy raises its own and whatever a damaged file leads to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{meta}: not the development kit's meta.mat ({reason}).") from error


def _stem(name: str) -> str:
    """Return `ILSVRC2012_val_00000001` of any path to it, with or without its ending."""
    return Path(name).stem

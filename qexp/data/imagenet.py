"""ImageNet in its folders, train/<class>/* and val/<class>/*: decoded and augmented as it goes, by workers.

Source: O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, 2015. Preparation as in PACT
(arXiv 1805.06085, appendix B): shorter side to 256, random crop of 224; the centre crop for evaluation.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qexp.data.base import ImageSource, normalisation
from qexp.data.batches import Batches, Plan
from qexp.data.checks import check_common, check_statistics, check_whole
from qexp.data.crops import CROPS
from qexp.data.decoding import Decoding, FileBatches
from qexp.data.flat_val import flat_tree
from qexp.data.splits import pick, training_rows
from qexp.data.trees import Tree, list_images, scan
from qexp.errors import DataError

MOST_WORKERS = 16


class ImageNet(ImageSource):
    """ImageNet, or any tree of the same form that is too large for memory; `val` is the test split.

    `train` has a folder for each class. `val` has the same folders, or all images loose in it (as
    ILSVRC2012_img_val.tar unpacks) and in it or above it a list of their classes: `val.txt` or `val_map.txt`,
    Kaggle's `LOC_val_solution.csv`, or the development kit's `ILSVRC2012_validation_ground_truth.txt` with its
    `meta.mat`; `qexp.data.flat_val` describes them. Both forms give the same samples in the same order.

    Args:
        name: short name.
        root: folder with `train` and `val`.
        val_list: the list of a loose `val`; None looks for it.
        download: must be false: ImageNet is given on request only.
        num_classes: class folders in `train`.
        resize: the shorter side before a crop, pixels.
        crop: height and width of what the network sees, pixels.
        mean, std: per channel, images on the scale 0 ... 1.
        augment: of the training images: `none` (centre crop), `crop_flip` or `resized_crop` (with flip).
        validation: share of the training samples set apart for choosing, 0 for none; always the same ones.
        train_samples: train on this many of the others, all classes alike, always the same ones; None: on all.
        eval_batch_size: samples of one batch of validation and test.
        workers: decoding processes; 0 decodes in this one, None takes one per processor, at most 16.

    Raises:
        DataError: an argument without meaning.
    """

    def __init__(
        self,
        *,
        mean: list[float],
        std: list[float],
        name: str = "imagenet",
        root: str = "data/imagenet",
        val_list: str | None = None,
        download: bool = False,
        num_classes: int = 1000,
        resize: int = 256,
        crop: int = 224,
        augment: str = "crop_flip",
        validation: float = 0.0,
        train_samples: int | None = None,
        eval_batch_size: int = 500,
        workers: int | None = None,
    ) -> None:
        self.root = check_common(
            root=root,
            download=download,
            augment=augment,
            augmentations=CROPS,
            validation=validation,
            train_samples=train_samples,
            eval_batch_size=eval_batch_size,
        )
        check_statistics(mean, std, 3)
        if download:
            raise DataError(
                "dataset.download=true: ImageNet is given on request only (https://image-net.org);"
                " put train and val into dataset.root and set it to false."
            )
        check_whole("num_classes", num_classes, 1)
        check_whole("crop", crop, 1, " pixels")
        check_whole("resize", resize, crop, " pixels: no smaller than dataset.crop")
        if workers is not None:
            check_whole("workers", workers, 0, " decoding processes, or null")
        if not isinstance(val_list, (str, type(None))):
            raise DataError(f"dataset.val_list={val_list!r}: the path of a list, or null.")
        self.name = name
        self.val_list = None if val_list is None else Path(val_list).expanduser()
        self.augment, self.resize, self.crop = augment, resize, crop
        self.validation, self.train_samples = validation, train_samples
        self.eval_batch_size, self.workers = eval_batch_size, workers
        self._num_classes, self._mean, self._std = num_classes, tuple(mean), tuple(std)
        self._trees: dict[str, Tree] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(3, crop, crop)."""
        return 3, self.crop, self.crop

    @property
    def num_classes(self) -> int:
        """As given."""
        return self._num_classes

    @property
    def mean(self) -> tuple[float, ...]:
        """As given."""
        return self._mean

    @property
    def std(self) -> tuple[float, ...]:
        """As given."""
        return self._std

    def trees(self) -> dict[str, Tree]:
        """Return the listing of `train` and `test`, made at the first call."""
        if self._trees is None:
            if missing := [each for each in ("train", "val") if not (self.root / each).is_dir()]:
                raise DataError(self._how_to_get_it(missing[0]))
            train = scan(self.root / "train")
            if len(train.classes) != self._num_classes:
                raise DataError(
                    f"dataset.num_classes={self._num_classes}: {train.folder} has {len(train.classes)}"
                    " class folders; give their number."
                )
            self._trees = {"train": train, "test": self._val(train.classes)}
        return self._trees

    def _val(self, classes: tuple[str, ...]) -> Tree:
        folder = self.root / "val"
        listing = list_images(folder)
        sorted_in = set(listing.classes) & set(classes)
        loose = len(listing.loose)
        if loose and sorted_in:
            raise DataError(
                f"{folder}: {loose} images lie loose in it beside class folders; sort them into these, or take the"
                " folders away."
            )
        if loose:
            return flat_tree(folder, listing, classes, self.val_list)
        if self.val_list is not None:
            raise DataError(f"dataset.val_list={self.val_list}: {folder} has no loose images; set it to null.")
        return scan(folder, classes)

    def _how_to_get_it(self, missing: str) -> str:
        there = "" if self.root.is_dir() else ", nor the root itself"
        return (
            f"dataset.root={str(self.root)!r}: no data set {self.name} there (no folder {missing}{there}); it is"
            " train/<class>/*.JPEG and val, in class folders or loose with the official list. ImageNet (ILSVRC"
            " 2012, 150 GB) is given on request at https://image-net.org: unpack ILSVRC2012_img_train.tar and the"
            " archives in it into train/<class>, ILSVRC2012_img_val.tar into val, ILSVRC2012_devkit_t12.tar.gz"
            " beside them; then set dataset.root, or QEXP_DATA to the folder that holds the folder imagenet."
        )

    def digest(self) -> str:
        """Return the sha256 over names and sizes of all files; their contents would take minutes to read."""
        total = hashlib.sha256()
        for split, tree in self.trees().items():
            for line in tree.lines():
                total.update(b"%s/%s" % (split.encode(), line))
        return total.hexdigest()

    def train_batches(
        self,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        *,
        rank: int = 0,
        world_size: int = 1,
        channels_last: bool = True,
    ) -> Batches:
        """Return the augmented training batches; `batch_size` counts the samples of all ranks together."""
        rows, _ = self._training_rows()
        plan = Plan(torch.from_numpy(rows), batch_size, True, True, seed, rank, world_size)
        return self._batches("train", plan, device, self.augment, channels_last)

    def test_size(self) -> int:
        """Return the number of images of `val`."""
        return len(self.trees()["test"])

    def validation_rows(self) -> tuple[str, Tensor]:
        """Return the share carved from the training images."""
        return "train", torch.from_numpy(self._training_rows()[1])

    def chosen_rows(self, count: int, seed: int | None) -> Tensor:
        """Return a random draw, or each class with its share."""
        return torch.from_numpy(pick(self.trees()["train"].labels, self._training_rows()[0], count, seed))

    def unaugmented(self, split: str, plan: Plan, device: torch.device | str, channels_last: bool) -> Batches:
        """Return centre crops of the images of a split that `plan` names."""
        return self._batches(split, plan, device, "none", channels_last)

    def _training_rows(self) -> tuple[np.ndarray, np.ndarray]:
        return training_rows(self.trees()["train"].labels, self.validation, self.train_samples)

    def _batches(
        self, split: str, plan: Plan, device: torch.device | str, augment: str, channels_last: bool
    ) -> Batches:
        decoding = Decoding(self.trees()[split], augment, self.resize, self.crop, plan.seed)
        workers = _processors() // plan.world_size if self.workers is None else self.workers
        numbers = [np.tile(each, self.crop**2) for each in normalisation(self.mean, self.std, self.peak)]
        scale, shift = (torch.from_numpy(each).to(device) for each in numbers)
        return FileBatches(decoding, plan, scale, shift, workers, channels_last)


def _processors() -> int:
    """Return how many processors this process may use, at most 16."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MOST_WORKERS)

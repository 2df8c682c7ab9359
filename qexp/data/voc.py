"""Pascal VOC as it is unpacked: images with segmentation masks or with boxes, for evaluation and calibration.

Everingham et al. 2010, "The Pascal Visual Object Classes (VOC) Challenge"; http://host.robots.ox.ac.uk/pascal/VOC.
"""

from __future__ import annotations

import functools
import hashlib
import xml.etree.ElementTree as ElementTree
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qexp.data import images
from qexp.data.base import ImageSource, normalisation
from qexp.data.batches import Batches, Plan
from qexp.data.checks import check_statistics, check_whole
from qexp.errors import DataError

CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""The twenty classes behind the background, in the order of their numbers in the masks."""

VOID = 255
"""In a mask: borders and what is hard to tell; it counts for nothing. Padding is as well."""


class VOC(ImageSource):
    """The images of two lists, one to calibrate on and one to evaluate on, decoded as they are asked for.

    Args:
        root: the folder with JPEGImages, or one above it (VOCdevkit, or what holds it).
        year: of the folder VOC<year> below it.
        size: side of the square that the network sees.
        train_list, test_list: names without ending in ImageSets/<task>/, one image a line.
        mean, std: of the pixels on the scale 0 ... 1, as the network was trained.
        eval_batch_size: images of a batch.

    Raises:
        DataError: from whatever reads: no such folder or list, a file missing or damaged.
    """

    folder: ClassVar[str]
    """Below ImageSets: whose lists are read."""

    def __init__(
        self,
        *,
        name: str,
        root: str,
        year: int,
        size: int,
        train_list: str,
        test_list: str,
        mean: list[float],
        std: list[float],
        eval_batch_size: int = 8,
        train_samples: int | None = None,
    ) -> None:
        check_whole("year", year, 2005)
        check_whole("size", size, 1)
        check_whole("eval_batch_size", eval_batch_size, 1)
        check_statistics(mean, std, 3)
        if train_samples is not None:
            raise DataError("dataset.train_samples: nothing is trained on VOC here; leave it at null.")
        self.name, self.root, self.year, self.size = name, Path(root).expanduser(), year, size
        self.lists = {"train": train_list, "test": test_list}
        self._mean, self._std = tuple(mean), tuple(std)
        self.eval_batch_size = eval_batch_size

    @property
    def shape(self) -> tuple[int, int, int]:
        """(3, size, size)."""
        return 3, self.size, self.size

    @property
    def num_classes(self) -> int:
        """21, the background included."""
        return len(CLASSES)

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, on the scale 0 ... 1."""
        return self._mean

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, on the scale 0 ... 1."""
        return self._std

    @functools.cached_property
    def place(self) -> Path:
        """The folder with JPEGImages.

        Raises:
            DataError: there is none.
        """
        below = (Path(), Path(f"VOC{self.year}"), Path("VOCdevkit") / f"VOC{self.year}")
        for each in below:
            if (self.root / each / "JPEGImages").is_dir():
                return self.root / each
        raise DataError(
            f"dataset.root={str(self.root)!r}: no VOC{self.year} there (no folder JPEGImages, in it or in"
            f" VOCdevkit/VOC{self.year}); unpack VOCtrainval of that year and set dataset.root."
        )

    def names(self, split: str) -> list[str]:
        """Return the names of a split's images, as listed.

        Raises:
            DataError: no such list, or an empty one.
        """
        file = self.place / "ImageSets" / self.folder / f"{self.lists[split]}.txt"
        if not file.is_file():
            raise DataError(f"{file}: no such list; set dataset.{split}_list to one of those beside it.")
        # Lists of one class have a second column, 1 where the image shows it.
        found = [line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not found:
            raise DataError(f"{file}: the list is empty.")
        return found

    def digest(self) -> str:
        """Return a digest of both lists, of the images' sizes in bytes and of what the annotations hold."""
        digest = hashlib.sha256(f"{self.task} {self.recipe()}".encode())
        for split in ("train", "test"):
            for name in self.names(split):
                image, annotation = self.files(name)
                size = image.stat().st_size
                held = hashlib.sha256(annotation.read_bytes()).hexdigest()
                digest.update(f"{split} {name} {size} {held}\n".encode())
        return digest.hexdigest()

    def files(self, name: str) -> tuple[Path, Path]:
        """Return an image's file and its annotation's.

        Raises:
            DataError: one of them is missing.
        """
        image = self.place / "JPEGImages" / f"{name}.jpg"
        annotation = self.annotation(name)
        for file in (image, annotation):
            if not file.is_file():
                raise DataError(f"{file}: missing, but listed; unpack the whole of VOC{self.year}.")
        return image, annotation

    @abstractmethod
    def annotation(self, name: str) -> Path:
        """Return the file with what the image shows."""

    @abstractmethod
    def recipe(self) -> str:
        """Return how an image is brought to its size."""

    @abstractmethod
    def read(self, name: str) -> tuple[Tensor, Any]:
        """Return an image, float32 (3, size, size), normalised, and its label."""

    @abstractmethod
    def collate(self, labels: Sequence[Any]) -> Any:
        """Return the labels of a batch."""

    def normalised(self, pixels: np.ndarray) -> Tensor:
        """Return uint8 (height, width, 3) as float32 (3, height, width), normalised."""
        scale, shift = normalisation(self.mean, self.std, self.peak)
        return torch.from_numpy(pixels.astype(np.float32) * scale + shift).permute(2, 0, 1).contiguous()

    def train_batches(self, *arguments: Any, **settings: Any) -> Batches:
        """Refuse: nothing is trained on these."""
        raise DataError(f"dataset={self.name}: for qexp ptq and its evaluation; qexp train does not train on it.")

    def test_size(self) -> int:
        """Return the number of images of the test list."""
        return len(self.names("test"))

    def validation_rows(self) -> tuple[str, Tensor]:
        """Return none: no list is set apart."""
        return "train", torch.arange(0)

    def chosen_rows(self, count: int, seed: int | None) -> Tensor:
        """Return the first of the train list, or a random draw."""
        if count < 1:
            raise DataError(f"{count} samples: at least one is needed.")
        rows = torch.arange(len(self.names("train")))
        if seed is not None:
            rows = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        return rows[:count]

    def unaugmented(self, split: str, plan: Plan, device: torch.device | str, channels_last: bool) -> Batches:
        """Return the images of a list that `plan` names, decoded when it is their turn."""
        return _Files(self, self.names(split), plan, device, channels_last)


class _Files(Batches):
    """Decodes the images of each batch when it is its turn."""

    def __init__(
        self, source: VOC, names: Sequence[str], plan: Plan, device: torch.device | str, channels_last: bool
    ) -> None:
        super().__init__(plan)
        self.source, self.names, self.device = source, names, torch.device(device)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def _load(self, shares: Iterable[Tensor], epoch: int) -> Iterator[Any]:
        for rows in shares:
            if not len(rows):  # of a last batch with fewer samples than processes
                yield torch.zeros(0, *self.source.shape), []
                continue
            read = [self.source.read(self.names[int(row)]) for row in rows]
            stacked = torch.stack([image for image, _ in read]).contiguous(memory_format=self.memory_format)
            yield stacked.to(self.device), self.source.collate([label for _, label in read])


class VOCSegmentation(VOC):
    """Images and masks, at their own size in the upper left of a square; larger ones are made smaller.

    What is around an image has the mean's colour and counts for nothing, as in DeepLab's evaluation (513 x 513).
    """

    task, folder, primary_metric = "segmentation", "Segmentation", "miou"

    def annotation(self, name: str) -> Path:
        """Return the mask's file."""
        return self.place / "SegmentationClass" / f"{name}.png"

    def recipe(self) -> str:
        """Say how an image is brought to its size."""
        return f"padded {self.size}"

    def read(self, name: str) -> tuple[Tensor, Tensor]:
        """Return image and mask, int64 (size, size), `VOID` where nothing counts."""
        file, annotation = self.files(name)
        image, mask = images.decode(file, 3), _mask(annotation)
        if mask.size != image.size:
            raise DataError(f"{annotation}: {mask.size} pixels, its image has {image.size}.")
        factor = self.size / max(image.size)
        if factor < 1:
            smaller = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
            image = image.resize(smaller, Image.Resampling.BILINEAR)
            mask = mask.resize(smaller, Image.Resampling.NEAREST)
        normalised = torch.zeros(3, self.size, self.size)  # the mean's colour
        normalised[:, : image.height, : image.width] = self.normalised(images.pixels(image))
        classes = torch.full((self.size, self.size), VOID, dtype=torch.int64)
        numbers = np.array(mask, dtype=np.int64)
        if wrong := sorted(set(np.unique(numbers)) - {*range(len(CLASSES)), VOID}):
            raise DataError(f"{annotation}: class {wrong[0]} is none of VOC's 0 to 20 and {VOID}.")
        classes[: mask.height, : mask.width] = torch.from_numpy(numbers)
        return normalised, classes

    def collate(self, labels: Sequence[Tensor]) -> Tensor:
        """Stack the masks: int64 (images, size, size)."""
        return torch.stack(list(labels))


class VOCDetection(VOC):
    """Images brought to a square, their proportions lost, as SSD takes them, and boxes in its own pixels."""

    task, folder, primary_metric = "detection", "Main", "map"

    def annotation(self, name: str) -> Path:
        """Return the file with the boxes."""
        return self.place / "Annotations" / f"{name}.xml"

    def recipe(self) -> str:
        """Say how an image is brought to its size."""
        return f"squeezed {self.size}"

    def read(self, name: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Return image and objects: `boxes` (n, 4) as x1 y1 x2 y2, `labels`, `difficult`, `size` (w, h)."""
        file, annotation = self.files(name)
        image = images.decode(file, 3)
        resized = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        found = list(_objects(annotation))
        return self.normalised(images.pixels(resized)), {
            "boxes": torch.tensor([box for box, _, _ in found], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([label for _, label, _ in found], dtype=torch.int64),
            "difficult": torch.tensor([difficult for _, _, difficult in found], dtype=torch.bool),
            "size": torch.tensor(image.size, dtype=torch.float32),
        }

    def collate(self, labels: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Return the objects of each image."""
        return list(labels)


def _mask(file: Path) -> Image.Image:
    """Read a mask's class numbers: the indices of its palette."""
    try:
        with Image.open(file) as mask:
            mask.load()
            if mask.mode not in ("P", "L"):
                raise DataError(f"{file}: a mask holds class numbers (palette or grey), this is {mask.mode}.")
            return mask.copy()
    except images.DAMAGE as error:
        raise DataError(f"{file}: cannot be decoded ({error}); replace it.") from error


def _objects(file: Path) -> Iterator[tuple[list[float], int, bool]]:
    """Yield box, class and whether it is marked difficult.

    Of pixels counted from 1, the last included, come corners between pixels, counted from 0: the first pixel alone
    is (0, 0, 1, 1).
    """
    try:
        root = ElementTree.fromstring(file.read_bytes())
    except ElementTree.ParseError as error:
        raise DataError(f"{file}: no readable annotation ({error}); replace it.") from error
    for each in root.iter("object"):
        label, box = each.findtext("name", "").strip(), each.find("bndbox")
        if label not in CLASSES[1:]:
            raise DataError(f"{file}: an object '{label}', which is none of VOC's twenty classes.")
        try:
            left, top, right, bottom = (float(box.findtext(key, "")) for key in ("xmin", "ymin", "xmax", "ymax"))  # type: ignore[union-attr]
        except (AttributeError, ValueError) as error:
            raise DataError(f"{file}: an object without a box of four numbers; replace it.") from error
        yield (
            [left - 1, top - 1, right, bottom],
            CLASSES.index(label),
            each.findtext("difficult", "0").strip() == "1",
        )

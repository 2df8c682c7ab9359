from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qexp.build import build
from qexp.data.voc import VOID
from qexp.errors import DataError

from ..composing import compose
from .voc_tree import make


def source(name: str, root: Path, **changes: object):
    node = compose(f"dataset={name}", f"dataset.root={root}", command="ptq")["dataset"]
    return build({**node, **changes})


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(make(tmp_path_factory.mktemp("voc"), 2012), 2007)


def test_masks_keep_their_classes_and_padding_is_void(voc: Path) -> None:
    data = source("voc_segmentation", voc, size=80)
    ((images, masks),) = list(data.test_batches(None, "cpu"))
    assert images.shape == (3, 3, 80, 80) and masks.shape == (3, 80, 80) and masks.dtype == torch.int64
    place = voc / "VOCdevkit" / "VOC2012"
    name = (place / "ImageSets/Segmentation/val.txt").read_text().split()[1]
    mask = np.array(Image.open(place / "SegmentationClass" / f"{name}.png"))
    height, width = mask.shape
    assert torch.equal(masks[1, :height, :width], torch.from_numpy(mask.astype(np.int64)))
    assert (masks[1, height:] == VOID).all() and (masks[1, :, width:] == VOID).all()
    pixels = np.asarray(Image.open(place / "JPEGImages" / f"{name}.jpg"), dtype=np.float32) / 255
    expected = (pixels - np.float32(data.mean)) / np.float32(data.std)
    torch.testing.assert_close(images[1, :, :height, :width], torch.from_numpy(expected).permute(2, 0, 1))
    assert (images[1, :, height:] == 0).all()


def test_an_image_too_large_is_made_smaller_with_its_mask(voc: Path) -> None:
    ((images, masks),) = list(source("voc_segmentation", voc, size=32).test_batches(None, "cpu"))
    assert images.shape[-1] == 32 and set(masks.unique().tolist()) - {0, VOID}
    assert (masks[0] != VOID).sum() > 32 * 20


def test_boxes_are_in_the_images_own_pixels(voc: Path) -> None:
    ((images, objects),) = list(source("voc_detection", voc).test_batches(None, "cpu"))
    assert images.shape == (3, 3, 320, 320) and len(objects) == 3
    assert objects[0]["boxes"][0].tolist() == [5, 5, 30, 20], "pixels 6 to 30 and 6 to 20, counted from 1"
    assert objects[0]["labels"].tolist() == [12, 15] and objects[0]["difficult"].tolist() == [False, True]
    width, height = objects[0]["size"].tolist()
    assert objects[0]["boxes"][1].tolist() == [0, 0, width, height]


def test_calibration_draws_from_the_training_list_alone(voc: Path) -> None:
    data = source("voc_detection", voc)
    rows = [data.training_samples(3, 1, "cpu", seed=seed).plan.rows.tolist() for seed in (0, 0, 1, 2, 3)]
    assert rows[0] == rows[1] and len({tuple(each) for each in rows}) > 1
    assert all(len(set(each)) == 3 and max(each) < 4 for each in rows)
    assert sum(len(images) for images, _ in data.training_samples(99, 3, "cpu", seed=0)) == 4


def test_the_digest_follows_what_the_files_hold(tmp_path: Path) -> None:
    make(tmp_path, 2012)
    data = source("voc_segmentation", tmp_path)
    before = data.digest()
    moved = tmp_path / "elsewhere"
    (tmp_path / "VOCdevkit" / "VOC2012").rename(moved)
    assert source("voc_segmentation", moved).digest() == before
    assert source("voc_segmentation", moved, size=65).digest() != before
    mask = next((moved / "SegmentationClass").glob("*.png"))
    Image.fromarray(np.zeros_like(np.array(Image.open(mask)))).save(mask)
    assert source("voc_segmentation", moved).digest() != before


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda place: (place / "JPEGImages").rename(place / "Images"), "no VOC2012 there"),
        (lambda place: (place / "ImageSets/Segmentation/val.txt").unlink(), "no such list; set dataset.test_list"),
        (lambda place: (place / "ImageSets/Segmentation/val.txt").write_text("\n"), "the list is empty"),
        (lambda place: next((place / "SegmentationClass").glob("*6.png")).unlink(), "missing, but listed"),
        (lambda place: next((place / "JPEGImages").glob("*6.jpg")).write_bytes(b"x"), "cannot be decoded"),
        (
            lambda place: Image.new("RGB", (9, 9)).save(next((place / "SegmentationClass").glob("*6.png"))),
            "a mask holds class numbers",
        ),
        (
            lambda place: Image.new("L", (9, 9)).save(next((place / "SegmentationClass").glob("*6.png"))),
            "its image has",
        ),
    ],
)
def test_a_damaged_segmentation_set_is_named(tmp_path: Path, harm, message: str) -> None:
    make(tmp_path, 2012)
    harm(tmp_path / "VOCdevkit" / "VOC2012")
    with pytest.raises(DataError, match=message):
        list(source("voc_segmentation", tmp_path).test_batches(None, "cpu"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object>", "no readable annotation"),
        ("<annotation><object><name>unicorn</name></object></annotation>", "'unicorn'"),
        ("<annotation><object><name>dog</name></object></annotation>", "without a box"),
        (
            "<annotation><object><name>dog</name><bndbox><xmin>a</xmin></bndbox></object></annotation>",
            "without a box",
        ),
    ],
)
def test_a_damaged_annotation_is_named(tmp_path: Path, text: str, message: str) -> None:
    make(tmp_path, 2007)
    sorted((tmp_path / "VOCdevkit/VOC2007/Annotations").glob("*.xml"))[-1].write_text(text)
    with pytest.raises(DataError, match=message):
        list(source("voc_detection", tmp_path).test_batches(None, "cpu"))


def test_an_image_without_objects_has_none(tmp_path: Path) -> None:
    make(tmp_path, 2007)
    sorted((tmp_path / "VOCdevkit/VOC2007/Annotations").glob("*.xml"))[-1].write_text("<annotation/>")
    ((_, objects),) = list(source("voc_detection", tmp_path).test_batches(None, "cpu"))
    assert objects[-1]["boxes"].shape == (0, 4)


def test_training_is_refused(voc: Path) -> None:
    with pytest.raises(DataError, match="qexp train does not train on it"):
        source("voc_detection", voc).train_batches(4, 0, "cpu")

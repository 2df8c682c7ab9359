from __future__ import annotations

import gc
import multiprocessing
import os
import random
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from qexp.data.crops import cut, random_area
from qexp.data.imagefolder import ImageFolder
from qexp.data.imagenet import ImageNet
from qexp.data.images import decode
from qexp.errors import DataError

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def folder(tree, **arguments) -> ImageFolder:
    return ImageFolder(root=str(tree), **arguments)


def imagenet(tree, **arguments) -> ImageNet:
    given = {"num_classes": 2, "resize": 36, "crop": 32, "workers": 0, "mean": MEAN, "std": STD}
    return ImageNet(root=str(tree), **(given | arguments))


def batches_of(source, epoch: int = 0, **arguments) -> list[tuple[torch.Tensor, torch.Tensor]]:
    batches = source.train_batches(4, 0, "cpu", **arguments)
    batches.load_state_dict({"epoch": epoch, "position": 0})
    return list(batches)


def same(left, right) -> bool:
    return all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(left, right, strict=True))


def test_a_tree_is_read_into_memory(tree, photographs):
    source = folder(tree)
    assert source.shape == (3, 40, 48) and source.num_classes == 2
    train = source.splits["train"]
    assert train.images.shape == (12, 40, 48, 3) and train.labels.tolist() == [0] * 6 + [1] * 6
    assert np.array_equal(train.images[0], photographs[0][:40, 15:63])  # a PNG keeps every pixel
    assert len(next(iter(source.test_batches(None, "cpu")))[1]) == 6
    assert len(next(iter(source.validation_batches(None, "cpu")))[1]) == 4


def test_images_are_brought_to_the_shape_asked_for(tree):
    source = folder(tree, shape=[1, 24, 24], num_classes=2, mean=[0.5], std=[0.5])
    assert source.splits["test"].images.shape == (6, 24, 24, 1)
    assert folder("/nowhere", shape=[1, 24, 24], num_classes=2).num_classes == 2


def test_without_test_the_val_folder_is_the_test_split(tree):
    (tree / "test").rename(tree / "unused")
    source = folder(tree)
    assert len(next(iter(source.test_batches(None, "cpu")))[1]) == 4
    assert source.validation_batches(None, "cpu") is None


def test_the_digest_sees_contents_and_names(tree):
    before = folder(tree).digest()
    assert before == folder(tree).digest()
    (tree / "train/n00/0.png").rename(tree / "train/n00/00.png")
    renamed = folder(tree).digest()
    Image.new("RGB", (48, 40)).save(tree / "train/n00/00.png")
    assert len({before, renamed, folder(tree).digest()}) == 3


def test_problems_of_a_tree_are_named(tree):
    with pytest.raises(DataError, match=r"dataset.num_classes=3: .*train has 2 class folders"):
        folder(tree, num_classes=3).digest()
    (tree / "train/n02").mkdir()
    with pytest.raises(DataError, match=r"n02: no image in this class"):
        folder(tree).digest()
    Image.new("RGB", (48, 40)).save(tree / "train/n02/a.png")
    with pytest.raises(DataError, match=r"'n02' is only in the training split"):
        folder(tree).digest()
    with pytest.raises(DataError, match=r"dataset.root='/nowhere': no data set imagefolder there"):
        folder("/nowhere").splits  # noqa: B018


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
@pytest.mark.parametrize("kind", [folder, imagenet])
def test_an_image_that_cannot_be_decoded_is_named(tree, kind, damage):
    file = tree / "train/n01/1.JPEG"
    content = file.read_bytes()
    file.write_bytes({"truncated": content[: len(content) // 2], "text": b"hello", "empty": b""}[damage])
    with pytest.raises(DataError, match=r"n01/1.JPEG: cannot be decoded") as caught:
        batches_of(kind(tree))
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")  # on one core
def test_a_truncated_image_is_named_by_a_worker_too(tree):
    file = tree / "train/n01/1.JPEG"
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"n01/1.JPEG: cannot be decoded \(.*[Tt]runcated") as caught:
        batches_of(imagenet(tree, workers=2))
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")  # on one core
@pytest.mark.parametrize("how", ["an error that is kept", "found by the garbage collector"])
def test_the_workers_of_an_epoch_that_is_broken_off_end_at_once(tree, how):
    others = set(multiprocessing.active_children())
    batches = iter(imagenet(tree, workers=2).train_batches(1, 0, "cpu"))
    next(batches)
    workers = set(multiprocessing.active_children()) - others
    assert len(workers) == 2
    if how == "an error that is kept":
        with pytest.raises(KeyError) as kept:
            batches.throw(KeyError("of the step"))
        assert kept.value.__traceback__ is not None
    else:
        cycle = [batches]
        cycle.append(cycle)
        del batches, cycle
        gc.collect()
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_what_imagenet_really_holds_is_decoded(tree, photographs):
    image = Image.fromarray(photographs[0][:40, :48])
    image.save(tree / "train/n00/a.png")
    (tree / "train/n00/a.png").rename(tree / "train/n00/a.JPEG")  # a PNG by content
    image.convert("CMYK").save(tree / "train/n00/b.JPEG", quality=100)
    turned = Image.Exif()
    turned[0x0112] = 6  # "rotate by 90 degrees", which nobody's preparation of ImageNet does
    image.save(tree / "train/n00/c.JPEG", exif=turned)
    damaged = b"Exif\x00\x00MM\x00*\xff\xff\xff\xff"
    image.save(tree / "train/n00/d.JPEG", exif=damaged)
    for name in ("a", "b", "c", "d"):
        decoded = decode(tree / f"train/n00/{name}.JPEG", 3)
        assert decoded.mode == "RGB" and decoded.size == (48, 40)
        assert np.abs(np.asarray(decoded).astype(int) - np.asarray(image)).mean() < 8


def test_what_is_no_image_is_passed_over(tree):
    before = imagenet(tree).digest()
    for name in (".DS_Store", "._0.JPEG", "n00.tar", "Thumbs.db", "readme.txt"):
        (tree / "train/n00" / name).write_bytes(b"x")
    (tree / "train/.cache").mkdir()
    (tree / "train/n00.tar").write_bytes(b"x")
    assert imagenet(tree).digest() == before
    linked = tree.with_name("linked")
    linked.symlink_to(tree)
    assert imagenet(linked).digest() == before


def test_archives_that_are_not_unpacked_are_said(tmp_path):
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
    (tmp_path / "train" / "n01440764.tar").touch()
    with pytest.raises(
        DataError, match=r"train: no class folders in it; .* archives \(\*.tar\) have to be unpacked"
    ):
        imagenet(tmp_path).digest()


def test_links_to_nothing_and_other_classes_are_named(tree):
    (tree / "train/n00/gone.JPEG").symlink_to(tree / "nothing.JPEG")
    with pytest.raises(DataError, match=r"gone.JPEG: cannot be read \(No such file"):
        imagenet(tree).digest()
    (tree / "train/n00/gone.JPEG").unlink()
    (tree / "val/n01").rename(tree / "val/n09")
    with pytest.raises(DataError, match=r"'n01' is only in the training split, and 1 more differ"):
        imagenet(tree).digest()


def test_an_image_of_another_size_is_named(tree):
    Image.new("RGB", (20, 30)).save(tree / "train/n01/1.JPEG")
    with pytest.raises(DataError, match=r"n01/1.JPEG: 30 x 20 pixels, .* dataset.shape"):
        folder(tree).splits  # noqa: B018
    assert folder(tree, shape=[3, 24, 24]).shape == (3, 24, 24)


def test_grey_palette_and_transparent_images_become_colour(tree):
    image = Image.open(tree / "train/n00/0.png")
    for number, mode in enumerate(["L", "P", "RGBA", "CMYK"]):
        image.convert(mode).save(tree / f"train/n00/extra{number}.{'tif' if mode == 'CMYK' else 'png'}")
    assert folder(tree).splits["train"].images.shape == (16, 40, 48, 3)


def test_imagenet_needs_no_data_for_its_shape():
    source = ImageNet(root="/nowhere", mean=MEAN, std=STD)
    assert source.shape == (3, 224, 224) and source.num_classes == 1000
    with pytest.raises(DataError, match=r"dataset.root='/nowhere': no data set imagenet there .*image-net.org"):
        source.digest()


def test_imagenet_training_samples_are_centre_crops_of_both_classes(tree):
    source = imagenet(tree, augment="resized_crop", validation=0.34)
    once, again = (list(source.training_samples(4, 3, "cpu")) for _ in range(2))
    assert same(once, again)
    assert [len(labels) for _, labels in once] == [3, 1]
    assert torch.cat([labels for _, labels in once]).tolist() == [0, 0, 1, 1]
    held = torch.cat([images for images, _ in source.validation_batches(None, "cpu")])
    assert not any(torch.equal(image, other) for images, _ in once for image in images for other in held)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")  # on one core
def test_imagenet_workers_do_not_change_a_batch(tree):
    for augment in ("crop_flip", "resized_crop"):
        alone = batches_of(imagenet(tree, augment=augment), epoch=3)
        helped = batches_of(imagenet(tree, augment=augment, workers=2), epoch=3)
        assert len(alone) == 3 and alone[0][0].shape == (4, 3, 32, 32) and same(alone, helped)
        assert not same(alone, batches_of(imagenet(tree, augment=augment), epoch=4))


def test_imagenet_resumes_and_divides_among_ranks(tree):
    source = imagenet(tree)
    whole = batches_of(source, epoch=1)
    interrupted = source.train_batches(4, 0, "cpu")
    interrupted.load_state_dict({"epoch": 1, "position": 0})
    head = list(islice(interrupted, 1))
    resumed = source.train_batches(4, 0, "cpu")
    resumed.load_state_dict({"epoch": 1, "position": interrupted.position})
    assert interrupted.position == 1 and same(head + list(resumed), whole)
    ranks = [batches_of(source, epoch=1, rank=rank, world_size=2) for rank in range(2)]
    joined = [(torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])) for a, b in zip(*ranks, strict=True)]
    assert same(joined, whole)


def test_imagenet_evaluates_the_centre_crop_of_val(tree, photographs):
    images, labels = next(iter(imagenet(tree, resize=40, crop=32).test_batches(None, "cpu")))
    assert labels.tolist() == [0, 0, 1, 1]
    expected = (photographs[0][4:36, 9 + 8 : 9 + 40] / 255 - np.array(MEAN)) / np.array(STD)
    assert np.abs(images[0].permute(1, 2, 0).numpy() - expected).max() < 1e-5


def test_imagenet_digest_is_of_names_and_sizes(tree):
    before = imagenet(tree).digest()
    os.utime(tree / "train/n00/0.png", (1e9, 1e9))
    assert imagenet(tree).digest() == before
    (tree / "train/n00/0.png").unlink()
    assert imagenet(tree).digest() != before


def test_imagenet_carves_a_validation_share(tree):
    source = imagenet(tree, validation=0.5)
    assert source.train_batches(2, 0, "cpu").samples == 6
    assert len(next(iter(source.validation_batches(None, "cpu")))[1]) == 6
    assert imagenet(tree).validation_batches(None, "cpu") is None


def test_imagenet_trains_on_a_part(tree):
    source = imagenet(tree, train_samples=4)
    (_, labels), *rest = batches_of(source)
    assert not rest and sorted(labels.tolist()) == [0, 0, 1, 1]
    assert len(next(iter(source.test_batches(None, "cpu")))[1]) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_samples": 0}, "dataset.train_samples=0: a whole number, 1 or more, or null"),
        ({"val_list": 3}, "dataset.val_list=3: the path of a list"),
        ({"download": True}, "dataset.download=true: ImageNet is given on request"),
        ({"crop": 300, "resize": 256}, "dataset.resize=256: a whole number, 300 or more"),
        ({"workers": -1}, "dataset.workers=-1"),
        ({"augment": "crop"}, "dataset.augment='crop'"),
    ],
)
def test_imagenet_refuses_arguments_without_meaning(arguments, message):
    with pytest.raises(DataError, match=message):
        imagenet("/nowhere", **arguments)


def test_random_areas_lie_inside_and_small_images_are_enlarged(photographs):
    chance = random.Random(0)
    for _ in range(300):
        left, upper, right, lower = random_area(50, 9, chance)
        assert 0 <= left < right <= 50 and 0 <= upper < lower <= 9
    small = Image.fromarray(photographs[0][:5, :9])
    for augment in ("none", "crop_flip", "resized_crop"):
        assert cut(small, augment, 36, 32, (0, 0, 0)).size == (32, 32)


def test_random_areas_are_the_papers():
    """Shares of the area even from 8 to 100 %, ratios even in their logarithm from 3:4 to 4:3, where they fit."""
    side, chance = 500, random.Random(0)
    boxes = np.array([random_area(side, side, chance) for _ in range(5000)])
    widths, heights = (boxes[:, 2:] - boxes[:, :2]).T
    areas, ratios = widths * heights / side**2, np.log(widths / heights)
    assert 0.079 < areas.min() < 0.085 and 0.97 < areas.max() <= 1
    tried = np.linspace(0.08, 1, 10_001)
    fitting = np.minimum(-np.log(tried) / np.log(4 / 3), 1)  # of the ratios of an area, those whose sides fit
    assert abs(areas.mean() - np.average(tried, weights=fitting)) < 0.015
    assert np.abs(ratios).max() < np.log(4 / 3) + 0.01 and abs(ratios.mean()) < 0.01
    small = ratios[areas < 0.7]
    assert abs(small.std() - np.log(4 / 3) / np.sqrt(3)) < 0.005
    middles = (boxes[:, :2] + boxes[:, 2:]).mean(0) / 2
    assert np.abs(middles - side / 2).max() < 0.01 * side


@pytest.mark.parametrize("augment", ["crop_flip", "resized_crop"])
def test_every_other_piece_is_flipped(augment):
    ramp = Image.fromarray(np.tile(np.arange(48, dtype=np.uint8), (40, 1)))
    pieces = [np.asarray(cut(ramp, augment, 36, 32, (0, 0, index))) for index in range(400)]
    flipped = [int(piece[0, 0]) > int(piece[0, -1]) for piece in pieces]
    assert 0.4 < np.mean(flipped) < 0.6


def test_greys_of_16_bits_are_scaled_and_of_32_refused(tmp_path):
    ramp = np.linspace(0, 65535, 256).reshape(16, 16)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "deep.png")
    found = np.asarray(decode(tmp_path / "deep.png", 1))
    assert found.flatten().tolist() == list(range(256))
    assert np.asarray(decode(tmp_path / "deep.png", 3)).shape == (16, 16, 3)
    for kind in (np.float32, np.int32):
        Image.fromarray(ramp.astype(kind)).save(tmp_path / "wide.tiff")
        with pytest.raises(DataError, match=r"wide\.tiff: its pixels are of mode [FI] \(32 bits\)"):
            decode(tmp_path / "wide.tiff", 1)


def test_one_class_folder_alone_is_a_folder_too_many(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "images" / "cat").mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / split / "images" / "cat" / "1.png")
    with pytest.raises(DataError, match="one class folder alone, 'images'"):
        folder(tmp_path).splits  # noqa: B018, it is read here

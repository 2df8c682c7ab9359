from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from qexp.data.imagenet import ImageNet
from qexp.errors import DataError

CLASSES = ("n01440764", "n02111889", "n07697313")
TRUTH = "ILSVRC2012_validation_ground_truth.txt"


@pytest.fixture
def sorted_tree(tmp_path, photographs) -> Path:
    """Class folders; val has two images a class, named as the official ones, in no order of class."""
    from PIL import Image

    root = tmp_path / "top" / "data" / "imagenet"
    for split in ("train", "val"):
        for number, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for piece in range(2):
                image = 3 * piece + (5 - number * 7) % 3 + 1
                stem = f"ILSVRC2012_val_{image:08d}" if split == "val" else f"{name}_{piece}"
                pixels = photographs[number % 2][20 * image : 20 * image + 40, :48]
                Image.fromarray(pixels).save(root / split / name / f"{stem}.JPEG")
    return root


@pytest.fixture
def flat(sorted_tree) -> Path:
    """The same with the images loose in val."""
    root = sorted_tree.with_name("flat")
    shutil.copytree(sorted_tree, root)
    for file in sorted((root / "val").glob("*/*")):
        file.rename(root / "val" / file.name)
    for name in CLASSES:
        (root / "val" / name).rmdir()
    return root


def answers(root: Path) -> dict[str, str]:
    """Image -> class, from the class folders."""
    return {file.name: file.parent.name for file in sorted((root / "val").glob("*/*"), key=lambda file: file.name)}


def plain(file: Path, pairs: dict[str, object]) -> Path:
    file.write_text("".join(f"{name} {value}\n" for name, value in pairs.items()))
    return file


def write_kaggle(file: Path, pairs: dict[str, str]) -> None:
    with file.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["ImageId", "PredictionString"])
        for name, value in reversed(pairs.items()):
            rows.writerow([name.removesuffix(".JPEG"), f"{value} 1 2 30 40 {value} 5 6 7 8 "])


def write_kit(folder: Path, pairs: dict[str, str]) -> None:
    """The development kit: its numbers follow another order than the sorted folders', inner nodes behind them."""
    folder.mkdir(parents=True)
    order = (CLASSES[2], CLASSES[0], CLASSES[1], "n00001740")
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)]
    rows = [(float(number), name, "a, b", float(name == order[3])) for number, name in enumerate(order, start=1)]
    savemat(folder / "meta.mat", {"synsets": np.array(rows, dtype=fields).reshape(-1, 1)})
    (folder / TRUTH).write_text("".join(f"{order.index(pairs[name]) + 1}\n" for name in pairs))


def source(root: Path, **arguments) -> ImageNet:
    given = {"num_classes": 3, "resize": 36, "crop": 32, "workers": 0, "mean": [0.5] * 3, "std": [0.25] * 3}
    return ImageNet(root=str(root), **(given | arguments))


def write(form: str, root: Path, pairs: dict[str, str]) -> None:
    places = {name: f"{CLASSES.index(value)}" for name, value in pairs.items()}
    if form == "names":
        plain(root / "val_map.txt", pairs)
    elif form == "paths":
        plain(root / "val" / "val.txt", {f"val/{value}/{name}": value for name, value in pairs.items()})
    elif form == "places":
        plain(root / "val.txt", places)
    elif form == "kaggle, above":
        write_kaggle(root.parents[1] / "LOC_val_solution.csv", pairs)
    else:
        write_kit(root / "ILSVRC2012_devkit_t12" / "data", pairs)


@pytest.mark.parametrize("form", ["names", "paths", "places", "kaggle, above", "development kit"])
def test_both_forms_are_the_same_data(form, sorted_tree, flat):
    write(form, flat, answers(sorted_tree))
    folders, loose = source(sorted_tree), source(flat)
    assert loose.trees()["test"].labels.tolist() == folders.trees()["test"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert loose.digest() == folders.digest()
    for ours, theirs in zip(loose.test_batches(4, "cpu"), folders.test_batches(4, "cpu"), strict=True):
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def test_a_list_may_be_named_and_other_labels_are_other_data(sorted_tree, flat, tmp_path):
    pairs = answers(sorted_tree)
    right = plain(tmp_path / "right.txt", pairs)
    turned = plain(
        tmp_path / "turned.txt", {name: CLASSES[CLASSES.index(value) - 1] for name, value in pairs.items()}
    )
    assert source(flat, val_list=str(right)).digest() == source(sorted_tree).digest()
    assert source(flat, val_list=str(turned)).digest() != source(sorted_tree).digest()
    with pytest.raises(
        DataError, match=r"dataset.val_list=.*right.txt: .*val has no loose images; set it to null"
    ):
        source(sorted_tree, val_list=str(right)).digest()
    with pytest.raises(DataError, match=r"nothing.txt: the list cannot be read"):
        source(flat, val_list=str(tmp_path / "nothing.txt")).digest()


def test_without_a_list_the_error_says_what_where_and_how(flat):
    with pytest.raises(DataError) as caught:
        source(flat).digest()
    message = str(caught.value)
    for said in ("val_map.txt", "val.txt", "LOC_val_solution.csv", TRUTH, "meta.mat", "image-net.org", str(flat)):
        assert said in message
    assert "\n" not in message


def test_the_kits_numbers_need_its_meta_mat(sorted_tree, flat):
    write("development kit", flat, answers(sorted_tree))
    meta = flat / "ILSVRC2012_devkit_t12/data/meta.mat"
    meta.write_bytes(meta.read_bytes()[:100])
    with pytest.raises(DataError, match=r"meta.mat: not the development kit's meta.mat"):
        source(flat).digest()
    meta.unlink()
    with pytest.raises(DataError, match=rf"{TRUTH}: no meta.mat beside it") as caught:
        source(flat).digest()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda pairs: dict(list(pairs.items())[1:]),
            r"does not fit .*val, image ILSVRC2012_val_00000001 is not in it",
        ),
        (
            lambda pairs: pairs | {"ILSVRC2012_val_00000009.JPEG": CLASSES[0]},
            "1 of the images in .* are not there",
        ),
        (lambda pairs: dict.fromkeys(pairs, CLASSES[0]), "it has no image of class 'n02111889'"),
        (lambda pairs: dict.fromkeys(pairs, "n09999999"), "of class 'n09999999', which is not in train"),
        (lambda pairs: dict.fromkeys(pairs, 3), r"class 3 is outside 0 \.\.\. 2, the places of the sorted class"),
        (lambda pairs: dict.fromkeys(pairs, ""), "line 1: .* a line is an image and its class"),
        (lambda pairs: {}, "an empty list"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(change, message, sorted_tree, flat):
    plain(flat / "val.txt", change(answers(sorted_tree)))
    with pytest.raises(DataError, match=message) as caught:
        source(flat).digest()
    assert "\n" not in str(caught.value)


def test_images_of_classes_that_are_not_trained_on_may_be_missing(sorted_tree, flat):
    """A list of all thousand classes serves a tree of some of them."""
    plain(flat / "val.txt", answers(sorted_tree) | {"ILSVRC2012_val_00000009.JPEG": "n09999999"})
    assert source(flat).digest() == source(sorted_tree).digest()


def test_a_val_that_is_half_sorted_is_refused(sorted_tree):
    file = next((sorted_tree / "val" / CLASSES[0]).iterdir())
    file.rename(sorted_tree / "val" / file.name)
    with pytest.raises(DataError, match=r"val: 1 images lie loose in it beside class folders"):
        source(sorted_tree).digest()


def test_a_listing_is_remembered_until_something_changes(sorted_tree, monkeypatch, cache_folder):
    from qexp.data import trees

    for folder in [sorted_tree / "train", *(sorted_tree / "train").iterdir()]:
        os.utime(folder, (1e9, 1e9))
    before = trees.scan(sorted_tree / "train")
    walk, walks = trees._walk, []
    monkeypatch.setattr(trees, "_walk", lambda place: walks.append(place) or walk(place))
    again = trees.scan(sorted_tree / "train")
    assert again.files == before.files and list(again.lines()) == list(before.lines()) and not walks
    file = before.file(0)
    file.write_bytes(file.read_bytes() + b"more")  # in place: no folder changes
    assert trees.scan(sorted_tree / "train").sizes[0] == before.sizes[0] + 4 and len(walks) == 1
    os.utime(file.parent, (1e9, 1e9))
    file.unlink()
    assert len(trees.scan(sorted_tree / "train")) == len(before) - 1
    memo = next((cache_folder / "listings").glob("*.npz"))
    memo.write_bytes(memo.read_bytes()[:50])
    assert len(trees.scan(sorted_tree / "train")) == len(before) - 1

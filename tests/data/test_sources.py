from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from qexp.data.cifar10 import CIFAR10
from qexp.data.digits import Digits
from qexp.data.mnist import MNIST
from qexp.data.npz import Npz
from qexp.data.splits import even_rows, stratified_rows
from qexp.errors import DataError


def test_digits_are_divided_1437_to_360_class_by_class():
    digits = Digits()
    train, test = digits.splits["train"], digits.splits["test"]
    assert train.images.shape == (1437, 8, 8, 1) and test.images.shape == (360, 8, 8, 1)
    share = np.bincount(test.labels) / (np.bincount(test.labels) + np.bincount(train.labels))
    assert np.abs(share - 0.2).max() < 0.004
    assert digits.splits["train"].images.max() == 16 == digits.peak


def test_digits_yaml_has_the_statistics_of_the_training_images(config_folder):
    config = yaml.safe_load((config_folder / "digits.yaml").read_text())
    assert np.allclose(config["mean"], Digits().mean, atol=5e-5)
    assert np.allclose(config["std"], Digits().std, atol=5e-5)


def test_the_division_is_pinned():
    # A change here changes every published digits result.
    assert Digits().digest()[:16] == "e8f23d88d40ddff8"


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    share=st.floats(0, 1),
)
def test_a_stratified_draw_takes_of_each_class_its_share(labels, share):
    labels = np.array(labels)
    count = round(share * len(labels))
    kept, drawn = stratified_rows(labels, count)
    assert sorted([*kept, *drawn]) == list(range(len(labels))) and len(drawn) == count
    exact = np.bincount(labels, minlength=5) * count / len(labels)
    assert (np.abs(np.bincount(labels[drawn], minlength=5) - exact) < 1).all()


def test_validation_is_carved_once_and_for_all():
    sources = [Digits(validation=0.1) for _ in range(2)]
    first, second = (next(iter(source.validation_batches(None, "cpu"))) for source in sources)
    assert len(first[1]) == 144 and (first[0] == second[0]).all()
    assert sources[0].train_batches(100, 0, "cpu").samples == 1437 - 144
    assert Digits().validation_batches(None, "cpu") is None


def test_training_and_validation_share_no_sample():
    source = Digits(validation=0.25)
    kept, held = source._training_rows()
    assert not set(kept) & set(held) and len(kept) + len(held) == 1437


def test_training_samples_are_not_augmented_keep_the_classes_shares_and_leave_validation_alone():
    source = Digits(validation=0.25, augment="crop")
    images, labels = (torch.cat(parts) for parts in zip(*source.training_samples(200, 64, "cpu"), strict=True))
    every = [torch.cat(parts) for parts in zip(*Digits().training_samples(9999, None, "cpu"), strict=True)]
    assert (len(images), len(every[0])) == (200, 1437)
    held = next(iter(source.validation_batches(1437, "cpu")))[0]
    rows = [tuple(image.flatten().tolist()) for image in images]
    plain = {tuple(image.flatten().tolist()) for image in every[0]}
    assert set(rows) <= plain - {tuple(image.flatten().tolist()) for image in held}
    assert len(set(rows)) == 200
    share = torch.bincount(every[1]) * 200 / 1437
    assert ((torch.bincount(labels) - share).abs() < 2).all()
    again = torch.cat([images for images, _ in source.training_samples(200, 50, "cpu")])
    assert torch.equal(again, images)


def test_training_samples_start_at_one():
    with pytest.raises(DataError, match="0 training samples: take 1 or more"):
        Digits().training_samples(0, None, "cpu")


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), data=st.data())
def test_an_even_draw_is_fair_and_nested(labels, data):
    labels = np.array(labels)
    count = data.draw(st.integers(0, len(labels)))
    drawn = even_rows(labels, count)
    assert len(drawn) == len(set(drawn.tolist())) == count and (np.diff(drawn) > 0).all()
    taken, there = np.bincount(labels[drawn], minlength=5), np.bincount(labels, minlength=5)
    short = taken < there  # a class that could give more has given as many as any other, or one less
    assert not short.any() or taken[short].min() >= taken.max() - 1
    assert set(drawn) <= set(even_rows(labels, min(count + 1, len(labels))))


def test_a_part_of_the_training_data_is_the_same_for_every_run():
    parts = [Digits(train_samples=100, validation=0.1) for _ in range(2)]
    (rows, held), (again, _) = (part._training_rows() for part in parts)
    whole, same_held = Digits(validation=0.1)._training_rows()
    assert (rows == again).all() and set(rows) <= set(whole) and (held == same_held).all()
    assert np.bincount(parts[0].splits["train"].labels[rows]).tolist() == [10] * 10
    batches = [part.train_batches(50, seed, "cpu") for seed, part in enumerate(parts)]
    assert [each.samples for each in batches] == [100, 100]
    assert parts[0].digest() == Digits().digest()
    with pytest.raises(DataError, match=r"train_samples=1438: there are 1437 samples to train on; .* or null"):
        Digits(train_samples=1438).train_batches(1, 0, "cpu")


def test_digits_at_another_size():
    shown, plain = Digits(shape=[3, 64, 48], mean=[0.3], std=[0.4]), Digits()
    images = shown.splits["train"].images
    assert shown.shape == (3, 64, 48) and images.shape == (1437, 64, 48, 3) and images.max() == 16
    assert (images[..., 0] == images[..., 2]).all() and shown.mean == (0.3,) * 3
    assert abs(images.mean() - plain.splits["train"].images.mean()) < 0.1
    assert shown.digest() == plain.digest()
    assert Digits(shape=[1, 8, 8]).splits["test"].images.tobytes() == plain.splits["test"].images.tobytes()
    with pytest.raises(DataError, match=r"dataset.shape=\[2, 8, 8\]: the first number counts channels"):
        Digits(shape=[2, 8, 8])


@pytest.mark.parametrize("share", [-0.1, 1.0, 2])
def test_a_share_without_meaning_is_refused(share):
    with pytest.raises(DataError, match=r"dataset.validation=.*: a share of the training samples"):
        Digits(validation=share)


def test_a_share_that_leaves_nothing_is_refused():
    with pytest.raises(DataError, match=r"it leaves 1437 to train and 0 to choose by"):
        Digits(validation=1e-6).train_batches(1, 0, "cpu")


def test_shape_classes_and_range_need_no_data():
    for source in (CIFAR10(root="/nowhere", mean=[0.5] * 3, std=[0.25] * 3), Digits(mean=[0.3], std=[0.4])):
        assert source.num_classes == 10 and len(source.shape) == 3
        assert len(source.input_range()[0]) == source.shape[0]
    assert CIFAR10(root="/nowhere", mean=[0.5] * 3, std=[0.25] * 3).input_range() == ((-2.0,) * 3, (2.0,) * 3)


def test_a_missing_set_says_where_and_how():
    with pytest.raises(DataError, match=r"dataset.root='/nowhere': .*dataset.download=true, or put cifar10.npz"):
        CIFAR10(root="/nowhere").train_batches(128, 0, "cpu")
    with pytest.raises(DataError, match=r"mnist.npz"):
        MNIST(root="/nowhere").digest()
    with pytest.raises(DataError, match=r"dataset.file='/nowhere/x.npz': no such file"):
        Npz(root="/nowhere", file="x.npz").digest()


def test_npz_reads_shape_classes_and_statistics_from_the_data(npz_file, patches):
    source = Npz(file=str(npz_file))
    assert source.shape == (3, 32, 32) and source.num_classes == 10
    assert np.allclose(source.mean, patches[:500].reshape(-1, 3).mean(0) / 255)
    assert np.allclose(source.std, patches[:500].reshape(-1, 3).std(0) / 255)


def test_npz_brings_its_own_validation_split(npz_file, patches):
    labels = np.arange(50) % 10
    arrays = {
        f"{key}_{split}": part
        for split in ("train", "val", "test")
        for key, part in (("x", patches[:50]), ("y", labels))
    }
    np.savez(npz_file, **arrays)
    assert len(next(iter(Npz(file=str(npz_file)).validation_batches(None, "cpu")))[1]) == 50
    with pytest.raises(DataError, match=r"dataset.validation=0.1: .* validation split of its own"):
        Npz(file=str(npz_file), validation=0.1).train_batches(10, 0, "cpu")
    del arrays["y_val"]
    np.savez(npz_file, **arrays)
    with pytest.raises(DataError, match="x_val has no partner"):
        Npz(file=str(npz_file)).splits  # noqa: B018, it is read here


def test_statistics_are_those_of_the_pixels_whatever_is_counted_at_once(npz_file, monkeypatch):
    monkeypatch.setattr("qexp.data.arrays.COUNTED", 7)
    source = Npz(file=str(npz_file))
    images = source.splits["train"].images / source.peak
    assert source.mean == pytest.approx(images.mean(axis=(0, 1, 2)).tolist(), rel=1e-12)
    assert source.std == pytest.approx(images.std(axis=(0, 1, 2)).tolist(), rel=1e-12)


def arrays(patches, **changes) -> dict[str, np.ndarray]:
    labels = np.arange(20) % 10
    return {"x_train": patches[:20], "y_train": labels, "x_test": patches[:20], "y_test": labels} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.zeros((20, 32, 32, 3), np.float32)}, "images are float32; they must be uint8"),
        ({"x_train": np.zeros((20, 32, 32, 7), np.uint8)}, r"shape \(20, 32, 32, 7\)"),
        ({"x_train": np.zeros((20, 16, 16, 3), np.uint8)}, r"the images are \(3, 16, 16\) .* \(3, 32, 32\)"),
        ({"y_train": np.zeros(20)}, "the labels are float64"),
        ({"y_train": np.zeros(19, np.int64)}, "20 images and 19 labels"),
        ({"y_test": np.full(20, 10)}, r"label 10 of sample 0 is outside 0 ... 9"),
        ({"y_train": np.full(20, -1)}, r"cifar10.npz: label -1 of sample 0 and of every other in y_train"),
        ({"y_train": np.full((20, 1), -1)}, r"cifar10.npz: label -1 of sample 0 and of every other in y_train"),
        ({"y_train": np.arange(20) % 10 - 1}, r"label -1 of sample 0 is outside 0 ... 9"),
        ({"y_test": np.full(20, -1)}, r"label -1 of sample 0 is outside 0 ... 9"),
        ({"x_test": np.zeros((0, 32, 32, 3), np.uint8), "y_test": np.zeros(0, np.int64)}, "0 images and 0 labels"),
        ({"x_train": np.array([None] * 20)}, "not a readable .npz file"),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path, patches, changes, message):
    np.savez(tmp_path / "cifar10.npz", **arrays(patches, **changes))
    with pytest.raises(DataError, match=message) as caught:
        CIFAR10(root=str(tmp_path), mean=[0.5] * 3, std=[0.25] * 3).test_batches(None, "cpu")
    assert "\n" not in str(caught.value)


def test_training_images_without_labels_are_there_to_look_at_and_for_nothing_else(tmp_path, patches):
    given = arrays(patches)
    del given["y_train"]
    np.savez(tmp_path / "data.npz", **given)
    source = Npz(file=str(tmp_path / "data.npz"))
    assert source.num_classes == 10
    ((images, _),) = source.training_samples(7, None, "cpu", seed=0)
    assert len(images) == 7
    assert source.validation_batches(None, "cpu") is None
    with pytest.raises(DataError, match=r"/data\.npz: no y_train in it; training needs labels .*qexp ptq"):
        source.train_batches(4, 0, "cpu")
    held = Npz(file=str(tmp_path / "data.npz"), validation=0.2)
    assert len(held.training_samples(20, None, "cpu").plan.rows) == 16
    said = r"/data\.npz: no y_train in it; dataset\.validation=0\.2 needs labels .*dataset\.validation=0 does not"
    with pytest.raises(DataError, match=said):
        held.validation_batches(None, "cpu")
    np.savez(tmp_path / "data.npz", **given | {"x_train": np.zeros((), np.uint8)})
    with pytest.raises(DataError, match=r"train split: the images have shape \(\)"):
        Npz(file=str(tmp_path / "data.npz")).train_batches(4, 0, "cpu")


def test_a_known_set_without_training_labels_names_its_file_too(tmp_path, patches):
    given = arrays(patches)
    del given["y_train"]
    np.savez(tmp_path / "cifar10.npz", **given)
    with pytest.raises(DataError, match=r"/cifar10\.npz: no y_train in it; training needs labels"):
        CIFAR10(root=str(tmp_path)).train_batches(4, 0, "cpu")


def test_missing_keys_are_named(tmp_path, patches):
    np.savez(tmp_path / "cifar10.npz", images=patches, y_train=np.zeros(3))
    with pytest.raises(DataError, match=r"no x_train, x_test, y_test in it, only images, y_train"):
        CIFAR10(root=str(tmp_path)).test_batches(None, "cpu")


@pytest.mark.parametrize("keep", [0, 1, 100, 5000, 100_000, -1])
def test_a_truncated_file_is_one_line(npz_file, keep):
    npz_file.write_bytes(npz_file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"cifar10.npz: not a readable .npz file") as caught:
        CIFAR10(root=str(npz_file.parent)).test_batches(None, "cpu")
    assert "\n" not in str(caught.value)


def test_one_array_is_not_an_archive(tmp_path):
    with (tmp_path / "cifar10.npz").open("wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(DataError, match=r"not a readable .npz file"):
        CIFAR10(root=str(tmp_path)).test_batches(None, "cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"augment": "crop_flp"}, "dataset.augment='crop_flp' is not known. Did you mean 'crop_flip'"),
        ({"padding": 0}, "dataset.padding=0: a whole number, 1 or more; dataset.augment=none"),
        ({"padding": 1.5}, "dataset.padding=1.5"),
        ({"root": None}, "dataset.root=None: the path of a folder"),
        ({"download": "yes"}, "dataset.download='yes': true or false"),
        ({"validation": "abc"}, "dataset.validation=abc"),
        ({"validation": True}, "dataset.validation=True"),
        ({"augment": None}, "dataset.augment=None is not known"),
        ({"mean": "abc"}, "dataset.mean=abc: one number"),
        ({"mean": [0.5, "a", 0.5]}, "dataset.mean="),
        ({"mean": [0.5, float("nan"), 0.5]}, "dataset.mean="),
        ({"eval_batch_size": 0}, "dataset.eval_batch_size=0"),
        ({"mean": [0.1]}, r"dataset.mean=\[0.1\]: one number for each of the 3 channels"),
        ({"std": [0.1, 0.0, 0.1]}, r"dataset.std=\[0.1, 0.0, 0.1\]: a standard deviation is greater than 0"),
    ],
)
def test_arguments_without_meaning_are_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        CIFAR10(**arguments)


@pytest.mark.parametrize("shape", [[1, 2], [1, 2, 0], "abc", 3, [1.5, 2, 3]])
def test_shapes_without_meaning_are_refused(shape):
    with pytest.raises(DataError, match=r"dataset.shape=.*: three positive numbers"):
        Npz(file="x.npz", shape=shape)


@pytest.mark.parametrize(
    ("kind", "name", "shape"), [(CIFAR10, "cifar10", (3, 32, 32)), (MNIST, "mnist", (1, 28, 28))]
)
def test_the_real_sets(kind, name, shape, real_file, config_folder, monkeypatch):
    folder = real_file(f"{name}.npz").parent
    monkeypatch.setenv("QEXP_CACHE", "/dev/null/no-cache")  # writing 180 MB is not the point here
    config = yaml.safe_load((config_folder / f"{name}.yaml").read_text())
    source = kind(root=str(folder), mean=config["mean"], std=config["std"])
    assert source.shape == shape and len(source.splits["test"].labels) == 10_000
    some = source.splits["train"].images[::20] / 255
    assert np.allclose(source.mean, some.mean(axis=(0, 1, 2)), atol=0.01)
    assert np.allclose(source.std, some.std(axis=(0, 1, 2)), atol=0.01)
    assert len(source.train_batches(128, 0, "cpu")) == len(source.splits["train"].labels) // 128

from __future__ import annotations

import pickle
import struct

import numpy as np
import pytest
import scipy.io
from torchvision import datasets as official

from qexp.data.cifar10 import CIFAR10
from qexp.data.mnist import MNIST
from qexp.data.resizing import resize
from qexp.data.svhn import SVHN
from qexp.errors import DataError


def write_idx(file, array: np.ndarray) -> None:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    file.write_bytes(header + array.tobytes())


@pytest.fixture
def mnist_root(tmp_path, patches):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 30), ("t10k", 10)):
        write_idx(raw / f"{prefix}-images-idx3-ubyte", patches[:count, :28, :28, 1])
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)
    return tmp_path


def test_mnist_in_its_own_format(mnist_root, patches):
    source = MNIST(root=str(mnist_root), mean=[0.1], std=[0.3])
    assert np.array_equal(source.splits["train"].images[..., 0], patches[:30, :28, :28, 1])
    assert source.splits["test"].labels.tolist() == list(range(10))


def test_mnist_damaged_or_incomplete(mnist_root):
    labels = mnist_root / "MNIST/raw/train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:12])
    with pytest.raises(DataError, match=r"MNIST there is damaged or not the official one"):
        MNIST(root=str(mnist_root)).splits  # noqa: B018
    labels.unlink()
    with pytest.raises(DataError, match=r"no MNIST there \(no MNIST/raw/train-labels"):
        MNIST(root=str(mnist_root)).splits  # noqa: B018


@pytest.fixture
def cifar_root(tmp_path, patches):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        part = patches[number * 10 : number * 10 + 10].transpose(0, 3, 1, 2).reshape(10, -1)
        (folder / name).write_bytes(pickle.dumps({"data": part, "labels": list(range(10))}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    return tmp_path


def test_cifar10_in_its_own_format(cifar_root, patches, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    source = CIFAR10(root=str(cifar_root))
    assert np.array_equal(source.splits["train"].images, patches[:50])
    assert np.array_equal(source.splits["test"].images, patches[50:60])


def test_cifar10_with_a_foreign_checksum_is_not_unpickled(cifar_root, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.cifar.pickle.load", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(DataError, match=r"damaged or not the official one"):
        CIFAR10(root=str(cifar_root)).splits  # noqa: B018


def test_a_download_that_fails_is_one_line(tmp_path, monkeypatch):
    def fail(self) -> None:
        raise OSError("<urlopen error no route>\nsecond line")

    monkeypatch.setattr(official.CIFAR10, "download", fail)
    with pytest.raises(DataError, match=r"CIFAR10 could not be fetched .*no route") as caught:
        CIFAR10(root=str(tmp_path), download=True).digest()
    assert "\n" not in str(caught.value)


def test_nothing_is_downloaded_unless_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(official.CIFAR10, "download", lambda self: pytest.fail("downloaded"))
    with pytest.raises(DataError, match=r"no CIFAR10 there"):
        CIFAR10(root=str(tmp_path)).digest()


@pytest.fixture
def svhn_root(tmp_path, patches, monkeypatch):
    monkeypatch.setattr(official.svhn, "check_integrity", lambda *_: True)
    for name, count in (("train", 30), ("test", 10), ("extra", 20)):
        images = patches[:count].transpose(1, 2, 3, 0)
        labels = (np.arange(count) % 10 + 1).reshape(-1, 1).astype(np.uint8)
        scipy.io.savemat(tmp_path / f"{name}_32x32.mat", {"X": images, "y": labels})
    return tmp_path


def test_svhn_in_its_own_format(svhn_root, patches):
    source = SVHN(root=str(svhn_root), size=32)
    assert np.array_equal(source.splits["train"].images, patches[:30])
    assert source.splits["test"].labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert len(SVHN(root=str(svhn_root), size=32, extra=True).splits["train"].labels) == 50


def test_svhn_at_the_papers_size(svhn_root):
    source = SVHN(root=str(svhn_root))
    assert source.shape == (3, 40, 40) and source.splits["train"].images.shape == (30, 40, 40, 3)


def test_resizing_keeps_a_ramp_a_ramp():
    ramp = np.broadcast_to((np.arange(32) * 8).astype(np.uint8)[None, None, :, None], (2, 32, 32, 3))
    row = resize(np.ascontiguousarray(ramp), 40, 40)[0, 20, :, 0].astype(float)
    centres = ((np.arange(40) + 0.5) * 32 / 40 - 0.5) * 8
    assert np.abs(row[1:-1] - centres[1:-1]).max() <= 0.5

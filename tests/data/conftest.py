"""Small real images as arrays and trees, and a cache folder of each test's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("QEXP_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def photographs() -> list[np.ndarray]:
    return load_sample_images().images


@pytest.fixture(scope="session")
def patches(photographs) -> np.ndarray:
    """600 real patches, uint8 (600, 32, 32, 3)."""
    cut = [
        photograph[top : top + 32, left : left + 32]
        for photograph in photographs
        for top in range(0, 352, 22)
        for left in range(0, 600, 30)
    ]
    return np.stack(cut[:600])


@pytest.fixture
def npz_file(tmp_path, patches) -> Path:
    """500 patches to train, 100 to test, ten classes, as cifar10.npz has them."""
    file = tmp_path / "cifar10.npz"
    labels = np.arange(600, dtype=np.uint8) % 10
    np.savez(file, x_train=patches[:500], y_train=labels[:500], x_test=patches[500:], y_test=labels[500:])
    return file


def write_tree(root: Path, photographs: list[np.ndarray], splits: dict[str, int], side: tuple[int, int]) -> Path:
    """Write root/<split>/<class>/*: pieces of the photographs, one class for each, JPEG and PNG in turn."""
    height, width = side
    for split, count in splits.items():
        for number, photograph in enumerate(photographs):
            folder = root / split / f"n0{number}"
            folder.mkdir(parents=True)
            for piece in range(count):
                top, left = 7 * piece, 11 * piece + 3 * len(split)
                ending = "JPEG" if piece % 2 else "png"
                image = Image.fromarray(photograph[top : top + height, left : left + width])
                image.save(folder / f"{piece}.{ending}")
    return root


@pytest.fixture
def tree(tmp_path, photographs) -> Path:
    return write_tree(tmp_path / "tree", photographs, {"train": 6, "test": 3, "val": 2}, (40, 48))


@pytest.fixture
def config_folder() -> Path:
    return Path(__file__).parents[2] / "configs" / "dataset"

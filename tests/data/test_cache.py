from __future__ import annotations

import logging
import os
import resource

import numpy as np
import pytest

from qexp.data import cache
from qexp.data.npz import Npz
from qexp.data.splits import Split
from qexp.errors import DataError


def source(npz_file) -> Npz:
    return Npz(file=str(npz_file), mean=[0.5] * 3, std=[0.25] * 3)


def cached_files(folder) -> list:
    return list((folder / "arrays").glob("*.npz"))


def some_splits() -> dict[str, Split]:
    return {"train": Split(np.arange(48, dtype=np.uint8).reshape(3, 4, 4, 1), np.arange(3))}


def test_a_set_is_decoded_once(npz_file, cache_folder, monkeypatch):
    images = source(npz_file).splits["train"].images
    monkeypatch.setattr(Npz, "decode", lambda self: pytest.fail("decoded again"))
    assert np.array_equal(source(npz_file).splits["train"].images, images)
    assert len(cached_files(cache_folder)) == 1


def test_the_jobs_of_a_sweep_read_the_cached_arrays_once(npz_file, cache_folder, monkeypatch):
    first = source(npz_file).splits  # decoded
    held = source(npz_file).splits  # read
    monkeypatch.setattr(cache, "load_splits", lambda _: pytest.fail("read again"))
    assert source(npz_file).splits["train"].images is held["train"].images
    assert np.array_equal(held["train"].images, first["train"].images)


@pytest.mark.parametrize("damage", ["truncate", "flip a bit", "other arrays", "empty"])
def test_a_damaged_cache_is_rebuilt(npz_file, cache_folder, caplog, damage):
    images = source(npz_file).splits["train"].images
    (file,) = cached_files(cache_folder)
    content = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flip a bit":
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    elif damage == "other arrays":
        with np.load(file) as archive:
            arrays = dict(archive)
        np.savez(file, **(arrays | {"x_train": arrays["x_train"] // 2}))
    else:
        file.write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(source(npz_file).splits["train"].images, images)
    assert "it is built again" in caplog.text
    assert cache.load_splits(file) is not None


def test_other_content_under_the_same_name_is_another_cache_entry(npz_file, cache_folder, patches):
    first = source(npz_file)
    assert len(first.splits["train"].labels) == 500
    labels = np.zeros(40, dtype=np.int64)
    np.savez(npz_file, x_train=patches[:40], y_train=labels, x_test=patches[:40], y_test=labels)
    second = source(npz_file)
    assert len(second.splits["train"].labels) == 40 and first.digest() != "" != second.digest()
    assert len(cached_files(cache_folder)) == 2


def test_the_digest_is_of_the_content_and_not_of_the_place(npz_file, tmp_path):
    os.utime(npz_file, (1e9, 1e9))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    copy = elsewhere / npz_file.name
    copy.write_bytes(npz_file.read_bytes())
    here = Npz(root=str(tmp_path), file=npz_file.name).digest()
    assert here == Npz(root=str(tmp_path), file=npz_file.name).digest()
    assert here == Npz(root=str(elsewhere), file=npz_file.name).digest()


def test_the_digest_is_the_same_whatever_was_asked_for_before(npz_file, tmp_path, monkeypatch):
    os.utime(npz_file, (1e9, 1e9))
    below = f"{npz_file.parent.name}/{npz_file.name}"
    named = Npz(root=str(npz_file.parent), file=npz_file.name).digest()
    behind = Npz(root=str(npz_file.parent.parent), file=below).digest()
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "another cache")
    assert Npz(root=str(npz_file.parent.parent), file=below).digest() == behind
    assert Npz(root=str(npz_file.parent), file=npz_file.name).digest() == named


def test_the_digest_of_an_unchanged_old_file_is_remembered(npz_file, monkeypatch):
    os.utime(npz_file, (1e9, 1e9))
    digest = source(npz_file).digest()
    monkeypatch.setattr(cache, "_hash_files", lambda *_: pytest.fail("read again"))
    assert source(npz_file).digest() == digest


@pytest.mark.parametrize("place", ["below a file", "a file"])
def test_a_cache_that_cannot_be_written_stops_nothing(npz_file, tmp_path, monkeypatch, caplog, place):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "cache" if place == "below a file" else tmp_path / "file"
    monkeypatch.setenv("QEXP_CACHE", str(folder))
    with caplog.at_level(logging.WARNING):
        assert len(source(npz_file).splits["test"].labels) == 100
    assert "going on without this cache" in caplog.text


@pytest.mark.parametrize("room", [0, 100, 20_000, 99_000])
def test_a_full_disk_leaves_no_file(tmp_path, caplog, room):
    images = np.zeros((100, 10, 100, 1), dtype=np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with caplog.at_level(logging.WARNING):
            cache.store_splits(tmp_path / "set.npz", {"train": Split(images, np.zeros(100, dtype=np.int64))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be written (File too large); going on without this cache" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_what_is_stored_is_what_is_loaded(tmp_path):
    cache.store_splits(tmp_path / "set.npz", some_splits())
    loaded = cache.load_splits(tmp_path / "set.npz")
    assert loaded is not None and cache.splits_digest(loaded) == cache.splits_digest(some_splits())


def test_a_file_that_cannot_be_read_is_an_error_in_one_line(tmp_path):
    with pytest.raises(DataError, match=r"gone: cannot be read \(No such file"):
        cache.content_digest([tmp_path / "gone"], tmp_path)

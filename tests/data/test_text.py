"""Texts as tokens in lanes: what is counted, in which order, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qexp.data.text import NOT_COUNTED, Descriptions, TextFolder
from qexp.errors import DataError

TRAIN = "a b b c\n\nb a d\n"


def folder(path: Path, train: str = TRAIN, valid: str = "a b c\n", test: str = "b b b a\n") -> Path:
    for name, text in (("train", train), ("valid", valid), ("test", test)):
        (path / f"{name}.txt").write_text(text, encoding="utf-8")
    return path


def source(path: Path, **more: Any) -> TextFolder:
    return TextFolder(name="text", root=str(path), **{"sequence_length": 3, "eval_lanes": 2, **more})


def test_the_vocabulary_is_the_training_texts_by_frequency(tmp_path: Path) -> None:
    found = source(folder(tmp_path))
    assert list(found.vocabulary) == ["b", "<eos>", "a", "c", "d"]
    assert found.num_classes == 5 and found.shape == (3,)
    assert found.numbers("train").tolist() == [2, 0, 0, 3, 1, 0, 2, 4, 1]
    assert found.numbers("test").tolist() == [0, 0, 0, 2, 1]
    assert found.primary_metric == "perplexity" and not found.higher_is_better


def test_characters_count_blanks_and_line_ends(tmp_path: Path) -> None:
    found = source(folder(tmp_path, train="ab  a \n a\n", valid="a\n", test="b\n"), level="character")
    assert set(found.vocabulary) == {"a", "b", " ", "\n"}
    assert len(found.numbers("train")) == len("ab a\na\n")
    assert found.primary_metric == "bits_per_character"


def test_a_limited_vocabulary_has_a_place_for_all_others(tmp_path: Path) -> None:
    found = source(folder(tmp_path, valid="a zebra\n"), vocabulary=3)
    assert list(found.vocabulary) == ["b", "<eos>", "<unk>"]
    assert found.numbers("valid").tolist() == [2, 2, 1]


def test_training_lanes_go_through_the_text_in_order(tmp_path: Path) -> None:
    text = " ".join(str(number) for number in range(40))
    found = source(folder(tmp_path, train=text, valid="1 2", test="3 4"), sequence_length=4)
    order = {number: int(token) for token, number in found.vocabulary.items() if token != "<eos>"}
    batches = list(found.train_batches(3, 0, "cpu"))
    assert len(batches) == 3  # 40 tokens to predict in 3 lanes of 13: 3 windows of 4
    for lane in range(3):
        inputs = [order[int(token)] for tokens, _ in batches for token in tokens[lane]]
        targets = [order[int(token)] for _, tokens in batches for token in tokens[lane]]
        assert inputs == list(range(13 * lane, 13 * lane + 12))
        assert targets == [token + 1 for token in inputs]


@pytest.mark.parametrize("lanes", [1, 2, 3, 7, 10, 500])
@pytest.mark.parametrize("length", [1, 4, 100])
def test_evaluation_predicts_every_token_but_the_first_once(tmp_path: Path, lanes: int, length: int) -> None:
    text = " ".join(str(number) for number in range(30))
    found = source(folder(tmp_path, train=text, test=text), sequence_length=length, eval_lanes=lanes)
    pairs = []
    for tokens, targets in found.test_batches(None, "cpu"):
        counted = targets != NOT_COUNTED
        pairs += list(zip(tokens[counted].tolist(), targets[counted].tolist(), strict=True))
    numbers = found.numbers("test").tolist()
    assert sorted(pairs) == sorted(itertools.pairwise(numbers))


def test_processes_share_the_lanes(tmp_path: Path) -> None:
    found = source(folder(tmp_path, train=TRAIN * 20))
    whole = list(found.train_batches(4, 0, "cpu"))
    parts = [list(found.train_batches(4, 0, "cpu", rank=rank, world_size=2)) for rank in (0, 1)]
    for batch, one, other in zip(whole, *parts, strict=True):
        assert torch.equal(batch[0], torch.cat([one[0], other[0]]))


def test_samples_of_the_training_text_are_drawn_once_each(tmp_path: Path) -> None:
    text = " ".join(str(number) for number in range(40))  # no two of its 13 windows of 3 tokens are alike
    found = source(folder(tmp_path, train=text, valid="1 2", test="3 4"))
    first = [tokens for tokens, _ in found.training_samples(7, 3, "cpu", seed=1)]
    again = [tokens for tokens, _ in found.training_samples(7, 3, "cpu", seed=1)]
    assert [len(tokens) for tokens in first] == [3, 3, 1]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    drawn = {tuple(window) for tokens in first for window in tokens.tolist()}
    windows = found.numbers("train")[:39].view(13, 3).tolist()
    assert len(drawn) == 7 and drawn <= {tuple(window) for window in windows}


@pytest.mark.parametrize(
    ("texts", "settings", "told"),
    [
        ({"valid": "a zebra\n"}, {}, r"valid.txt: 'zebra' is not in the training text"),
        ({"test": " \n"}, {}, r"test.txt: a text of 0 tokens"),
        ({"train": ""}, {}, r"train.txt: a text of 0 tokens"),
        ({}, {"level": "sentence"}, r"dataset.level='sentence'"),
        ({}, {"sequence_length": 0}, r"dataset.sequence_length=0"),
        ({}, {"vocabulary": 1}, r"dataset.vocabulary=1"),
        ({}, {"files": ["train.txt"]}, r"dataset.files="),
        ({}, {"files": ["train.txt", "nothing.txt", "test.txt"]}, r"no nothing.txt in .*set dataset.root"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, texts: dict[str, str], settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(DataError, match=told):
        found = source(folder(tmp_path, **texts), **settings)
        found.digest()
        found.check()


def test_other_bytes_than_utf8_are_no_text(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "valid.txt").write_bytes(b"a \xff b")
    with pytest.raises(DataError, match=r"valid.txt: no text in UTF-8 \(byte 2\)"):
        source(tmp_path).check()


def test_too_many_lanes_for_a_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="9 tokens are too few for batch_size=4 lanes"):
        source(folder(tmp_path)).train_batches(4, 0, "cpu")


def test_the_digest_follows_the_texts(tmp_path: Path) -> None:
    before = source(folder(tmp_path)).digest()
    (tmp_path / "test.txt").write_text("a a\n")
    assert source(tmp_path).digest() != before


@pytest.mark.parametrize("level", ["word", "character"])
def test_the_descriptions_are_there_without_a_download(level: Any) -> None:
    found = Descriptions(name="descriptions", level=level, vocabulary=60)
    found.check()
    assert found.num_classes == 60
    assert len(found.numbers("train")) > 4 * len(found.numbers("test")) > 1000
    assert found.digest() == Descriptions(name="descriptions").digest()


def test_penn_treebank_has_its_known_counts(real_file: Callable[[str], Path]) -> None:
    root = real_file("ptb/ptb.train.txt").parent
    found = TextFolder(
        name="ptb", root=str(root), files=[f"ptb.{split}.txt" for split in ("train", "valid", "test")]
    )
    assert found.num_classes == 10_000
    assert [len(found.numbers(split)) for split in ("train", "valid", "test")] == [929_589, 73_760, 82_430]


def test_fewer_samples_leave_the_vocabulary_and_so_the_test_as_it_is(tmp_path: Path) -> None:
    whole, part = (source(folder(tmp_path), train_samples=samples) for samples in (None, 3))
    assert part.vocabulary == whole.vocabulary
    assert part.numbers("train").tolist() == whole.numbers("train").tolist()[:3]
    assert torch.equal(part.numbers("test"), whole.numbers("test"))


def test_a_byte_order_mark_and_a_form_feed_are_no_tokens(tmp_path: Path) -> None:
    found = source(folder(tmp_path, train="\ufeffthe cat\fthe dog\n", valid="the\n", test="dog\n"))
    assert found.vocabulary.keys() == {"the", "cat", "dog", "<eos>"}
    assert found.numbers("train").tolist().count(found.vocabulary["<eos>"]) == 1

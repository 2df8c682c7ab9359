"""Texts as streams of tokens: words or characters, read in parallel lanes, for networks that predict the next one.

Penn Treebank in the preparation of Mikolov et al. 2010: 929,589 training words, a vocabulary of 10,000.
"""

from __future__ import annotations

import functools
import hashlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from qexp.data import cache
from qexp.data.base import DataSource
from qexp.data.batches import Batch, Batches, Plan
from qexp.data.checks import check_whole
from qexp.errors import DataError

UNKNOWN, END = "<unk>", "<eos>"
"""What stands for a rare word, and for the end of a line."""

NOT_COUNTED = -100
"""The target of a place behind the text's end; torch's cross entropy passes over it."""

SPLITS = ("train", "valid", "test")


class TextSource(DataSource):
    """What texts share. A data set says where its three texts are.

    A sample is a window of `sequence_length` tokens, and its label the same window one token later. Training reads
    the text in `batch_size` lanes side by side, window after window, so that a network can carry its state.

    Args:
        name: short name.
        level: `word` (separated by blanks, the end of a line is one) or `character` (blanks and line ends are).
        sequence_length: tokens of a window, through which gradients flow back.
        vocabulary: the most tokens there are, `<unk>` for all others among them. None: the training text's, and
            no other may occur.
        train_samples: train on this many tokens, the text's first; None: on all.
        eval_lanes: lanes of validation and test; each begins without a state, so fewer are truer and slower.

    Raises:
        DataError: an argument without meaning.
    """

    task: ClassVar[str] = "language_modelling"
    higher_is_better: ClassVar[bool] = False

    def __init__(
        self,
        *,
        name: str,
        level: Literal["word", "character"] = "word",
        sequence_length: int = 20,
        vocabulary: int | None = None,
        train_samples: int | None = None,
        eval_lanes: int = 10,
    ) -> None:
        if level not in ("word", "character"):
            raise DataError(f"dataset.level={level!r}: word or character.")
        check_whole("sequence_length", sequence_length, 1)
        check_whole("eval_lanes", eval_lanes, 1)
        for key, value in (("vocabulary", vocabulary), ("train_samples", train_samples)):
            if value is not None:
                check_whole(key, value, 2, ", or null for all")
        self.name, self.level, self.sequence_length = name, level, sequence_length
        self.vocabulary_size, self.train_samples, self.eval_lanes = vocabulary, train_samples, eval_lanes
        self._numbers: dict[str, Tensor] = {}
        self.primary_metric = "perplexity" if level == "word" else "bits_per_character"

    @abstractmethod
    def text(self, split: str) -> str:
        """Return the text of `train`, `valid` or `test`.

        Raises:
            DataError: it is not there, or is none.
        """

    @abstractmethod
    def where(self, split: str) -> str:
        """Say where that text is from, for messages."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(sequence_length,)."""
        return (self.sequence_length,)

    def check(self) -> None:
        """Read all three texts."""
        for split in SPLITS:
            self.numbers(split)

    @property
    def num_classes(self) -> int:
        """Tokens of the vocabulary."""
        return len(self.vocabulary)

    @functools.cached_property
    def vocabulary(self) -> dict[str, int]:
        """The training text's tokens by number, from the most frequent on; ties by code point."""
        counts = Counter(self._training_text)  # all of it: fewer samples must not make the test an easier one
        tokens = sorted(counts, key=lambda token: (-counts[token], token))
        if self.vocabulary_size is not None:
            tokens = [*[token for token in tokens if token != UNKNOWN][: self.vocabulary_size - 1], UNKNOWN]
        return {token: number for number, token in enumerate(tokens)}

    def numbers(self, split: str) -> Tensor:
        """Return a text as the numbers of its tokens, int64.

        Raises:
            DataError: fewer than two tokens, or one that is not in the vocabulary while `<unk>` is not, either.
        """
        if split not in self._numbers:
            self._numbers[split] = self._read(split)
        return self._numbers[split]

    def _read(self, split: str) -> Tensor:
        known = self.vocabulary
        unknown = known.get(UNKNOWN)
        tokens = self._training_tokens if split == "train" else list(self._tokens(split))
        if len(tokens) < 2:
            raise DataError(f"{self.where(split)}: a text of {len(tokens)} tokens; at least two are needed.")
        if (
            unknown is None
            and (strange := next((token for token in tokens if token not in known), None)) is not None
        ):
            raise DataError(
                f"{self.where(split)}: {strange!r} is not in the training text, which has no {UNKNOWN} either;"
                f" set dataset.vocabulary, to {len(known)} say, and what is not in it becomes {UNKNOWN}."
            )
        return torch.tensor([known.get(token, unknown) for token in tokens], dtype=torch.long)

    def _tokens(self, split: str) -> Iterator[str]:
        for line in self.text(split).split("\n"):
            words = line.split()
            if not words:
                continue
            yield from words if self.level == "word" else " ".join(words)
            yield END if self.level == "word" else "\n"

    def _told_apart(self, digest: str) -> str:
        """Return the texts' digest; with fewer samples another one than when these made the vocabulary."""
        return digest if self.train_samples is None else hashlib.sha256(f"2 {digest}".encode()).hexdigest()

    @functools.cached_property
    def _training_text(self) -> list[str]:
        return list(self._tokens("train"))

    @property
    def _training_tokens(self) -> list[str]:
        return self._training_text[: self.train_samples]

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
        """Return `batch_size` lanes of the training text, in order; what does not fill a window is left out."""
        numbers = self.numbers("train")
        windows = (len(numbers) - 1) // batch_size // self.sequence_length if batch_size > 0 else 0
        if batch_size > 0 and not windows:
            raise DataError(
                f"{self.where('train')}: {len(numbers)} tokens are too few for batch_size={batch_size} lanes of"
                f" dataset.sequence_length={self.sequence_length}; choose smaller ones."
            )
        lane, length = (len(numbers) - 1) // max(batch_size, 1), windows * self.sequence_length
        inputs, targets = (
            part[: lane * batch_size].view(batch_size, lane) for part in (numbers[:-1], numbers[1:])
        )
        plan = Plan(
            torch.arange(batch_size * windows),
            batch_size,
            training=True,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
        return Lanes(inputs[:, :length], targets[:, :length], plan, self.sequence_length, device)

    def validation_batches(
        self,
        batch_size: int | None,
        device: torch.device | str,
        *,
        rank: int = 0,
        world_size: int = 1,
        channels_last: bool = True,
    ) -> Batches:
        """Return the `valid` text in lanes."""
        return self._in_lanes("valid", batch_size, device, rank, world_size)

    def test_batches(
        self,
        batch_size: int | None,
        device: torch.device | str,
        *,
        channels_last: bool = True,
    ) -> Batches:
        """Return the `test` text in lanes: every token but the first is predicted once."""
        return self._in_lanes("test", batch_size, device)

    def _in_lanes(
        self, split: str, lanes: int | None, device: torch.device | str, rank: int = 0, world_size: int = 1
    ) -> Batches:
        numbers = self.numbers(split)
        lanes = min(lanes or self.eval_lanes, len(numbers) - 1)
        lane = -(-(len(numbers) - 1) // lanes)
        windows = -(-lane // self.sequence_length)
        inputs, targets = (
            F.pad(
                F.pad(part, (0, lanes * lane - len(part)), value=empty).view(lanes, lane),
                (0, windows * self.sequence_length - lane),
                value=empty,
            )
            for part, empty in ((numbers[:-1], 0), (numbers[1:], NOT_COUNTED))
        )
        plan = Plan(torch.arange(lanes * windows), lanes, rank=rank, world_size=world_size)
        return Lanes(inputs, targets, plan, self.sequence_length, device)

    def training_samples(
        self,
        count: int,
        batch_size: int | None,
        device: torch.device | str,
        *,
        channels_last: bool = True,
        seed: int | None = None,
    ) -> Batches:
        """Return `count` windows of the training text that do not overlap, each by itself."""
        check_whole("count", count, 1)
        numbers, length = self.numbers("train"), self.sequence_length
        windows = (len(numbers) - 1) // length
        if not windows:
            raise DataError(f"{self.where('train')}: no window of {length} tokens in {len(numbers)}.")
        order = torch.arange(windows)
        if seed is not None:
            order = torch.randperm(windows, generator=torch.Generator().manual_seed(seed))
        inputs, targets = (part[: windows * length].view(windows, length) for part in (numbers[:-1], numbers[1:]))
        plan = Plan(order[:count], batch_size or self.eval_lanes)
        return Lanes(inputs, targets, plan, length, device)


class Lanes(Batches):
    """Windows of a text in lanes: batch p holds the p-th window of each lane.

    Args:
        inputs, targets: int64 (lanes, tokens), tokens a multiple of `length`.
        plan: rows count the windows, the first of every lane before the second of any.
        length: tokens of a window.
    """

    def __init__(
        self, inputs: Tensor, targets: Tensor, plan: Plan, length: int, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(plan)
        self.inputs, self.targets, self.length = inputs.to(device), targets.to(device), length

    def _load(self, shares: Iterable[Tensor], epoch: int) -> Iterator[Batch]:
        lanes = len(self.inputs)
        for rows in shares:
            start = int(rows[0]) // lanes * self.length if len(rows) else 0
            window = slice(start, start + self.length)
            yield self.inputs[rows % lanes, window], self.targets[rows % lanes, window]


class TextFolder(TextSource):
    """Three text files of a folder, UTF-8.

    Args:
        root: the folder.
        files: names of the training, validation and test text.

    The other arguments are those of `TextSource`.
    """

    def __init__(
        self,
        *,
        name: str,
        root: str,
        files: Sequence[str] = ("train.txt", "valid.txt", "test.txt"),
        level: Literal["word", "character"] = "word",
        sequence_length: int = 20,
        vocabulary: int | None = None,
        train_samples: int | None = None,
        eval_lanes: int = 10,
    ) -> None:
        super().__init__(
            name=name,
            level=level,
            sequence_length=sequence_length,
            vocabulary=vocabulary,
            train_samples=train_samples,
            eval_lanes=eval_lanes,
        )
        if isinstance(files, str) or len(files) != len(SPLITS) or not all(isinstance(file, str) for file in files):
            raise DataError(f"dataset.files={files}: three names, of the training, validation and test text.")
        self.root = Path(root).expanduser()
        self.files = {split: self.root / file for split, file in zip(SPLITS, files, strict=True)}

    def where(self, split: str) -> str:
        """Return the file's path."""
        return str(self.files[split])

    def digest(self) -> str:
        """Return the digest of the files' names and contents."""
        if missing := [file.name for file in self.files.values() if not file.is_file()]:
            raise DataError(
                f"{self.name}: no {' and no '.join(missing)} in {self.root}; put the texts there, or set"
                " dataset.root to their folder and dataset.files to their names."
            )
        return self._told_apart(cache.content_digest(list(self.files.values()), self.root))

    def text(self, split: str) -> str:
        """Read one file."""
        try:
            return self.files[split].read_text(encoding="utf-8-sig")  # without a byte-order mark
        except UnicodeDecodeError as error:
            raise DataError(f"{self.files[split]}: no text in UTF-8 (byte {error.start}).") from error
        except OSError as error:
            raise DataError(f"{self.files[split]}: cannot be read ({error.strerror or error}).") from error


class Descriptions(TextSource):
    """scikit-learn's descriptions of its own data sets: a text that is there without a download.

    Whole descriptions go to each split: every sixth to `valid`, every sixth to `test`. Rare words become `<unk>`.
    """

    def where(self, split: str) -> str:
        """Name the package."""
        return f"scikit-learn's descriptions, {split}"

    def digest(self) -> str:
        """Return the digest of the three texts."""
        return self._told_apart(cache.text_digest({split: self.text(split) for split in SPLITS}))

    def text(self, split: str) -> str:
        """Join the split's descriptions."""
        folder = resources.files("sklearn.datasets.descr")
        pages = [
            page for page in sorted(folder.iterdir(), key=lambda page: page.name) if page.name.endswith(".rst")
        ]
        places = {"valid": (4,), "test": (5,)}.get(split, (0, 1, 2, 3))
        return "\n".join(
            page.read_text(encoding="utf-8") for number, page in enumerate(pages) if number % 6 in places
        )

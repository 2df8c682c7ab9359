"""`qexp eval engine=xnor` saves what it has proved."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from qexp.build import build
from qexp.commands import packed
from qexp.commands.network import build_network
from qexp.errors import ConfigError, QexpError, TrainingError

from ..composing import configured


def evaluate(*words: str) -> dict[str, float]:
    small = ["model.hidden=[16,16]", "quantizer=dorefa", "bits=2", "engine=xnor", "engine.fallback=true"]
    config = configured(*small, *words, command="eval")
    source = build(config.dataset)
    return packed.evaluate_packed(build_network(config, source), source, config)


def test_a_proved_network_is_saved_and_evaluates_to_the_same(tmp_path: Path) -> None:
    file = tmp_path / "packed.safetensors"
    found = evaluate(f"engine.save={file}")
    assert evaluate(f"engine.load={file}") == found


@pytest.mark.parametrize("way", ["a proof that fails", "no samples"])
def test_what_is_not_proved_is_not_saved(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, file = packed.prove, tmp_path / "packed.safetensors"
    split = "validation" if way == "no samples" else "test"
    monkeypatch.setattr(packed, "prove", lambda *given: dataclasses.replace(real(*given), logits=False))
    expected: type[QexpError] = ConfigError if split == "validation" else TrainingError
    with pytest.raises(expected):
        evaluate(f"engine.save={file}", f"eval.split={split}")
    assert not file.exists()


def test_a_folder_that_is_not_there_is_said_before_the_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "prove", None)
    with pytest.raises(ConfigError, match=r"^engine\.save=.*packed: there is no folder "):
        evaluate(f"engine.save={tmp_path / 'nowhere' / 'packed'}")

"""`qexp eval engine=xnor` saves what it has proved."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

from qexp.build import build
from qexp.cli import main
from qexp.commands import packed
from qexp.commands.network import build_network
from qexp.errors import ConfigError, QexpError, TrainingError

from ..composing import configured


def evaluate(*words: str) -> dict[str, float]:
    small = ["model.hidden=[16,16]", "quantizer=dorefa", "bits=2", "engine=xnor", "engine.fallback=true"]
    config = configured(*small, *words, command="eval")
    source = build(config.dataset)
    return packed.evaluate_packed(build_network(config, source), source, config)


def test_a_run_evaluates_the_same_on_bits_and_from_the_file_it_packs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["quantizer=qnn_binary", "bits=1", "epochs=2", "model.hidden=[64,64]", "logger=none"]
    assert main(["train", *words, "trainer.threads=1", f"output_dir={tmp_path}"]) == 0
    (result,) = tmp_path.rglob("result.json")
    accuracy = json.loads(result.read_text())["test_accuracy"]
    file = tmp_path / "packed.safetensors"
    for place in (f"engine.save={file}", f"engine.load={file}"):
        capsys.readouterr()
        assert main(["eval", str(result.parent), "engine=xnor", place]) == 0
        said = capsys.readouterr().out
        assert re.search(rf"test accuracy +{accuracy:.4f}", said) and "the same as in" in said
        assert "3 layers on bits" in said and "NOT" not in said and "DIFFER" not in said
    assert 0.2 < accuracy < 1
    (result.parent / "last.ckpt").unlink()
    composed = [*(word for word in words if not word.startswith(("epochs", "logger"))), f"output_dir={tmp_path}"]
    for what in ([str(result.parent)], composed):
        capsys.readouterr()
        assert main(["eval", *what, "engine=xnor", f"engine.load={file}"]) == 0
        assert re.search(rf"test accuracy +{accuracy:.4f}", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("recorded", "status", "verdict"), [(None, 0, "the same as in"), (0.5, 1, "NOT the 0.5000 of")]
)
def test_where_bits_give_another_number_the_record_is_the_float_layers(
    recorded: float | None,
    status: int,
    verdict: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["quantizer=qnn_binary", "bits=1", "epochs=1", "model.hidden=[16]", "logger=none"]
    assert main(["train", *words, f"output_dir={tmp_path}"]) == 0
    (file,) = tmp_path.rglob("result.json")
    result = json.loads(file.read_text())
    accuracy = result["metrics"]["test_accuracy"]
    if recorded is not None:
        file.write_text(json.dumps(result | {"metrics": {**result["metrics"], "test_accuracy": recorded}}))
    monkeypatch.setattr(packed, "evaluate_packed", lambda *_: {"test_accuracy": accuracy + 0.25})
    capsys.readouterr()
    assert main(["eval", str(file.parent), "engine=xnor"]) == status
    said = capsys.readouterr().out
    assert f"test accuracy  {accuracy + 0.25:.4f}\nby float layers {accuracy:.4f}, {verdict}" in said


@pytest.mark.parametrize("way", ["a proof that fails", "no samples"])
def test_what_is_not_proved_is_not_saved(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, file = packed.prove, tmp_path / "packed.safetensors"
    split = "validation" if way == "no samples" else "test"
    monkeypatch.setattr(
        packed, "prove", lambda *given, **how: dataclasses.replace(real(*given, **how), logits=False)
    )
    expected: type[QexpError] = ConfigError if split == "validation" else TrainingError
    with pytest.raises(expected):
        evaluate(f"engine.save={file}", f"eval.split={split}")
    assert not file.exists()


@pytest.mark.parametrize(
    ("place", "said"),
    [(".", ": that is a folder; name a file in it"), ("nowhere/packed", "packed: there is no folder ")],
)
def test_a_place_that_takes_no_file_is_said_before_the_proof(
    place: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "prove", None)
    with pytest.raises(ConfigError, match=rf"^engine\.save=.*{said}"):
        evaluate(f"engine.save={tmp_path / place}")


def test_products_are_those_of_the_runs_device(monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = packed.products, []
    monkeypatch.setattr(packed, "device_of", lambda config: torch.device("cuda", 1))
    monkeypatch.setattr(packed, "products", lambda say, device: asked.append(device) or real(say))
    evaluate()
    assert asked == [torch.device("cuda", 1)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_proves_saves_and_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "packed.safetensors"
    saved = evaluate("trainer.device=cuda", f"engine.save={file}")
    assert "xor and popcount in Triton" in capsys.readouterr().out
    assert evaluate("trainer.device=cuda", f"engine.load={file}") == pytest.approx(saved)

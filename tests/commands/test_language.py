"""Language models from the command line: the experiments' every path, and what they cannot do yet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qexp.build import build
from qexp.cli import main
from qexp.commands.network import check_network

from ..composing import configured

SMALL = ["budget=smoke_text", "epochs=1", "logger=none", "trainer.threads=1", "seed=0"]


@pytest.mark.parametrize(
    ("name", "runs", "metric"), [("ptb", 4, "perplexity"), ("ptb_characters", 5, "bits_per_character")]
)
def test_every_path_of_an_experiment_runs(
    name: str, runs: int, metric: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", f"experiment=qnn/{name}", *SMALL, f"output_dir={tmp_path}"]) == 0
    results = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    assert len(results) == runs
    assert all(
        result["primary_metric"] == f"test_{metric}" and not result["higher_is_better"] for result in results
    )
    capsys.readouterr()
    assert main(["table", f"qnn/{name}", "--runs", str(tmp_path)]) == 0
    assert "none: a smoke test" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "first"),
    [
        ("quantizer=qnn_binary bits=1", (1, 1)),
        ("quantizer=qnn_log bits=4", (4, 4)),
        ("quantizer=qnn_linear bits=4", (4, 8)),  # as recorded runs have it
    ],
)
def test_methods_that_name_a_width_of_the_image_read_a_text(words: str, first: tuple[int, int]) -> None:
    config = configured("model=lstm", "dataset=descriptions", "task=language_modelling", *words.split())
    assert config.first_bits == first
    check_network(config, build(config.dataset))


def test_what_is_made_for_images_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model=lstm", *SMALL, "quantizer=lsq", "bits=4", f"output_dir={tmp_path}"]
    assert main(["train", *words]) == 0
    (run,) = (path.parent for path in tmp_path.rglob("result.json"))
    assert main(["eval", str(run)]) == 0
    assert "test perplexity" in capsys.readouterr().out
    assert main(["eval", str(run), "engine=xnor"]) == 0
    out = capsys.readouterr().out
    assert "recurrent.0.hidden  w4 a4 bits" in out and "the same as in" in out
    tries = (
        ["scan", str(run)],
        ["bench", "step", "--model", "lstm"],
        ["ptq", "model=lstm", "dataset=descriptions", "quantizer=uniform", f"model.weights={run}"],
    )
    for words in tries:
        assert main(words) == 2
        assert "networks that read images, not yet those that read a text" in capsys.readouterr().err


def test_an_unknown_word_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in (("train", "a b " * 200), ("valid", "a c"), ("test", "a b")):
        (tmp_path / f"{name}.txt").write_text(text)
    words = ["train", "model=lstm", "dataset=text", f"dataset.root={tmp_path}", "dataset.vocabulary=null"]
    assert main([*words, "batch_size=2", f"output_dir={tmp_path / 'outputs'}"]) != 0
    assert "'c' is not in the training text" in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


def test_data_and_network_have_to_agree(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "model=lstm", "dataset=digits", f"output_dir={tmp_path}"]) == 2
    assert "choose dataset=ptb" in capsys.readouterr().err
    assert main(["train", "dataset=descriptions", f"output_dir={tmp_path}"]) == 2

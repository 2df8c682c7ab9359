from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from qexp.commands import table
from qexp.errors import ConfigError


def make_run(root: Path, quantizer: str, seed: int, accuracy: float, epochs: int = 200) -> Path:
    path = root / f"resnet20-cifar10-{quantizer}{'' if quantizer == 'none' else '-w4a4'}-s{seed}-{epochs:08x}"
    path.mkdir(parents=True)
    config = {
        "names": {"model": "resnet20", "dataset": "cifar10", "quantizer": quantizer},
        "bits": {"weight": 4, "activation": 4},
        "quantizer": {"first_last": 32},
        "trainer": {"precision": "float32"},
        "epochs": epochs,
        "seed": seed,
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "result.json").write_text(json.dumps({"metrics": {"test_accuracy": accuracy}}))
    return path


def test_runs_of_the_default_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "outputs/train", "pact", 0, 0.91)
    monkeypatch.chdir(tmp_path)
    assert table.main([]) == 0
    assert "w4a4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("suffix", "mark"), [(".md", "|---|"), (".csv", "model,"), (".tex", "\\toprule"), (".txt", "─")]
)
def test_the_form_follows_the_files_name(tmp_path: Path, suffix: str, mark: str) -> None:
    run = make_run(tmp_path, "pact", 0, 0.91)
    output = tmp_path / f"new/table{suffix}"
    assert table.main([str(run), "--output", str(output)]) == 0
    assert mark in output.read_text()


def test_csv_on_the_screen_keeps_notes_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, "pact", 0, 0.91)
    (make_run(tmp_path, "pact", 1, 0.91) / "result.json").unlink()
    table.main([str(tmp_path), "--format", "csv"])
    seen = capsys.readouterr()
    assert len(seen.out.splitlines()) == 2
    assert "interrupted" in seen.err


def test_a_published_table_without_runs_tells_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert table.main(["pact/table1"]) == 0
    out = capsys.readouterr().out
    assert out.count("not run") == 45
    assert "qexp train experiment=pact/table1 recipe=pact/resnet50 seed=0,1,2" in out


def test_a_published_table_beside_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        make_run(tmp_path, "pact", seed, 0.912 + seed / 1000)
    table.main(["pact/table1", "--only", "ResNet20", "--runs", str(tmp_path)])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "PACT 4b  " in line]
    assert line.split()[4:] == ["91.3", "91.30", "3", "91.05", "to", "91.55", "+0.00", "agrees"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: there is no such folder"),
        (["."], "no runs in ."),
        (["pact/tabel1"], "'pact/tabel1' is not a published table or figure. Did you mean 'pact/table1'?"),
        (["pact/table1", "more"], "one published table at a time"),
        (["pact/table1", "--by", "model"], "--by is set by the published table"),
        (["pact/table1", "--only", "vgg"], "--only vgg: no row contains this; the rows are CIFAR10 ResNet20"),
        (["pact/fig6", "--runs", "nowhere"], "--runs nowhere: pact/fig6 is computed, nothing is run for it"),
        (["pact/table1", "--runs", "nowhere"], "nowhere: there is no such folder"),
        (["--only", "resnet"], "--only belongs to a published table"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        table.main(arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_suffix_or_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    run = str(make_run(tmp_path, "pact", 0, 0.91))
    with pytest.raises(ConfigError, match=r"'\.doc' tells no form"):
        table.main([run, "--output", str(tmp_path / "a.doc")])
    with pytest.raises(ConfigError, match="cannot be written"):
        table.main([run, "--output", f"{run}/config.yaml/a.md"])


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        table.main(["--help"])
    out = capsys.readouterr().out
    assert "qexp table pact/table1" in out
    assert "--by" in out


def test_csv_in_a_file_leaves_its_notes_on_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, "pact", 0, 0.91)
    (make_run(tmp_path, "pact", 1, 0.91) / "result.json").unlink()
    table.main([str(tmp_path), "--output", str(tmp_path / "runs.csv")])
    assert "interrupted" in capsys.readouterr().err
    assert len((tmp_path / "runs.csv").read_text().splitlines()) == 2

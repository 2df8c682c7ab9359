"""`qexp scan` on a real run: what it measures, what it writes, what it leaves alone, and what it refuses."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from qexp import cli
from qexp.build import build
from qexp.commands import train
from qexp.commands.eval import load_run
from qexp.commands.network import build_network
from qexp.commands.scan import refuse_unwritable
from qexp.config import parse
from qexp.data.digits import Digits
from qexp.errors import ConfigError
from qexp.lit.evaluate import measure
from qexp.report.scans import FIELDS, read_scan
from qexp.runs import RunDirectory
from qexp.saved import places_of

from ..composing import configured


def make(root: Path, *overrides: str) -> Path:
    """Train a tiny run below `root`; its folder."""
    words = ("epochs=1", "model.hidden=[16,16]", "trainer.threads=1", f"output_dir={root}", *overrides)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return Path(train.run(configured(*words))["path"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("runs"), "alpha_regularization.lambda_alpha=0.02")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / trained.name)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_scan_of_a_run(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Digits, "test_batches", None)  # the test split is out of reach
    before = digests(run)
    assert cli.main(["scan", str(run), "--points", "5", "--samples", "120", "dataset.eval_batch_size=50"]) == 0
    after = digests(run)
    assert set(after) - set(before) == {"alpha_scan.csv", "figures/alpha_scan.png"}
    assert {name: after[name] for name in before} == before
    assert (run / "figures" / "alpha_scan.png").read_bytes().startswith(b"\x89PNG")

    config = parse(yaml.safe_load((run / "config.yaml").read_text()))
    source = build({**config.dataset, "eval_batch_size": 50})
    network = build_network(config, source)
    load_run(network, RunDirectory(run))
    loss = measure(network, source.training_samples(120, None, "cpu"), torch.device("cpu"))["loss"]
    alphas = {name: float(network.get_submodule(name).alpha.detach()) for name in ("act1", "act2")}
    curves = read_scan(run)
    assert {curve.site: curve.learned for curve in curves} == alphas
    for curve in curves:
        assert (len(curve.values), curve.samples) == (6, 120)
        assert curve.at_learned("quantized") == loss
        others = sum(alpha**2 for site, alpha in alphas.items() if site != curve.site)
        for value, quantized, penalized in zip(
            curve.values, curve.losses["quantized"], curve.losses["penalized"], strict=True
        ):
            assert penalized - quantized == pytest.approx(0.01 * (value**2 + others), rel=1e-5)
    out = capsys.readouterr().out
    for text in ("act1", "learned alpha", "with penalty: least at", f"wrote {run}/alpha_scan.csv"):
        assert text in out
    with (run / "alpha_scan.csv").open(newline="") as stream:
        assert tuple(next(csv.reader(stream))) == FIELDS


def test_an_unfinished_run_is_scanned_from_its_checkpoint(run: Path) -> None:
    (run / "result.json").unlink()
    words = ["--relative", "--low", "0.5", "--high", "2", "--points", "2", "--samples", "50"]
    assert cli.main(["scan", *words, str(run)]) == 0
    for curve in read_scan(run):
        assert curve.values == (0.5 * curve.learned, curve.learned, 2 * curve.learned)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--points", "1"], "--points 1: 2 or more"),
        (["--samples", "0"], "--samples 0: 1 or more"),
        (["--low", "3", "--high", "2"], "--low 3 --high 2: a range of values above 0"),
        (["--low", "0"], "--low 0 --high 20: a range of values above 0"),
        (["--low", "-1"], "--low -1 --high 20: a range of values above 0"),
        (["--high", "inf"], "--low 0.3 --high inf: a range"),
        (["--low", "nan"], "--low nan --high 20: a range"),
        (["bits=2"], "bits=2: the run's own config.yaml decides this"),
        (["another"], "'another': one run at a time"),
        (["trainer.device=tpu"], "trainer.device=tpu"),
    ],
)
def test_a_mistake_is_one_line(run: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = digests(run)
    assert cli.main(["scan", str(run), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"qexp scan: {said}")
    assert error.count("\n") == 1
    assert digests(run) == before


def test_runs_that_cannot_be_scanned(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(folder: Path) -> str:
        assert cli.main(["scan", str(folder)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "RUN=nowhere: no run of qexp" in refused(Path("nowhere"))
    for quantizer in ("none", "dorefa"):
        other = make(tmp_path / "others", f"quantizer={quantizer}")
        assert f"quantizer={quantizer} learns no clip level" in refused(other)
    (run / "last.ckpt").unlink()
    assert "there is no checkpoint" in refused(run)
    (run / "last.ckpt").write_bytes(b"half a file")
    assert "the checkpoint cannot be read" in refused(run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("qexp.models.mlp.MLP", "os.system"))
    assert "_target_=os.system: refused" in refused(run)
    (run / "config.yaml").write_text("[1, 2")
    assert "config.yaml cannot be read" in refused(run)


def test_places_are_read_as_typed() -> None:
    words = ["dataset.root=a b/1e3", "dataset.eval_batch_size=50", "trainer.threads=null", "trainer.device=cpu"]
    assert places_of(words) == {
        "dataset.root": "a b/1e3",
        "dataset.eval_batch_size": 50,
        "trainer.threads": None,
        "trainer.device": "cpu",
    }
    with pytest.raises(ConfigError, match=r"seed=1: the run's own config.yaml decides this"):
        places_of(["seed=1"])


def test_a_folder_that_takes_no_files_is_told_before_the_passes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone/alpha_scan.csv: cannot be written \(No such file"):
        refuse_unwritable(tmp_path / "gone")
    refuse_unwritable(tmp_path)
    assert not list(tmp_path.iterdir())

"""What a user can get wrong on the command line or in a file: one line that names it, and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from qexp import hydra_app
from qexp.build import PLUGINS_VARIABLE

from .composing import compose

HEADER = "# @package _global_\n"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A user's own folder of configurations."""
    folder = tmp_path / "mine"
    (folder / "experiment").mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["epohcs=3"], "unknown key 'epohcs'. Did you mean 'epochs'?"),
        (["trainer.devise=cpu"], "Did you mean 'trainer.device'?"),
        (["quantizer=pcat"], "unknown quantizer 'pcat'. Did you mean 'pact'?"),
        (["quantzer=pact"], "unknown key 'quantzer'. Did you mean 'quantizer'?"),
        (["+sed=3"], "unknown key 'sed'. Did you mean 'seed'?"),
        (["engine=xnor"], "'engine' is nothing that qexp train takes: `qexp train --help` has what there is."),
        (["experiment=pact/nofig"], "unknown experiment 'pact/nofig'."),
        (["experiment=qnn/kernels"], "no run is made for it. `qexp table qnn/kernels`"),
        (["bits=9"], "bits=9: a width is 1 to 8, or 32"),
        (["bits=w4a9"], "bits=w4a9: a width is 1 to 8, or 32"),
        (["bits.weight=9"], "bits.weight=9: a width is 1 to 8, or 32"),
        (["bits=2,4"], "add -m"),
        (["layers.fc1.bits=2,4"], "train: layers.fc1.bits=2,4 gives several values"),
        (["-m", "quantizer=pact,dorefa", "--cfg", "job"], "--cfg job: prints the configuration of one job"),
        (["bits"], "cannot read 'bits'"),
        (["bits=3.5"], "bits=3.5: a width is 1 to 8, or 32"),
        (["bits=null"], "bits=null: a width is 1 to 8, or 32"),
        (["bits=[4]"], "bits=[4]: name one option of the group 'bits'"),
        (["quantizer=null"], "unknown quantizer 'null'. Known:"),
        (["model=3"], "unknown model '3'. Known:"),
        (["=3"], "cannot read '=3'"),
        (["layers=4"], "layers=4: a layer is set apart by a pattern: layers.'<glob>'.bits="),
        (["layers.'fc*'.bist=4"], "cannot read 'layers.'fc*'.bist=4': a layer is set apart by a pattern"),
        (["seed=99999999999999999999"], "seed=99999999999999999999: a whole number, at least 0, at most"),
        (["experiment.name="], "experiment.name=: null, or a text."),
        (["output_dir=null"], "output_dir=null: a text."),
        (["~epochs"], "epochs is missing: a whole number, at least 1."),
        (["--bogus"], "unrecognized arguments: --bogus; `qexp train --help`"),
        (["--cfg", "jbo"], "invalid choice: 'jbo'"),
        (["epochs=${nowhere}"], "nowhere"),
        (["model.hidden=[1"], "cannot read"),
        (["hydra/launcher=slrum"], "unknown hydra/launcher 'slrum'"),
        (["--config-dir", "nowhere"], "there is no such folder"),
    ],
)
def test_mistakes_end_in_one_line(typed: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert hydra_app.main("train", typed) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert error.startswith("qexp train: ")


def test_several_unknown_keys_are_reported_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert hydra_app.main("train", ["epohcs=3", "sed=1", "bits=4"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_broken_yaml_names_file_and_line(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (mine / "experiment" / "broken.yaml").write_text("a: [1\nb: 2\n")
    assert hydra_app.main("train", ["--config-dir", str(mine), "experiment=broken"]) == 2
    error = capsys.readouterr().err
    assert "broken.yaml, line 2" in error
    assert len(error.splitlines()) == 1


def test_other_numbers_in_a_defaults_list_are_names(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (mine / "experiment" / "half.yaml").write_text(HEADER + "defaults:\n  - override /bits: 3.5\n")
    (mine / "experiment" / "off.yaml").write_text(HEADER + "defaults:\n  - override /quantizer: off\n")
    assert hydra_app.main("train", ["--config-dir", str(mine), "experiment=half"]) == 2
    assert "bits=3.5: a width is" in capsys.readouterr().err
    assert hydra_app.main("train", ["--config-dir", str(mine), "experiment=off"]) == 2
    assert "unknown quantizer 'False'" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["os.system", "torch.hub.load", "qexp.runs.os.system"])
@pytest.mark.parametrize(
    "place", ["qexp.models.mlp.MLP", "qexp.quantizers.pact.PACT", "qexp.lit.loggers.tensorboard"]
)
def test_a_saved_run_passes_the_same_gate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str, place: str
) -> None:
    names = {"model": "mlp", "dataset": "digits", "quantizer": "pact"}
    saved = yaml.safe_dump({**compose("bits=3"), "names": names})
    (tmp_path / "config.yaml").write_text(saved.replace(place, target))
    for command in ("eval", "explain"):
        assert hydra_app.main(command, [str(tmp_path)]) == 2
        assert f"_target_={target}: refused" in capsys.readouterr().err


TWO_ANSWERS = """
from torch import nn


class Net(nn.Module):
    def __init__(self, *, input_shape, num_classes):
        super().__init__()
        self.flat, self.fc = nn.Flatten(), nn.Linear(64, num_classes)

    def forward(self, x):
        x = self.flat(x)
        return {"scores": self.fc(x), "features": x}
"""


@pytest.mark.parametrize("words", [[], ["quantizer=none"]])
def test_a_classifier_of_several_answers_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "two_answers.py").write_text(TWO_ANSWERS)
    (tmp_path / "mine" / "model" / "two.yaml").write_text("_target_: two_answers.Net\nweights: null\n")
    monkeypatch.setenv(PLUGINS_VARIABLE, "")
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    typed = [
        "--config-dir",
        str(tmp_path / "mine"),
        "--plugin",
        "two_answers",
        "model=two",
        f"output_dir={tmp_path}",
    ]
    assert hydra_app.main("train", [*typed, "trainer.progress=false", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("a classifier answers with one tensor (N, classes)") == 1
    assert "Traceback" not in said

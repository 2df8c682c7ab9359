"""The README's method and network, taken from the README itself, outside the repository and without an edit."""

import csv
import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from qexp import build
from qexp.hydra_app import main
from qexp.quantizers.base import Site

README = Path(__file__).parents[1] / "README.md"

EVERYTHING = '''
from my_lsq import LSQ
from qexp.quantizers.base import ParameterGroup


class Wide(LSQ):
    """Uses all that the promise offers beyond LSQ: a group, a loss inside the graph, a step of its own."""

    made = []

    def __init__(self, bits, site, rounding, *, lr_factor=0.5):
        super().__init__(bits, site, rounding)
        self.lr_factor, self.error, self.steps_taken = lr_factor, None, 0
        self.made.append(self)

    def forward(self, x):
        y = super().forward(x)
        self.error = (y - x).float().square().mean()
        return y

    def auxiliary_loss(self):
        return 0.01 * self.error

    def parameter_groups(self):
        yield ParameterGroup((self.step,), lr_factor=self.lr_factor)

    def after_step(self):
        self.step.clamp_(min=1e-4)
        self.steps_taken += 1
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the two files that the README prints, and a third that widens the first."""
    blocks = re.findall(r"`mine/([\w/.]+)`\n\n```\w+\n(.*?)```", README.read_text(), re.DOTALL)
    assert {name for name, _ in blocks} == {"my_lsq.py", "quantizer/my_lsq.yaml", "my_net.py", "model/my_net.yaml"}
    for name, text in blocks:
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "mine" / "wide.py").write_text(EVERYTHING)
    lsq = (tmp_path / "mine" / "quantizer" / "my_lsq.yaml").read_text()
    (tmp_path / "mine" / "quantizer" / "wide.yaml").write_text(lsq.replace("my_lsq.LSQ", "wide.Wide"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(build.PLUGINS_VARIABLE, "")
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    for module in ("my_lsq", "wide", "my_net"):
        sys.modules.pop(module, None)
    return tmp_path / "mine"


def command(folder: Path, *overrides: str) -> list[str]:
    """The README's line, on a small network."""
    plugins = ["--plugin", "my_lsq", "--plugin", "wide"]
    return ["--config-dir", str(folder), *plugins, "model.hidden=[64,64]", "optimizer.lr=0.05", *overrides]


def metrics(folder: Path) -> dict[str, float]:
    """The last value of every number in the run's metrics.csv."""
    (path,) = folder.glob("outputs/train/*/metrics.csv")
    return {row["name"]: float(row["value"]) for row in csv.DictReader(path.read_text().splitlines())}


def test_lsq_trains_and_its_steps_are_logged(mine: Path) -> None:
    assert main("train", command(mine, "quantizer=my_lsq", "bits=3", "epochs=10")) == 0
    found = metrics(mine.parent)
    for layer in ("fc1", "fc2", "fc2.input", "fc", "fc.input"):
        assert found[f"step/{layer}"] > 0
    (result,) = mine.parent.glob("outputs/train/*/result.json")
    assert json.loads(result.read_text())["test_accuracy"] > 0.5


def test_lsq_is_explained(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("explain", command(mine, "quantizer=my_lsq", "bits=3", "explain.format=json")) == 0
    plan = json.loads(capsys.readouterr().out)
    widths = [(layer["weight_bits"], layer["activation_bits"]) for layer in plan["layers"]]
    assert widths == [(8, 8), (3, 3), (8, 8)]
    assert plan["alphas"] == 5  # three weights, two inputs; the image has a fixed grid


def test_lsq_has_the_printed_gradients(mine: Path) -> None:
    """arXiv 1902.08153, equation 3: -v/s + round(v/s) inside, -Qn and Qp beyond, times 1 / sqrt(N Qp)."""
    lsq = importlib.import_module("my_lsq").LSQ(3, Site("a", "input", (4,)), torch.round)
    lsq.rounding = lambda x: x + (torch.round(x) - x).detach()
    lsq.double()
    values = torch.tensor([[-1.0, 0.6, 3.3, 9.0]], dtype=torch.float64)
    with torch.no_grad():
        lsq.step.fill_(0.5)
    lsq(values).sum().backward()
    expected = 0.0 + (1 - 1.2) + (7 - 6.6) + 7.0
    torch.testing.assert_close(lsq.step.grad, torch.tensor(expected / (4 * 7) ** 0.5, dtype=torch.float64))


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_everything_a_method_may_ask_for_is_honoured(mine: Path, compiled: bool) -> None:
    overrides = ("quantizer=wide", "bits=3", "epochs=2", f"trainer.compile={str(compiled).lower()}")
    assert main("train", command(mine, *overrides)) == 0
    made = importlib.import_module("wide").Wide.made
    steps = 2 * (1437 // 128)
    assert made
    assert {quantizer.steps_taken for quantizer in made} == {steps}
    found = metrics(mine.parent)
    errors = sum(float(quantizer.error) for quantizer in made)
    assert errors > 0
    assert found["train_penalty"] > 0  # the auxiliary losses, and nothing else: LSQ has no clip levels to penalize


def test_a_network_of_ones_own_trains(mine: Path) -> None:
    words = [
        "--config-dir",
        str(mine),
        "--plugin",
        "my_net",
        "model=my_net",
        "model.width=4",
        "bits=4",
        "epochs=1",
    ]
    assert main("train", [*words, "dataset.train_samples=256"]) == 0
    found = metrics(mine.parent)
    assert found["alpha/relu"] > 0 and found["alpha/relu_1"] > 0

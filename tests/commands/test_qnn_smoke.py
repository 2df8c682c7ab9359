"""The QNN paper's experiments run to their end on the digits, at a small width: every path, no number."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..composing import compose

SMALL = ["budget=smoke", "epochs=1", "logger=none", "trainer.threads=1", "trainer.compile=false", "seed=0"]
EXPERIMENTS = {"table1": 10, "gradients": 7, "shift": 12, "stochastic": 4, "imagenet": 11}


@pytest.mark.long
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_path_of_an_experiment_runs(name: str, tmp_path: Path) -> None:
    width = [] if name == "imagenet" else ["model.width=0.05"]  # GoogLeNet has one width
    words = [f"experiment=qnn/{name}", *SMALL, *width, f"output_dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "qexp", "train", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    assert len(results) == EXPERIMENTS[name]
    assert all(0.0 < result["test_accuracy"] <= 1.0 for result in results)


@pytest.mark.parametrize("recipe", ["mnist", "mnist_torch", "svhn", "cifar10", "alexnet", "googlenet"])
def test_an_image_has_one_grid_with_zero_on_it_so_that_the_first_layer_runs_on_bits(recipe: str) -> None:
    dataset = compose(f"recipe=qnn/{recipe}")["dataset"]
    assert (set(dataset["mean"]), set(dataset["std"])) == ({0.5}, {0.5})

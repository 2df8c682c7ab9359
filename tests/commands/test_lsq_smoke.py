"""LSQ's experiments, those of our reading of LG-LSQ, and the comparison run to their end on the digits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = ["budget=smoke", "epochs=1", "logger=none", "trainer.threads=1", "trainer.compile=false", "seed=0"]
TINY = ["recipe=lsq/cifar10_resnet20"]
EXPERIMENTS = {
    "lsq/table1": ([], 5),
    "lsq/gradient_scale": (TINY, 6),
    "lsq/schedule": (TINY, 2),
    "lglsq/claims": ([], 2),
    "lglsq/claims ": (["recipe=lglsq/mobile", "bits=4"], 2),
    "lglsq/ablation": (["bits=3"], 16),
    "lglsq/sharpness": ([], 10),
    "compare/cifar10_resnet20": (["bits=2"], 8),
}


def run(tmp_path: Path, *words: str) -> list[dict]:
    done = subprocess.run(
        [sys.executable, "-m", "qexp", "train", *words, *SMALL, f"output_dir={tmp_path}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]


@pytest.mark.long
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_path_of_an_experiment_runs(name: str, tmp_path: Path) -> None:
    words, count = EXPERIMENTS[name]
    results = run(tmp_path, f"experiment={name.strip()}", *words)
    assert len(results) == count
    assert all(0.0 < result["test_accuracy"] <= 1.0 for result in results)


@pytest.mark.long
def test_distillation_runs_from_a_float_run(tmp_path: Path) -> None:
    (_,) = run(tmp_path / "float", *TINY, "quantizer=none")
    (start,) = (tmp_path / "float").rglob("last.ckpt")
    results = run(tmp_path / "taught", "experiment=lsq/distillation", *TINY, f"model.weights={start.parent}")
    assert len(results) == 3

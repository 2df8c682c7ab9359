"""The PACT paper's networks run to their end on the digits, float and quantized: every path, no number."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qexp.paths import config_dir

SMALL = ["budget=smoke", "epochs=1", "logger=none", "trainer.threads=1", "trainer.compile=false"]
RECIPES = sorted(path.stem for path in (config_dir() / "recipe" / "pact").glob("*.yaml"))


@pytest.mark.parametrize(
    "name",
    [name if name == "cifar10_resnet20" else pytest.param(name, marks=pytest.mark.long) for name in RECIPES],
)
def test_every_recipe_runs(name: str, tmp_path: Path) -> None:
    words = [f"recipe=pact/{name}", "quantizer=none,pact", "bits=2", "seed=0", *SMALL, f"output_dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "qexp", "train", "-m", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    assert len(results) == 2
    assert all(0.0 < result["test_accuracy"] <= 1.0 for result in results)

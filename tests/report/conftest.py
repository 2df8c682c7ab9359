"""Run folders made by hand, in the format of a real run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

TARGETS = {
    "pact": ("qexp.quantizers.dorefa.DoReFaWeight", "qexp.quantizers.pact.PACT"),
    "dorefa": ("qexp.quantizers.dorefa.DoReFaWeight", "qexp.quantizers.dorefa.DoReFaActivation"),
}


def config(quantizer: str, bits: int, seed: int, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved configuration; `changes` are dotted keys."""
    method: dict[str, Any] = {"weight": None, "activation": None}
    if quantizer != "none":
        weight, activation = TARGETS[quantizer]
        method = {"weight": {"_target_": weight}, "activation": {"_target_": activation}}
    if quantizer == "pact":
        method["activation"] |= {"alpha": 10.0, "scope": "layer"}
    plain: dict[str, Any] = {
        "task": {"_target_": "qexp.lit.task.Classification", "label_smoothing": 0.0},
        "dataset": {"_target_": "qexp.data.cifar10.CIFAR10", "name": "cifar10", "root": "data", "download": False},
        "model": {"_target_": "qexp.models.resnet_cifar.PreactivationResNet", "depth": 20, "weights": None},
        "quantizer": {**method, "placement": "relu", "first_last": 32},
        "bits": {"weight": bits, "activation": bits, "first": None, "last": None},
        "first_last": None,
        "layers": {},
        "alpha_regularization": {"lambda_alpha": 0.01},
        "optimizer": {"_target_": "qexp.lit.optimizers.sgd", "lr": 0.1, "weight_decay": 2e-4},
        "schedule": {"_target_": "qexp.lit.schedules.multistep", "milestones": [60, 120], "of": 200},
        "trainer": {"precision": "float32", "compile": "auto"},
        "logger": {},
        "epochs": 200,
        "batch_size": 128,
        "seed": seed,
        "output_dir": "outputs",
        "names": {"model": "resnet20", "dataset": "cifar10", "quantizer": quantizer},
        "experiment": {"name": "train"},
    }
    for key, value in changes.items():
        node = plain
        *parents, last = key.split(".")
        for parent in parents:
            node = node[parent]
        node[last] = value
    return plain


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`make_run("pact", 4, seed=0, accuracy=0.91, **{"epochs": 30})` -> the folder, below tmp_path/runs.

    accuracy=None leaves the run without a result; `metrics` are rows (epoch, step, name, value); `quantization` is
    of its identity.
    """

    def make(
        quantizer: str = "pact",
        bits: int = 4,
        seed: int = 0,
        accuracy: float | None = 0.91,
        metrics: list[tuple[int, int, str, float]] | None = None,
        result: Mapping[str, Any] | None = None,
        root: str = "runs",
        quantization: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> Path:
        plain = config(quantizer, bits, seed, changes)
        digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]
        width = "" if quantizer == "none" else f"-w{bits}a{bits}"
        path = tmp_path / root / f"resnet20-cifar10-{quantizer}{width}-s{seed}-{digest}"
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.yaml").write_text(yaml.safe_dump(plain))
        (path / "environment.json").write_text("{}")
        if quantization is not None:
            (path / "identity.json").write_text(json.dumps({"quantization": quantization}))
        if accuracy is not None:
            record = {
                "format_version": 1,
                "run_id": path.name,
                "status": "done",
                "metrics": {"test_accuracy": accuracy, "test_loss": 1 - accuracy},
                "primary_metric": "test_accuracy",
                "higher_is_better": True,
                "test_accuracy": accuracy,
                "epochs": plain["epochs"],
                "seed": seed,
                **(result or {}),
            }
            (path / "result.json").write_text(json.dumps(record))
        rows = [f"{epoch},{step},{name},{value!r}\n" for epoch, step, name, value in metrics or []]
        (path / "metrics.csv").write_text("epoch,step,name,value\n" + "".join(rows))
        return path

    return make


@pytest.fixture
def alpha_rows() -> Callable[[int, int], list[tuple[int, int, str, float]]]:
    """`alpha_rows(19, 40)`: the alphas of a pre-activation ResNet20 over 40 epochs, as their shape is known."""

    def rows(sites: int, epochs: int) -> list[tuple[int, int, str, float]]:
        found = []
        for epoch in range(1, epochs + 1):
            step = 390 * epoch
            for site in range(sites):
                final = 0.9 + 1.2 * ((site * 7) % sites) / sites
                found.append((epoch, step, f"alpha/{site_name(site)}", final + 8 * 0.7**epoch))
            found.append((epoch, step, "train_loss", 2.0 * 0.95**epoch + 0.1))
            found.append((epoch, step, "train_accuracy", 1 - 0.7 * 0.95**epoch))
            found.append((epoch, step, "val_loss", 2.0 * 0.95**epoch + 0.3))
            found.append((epoch, step, "val_accuracy", 0.95 - 0.7 * 0.95**epoch))
        found.append((epochs, step, "test_accuracy", 0.91))
        return found

    def site_name(site: int) -> str:
        if site == 0:
            return "act0"
        block, place = divmod(site - 1, 2)
        return f"stage{block // 3 + 1}.{block % 3}.relu{place + 1}"

    return rows

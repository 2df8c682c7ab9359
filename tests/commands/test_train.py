from __future__ import annotations

import errno
import functools
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import qexp.files
from qexp import hydra_app
from qexp.build import build
from qexp.commands import eval as evaluation
from qexp.commands import train
from qexp.commands.network import build_network
from qexp.config import Config, parse
from qexp.errors import CheckpointError, ConfigError, OutputError, QexpError, TrainingError
from qexp.layers.quantized import QuantLinear
from qexp.lit import optimizers
from qexp.quantizers.base import Site
from qexp.quantizers.wrpn import WRPNWeight
from qexp.runs import RunDirectory

from ..composing import compose

pytestmark = pytest.mark.usefixtures("quiet_threads")


@pytest.fixture
def quiet_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def config(tmp_path):
    """Make the configuration of a short default run in tmp_path."""

    def make(*overrides: str) -> Config:
        return parse(
            compose("epochs=2", f"output_dir={tmp_path}", "model.hidden=[32,32]", "trainer.threads=1", *overrides)
        )

    return make


def test_a_run_from_start_to_record_and_skip(config, capsys):
    record = train.run(config())
    folder = Path(record["path"])
    assert record["status"] == "done"
    result = json.loads((folder / "result.json").read_text())
    assert result["test_accuracy"] == record["metrics"]["test_accuracy"] == result["metrics"]["test_accuracy"]
    assert {"format_version", "run_id", "status", "primary_metric", "higher_is_better", "train_seconds", "epochs",
            "seed", "config_digest", "data_digest", "compiled", "warnings"} <= result.keys()  # fmt: skip
    assert (folder / "figures" / "alpha.png").stat().st_size > 1000
    assert RunDirectory(folder).status() == "done"
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["packages"]["torch"]
    out = capsys.readouterr().out
    for said in ("test accuracy", str(folder), "tensorboard --logdir"):
        assert said in out
    assert "epoch 2/2" in (folder / "run.log").read_text()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = train.run(config())
    assert again["status"] == "skipped"
    assert again["metrics"] == record["metrics"]
    assert "done already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert logging.getLogger("qexp").handlers == []


def test_eval_gives_the_recorded_accuracy(config, capsys):
    folder = train.run(config())["path"]
    plain = {**config().plain, "eval": {"run": folder, "split": "test"}}
    record = evaluation.run(parse(plain))
    assert (record["matches"], record["status"]) == (True, "done")
    assert "the same as in" in capsys.readouterr().out


def test_eval_of_another_accuracy_than_the_recorded_one_fails(config, capsys):
    run = RunDirectory(train.run(config())["path"])
    result = run.read_result()
    run.write_result({**result, "metrics": {**result["metrics"], "test_accuracy": 0.5}})
    words = [f"eval.run={run.path}"]
    capsys.readouterr()
    assert hydra_app.main("eval", words) == 1
    assert "NOT the 0.5000 of" in capsys.readouterr().out
    assert hydra_app.main("eval", ["-m", *words, "dataset.eval_batch_size=100"]) == 1
    assert "1 failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("metric", "recorded", "measured", "same"),
    [
        ("test_perplexity", 110.1234, 110.12342, True),
        ("test_perplexity", 110.1234, 110.1240, False),
        ("test_bits_per_character", 1.2345, 1.23451, True),
        ("test_accuracy", 0.9722, 0.9722 + 1e-6, False),
    ],
)
def test_what_rounds_otherwise_is_the_same_and_another_sample_is_not(
    metric: str, recorded: float, measured: float, same: bool, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path)
    run.write_result({"metrics": {metric: recorded}})
    matches, words = evaluation._compare(run, {metric: measured}, metric)
    assert matches is same and words.startswith("the same as in" if same else "NOT the")


def test_images_set_apart_are_measured_after_each_epoch(config, capsys):
    validated = config("dataset.validation=0.1")
    run = RunDirectory(train.run(validated)["path"])
    seen = {(epoch, name): value for epoch, _, name, value in run.metrics.rows() if name.startswith("val_")}
    assert set(seen) == {(epoch, name) for epoch in (1, 2) for name in ("val_loss", "val_accuracy")}
    source = build(validated.dataset)
    network = build_network(validated, source)
    evaluation.load_run(network.eval(), run)
    batches = list(source.validation_batches(None, torch.device("cpu")))
    labels = torch.cat([labels for _, labels in batches])
    with torch.no_grad():
        logits = torch.cat([network(images) for images, _ in batches])
    right = int((logits.argmax(dim=1) == labels).sum())
    assert len(labels) == 144
    assert seen[2, "val_accuracy"] == right / 144
    assert seen[2, "val_loss"] == pytest.approx(float(cross_entropy(logits, labels)), rel=1e-4)
    capsys.readouterr()
    assert hydra_app.main("eval", [str(run.path), "eval.split=validation"]) == 0
    said = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert said == {"val loss": f"{seen[2, 'val_loss']:.4f}", "val accuracy": f"{right / 144:.4f}"}


def test_eval_of_another_network_is_refused(config):
    folder = train.run(config("epochs=1"))["path"]
    plain = {**config("model.hidden=[16]").plain, "eval": {"run": folder, "split": "test"}}
    with pytest.raises(CheckpointError, match="another network"):
        evaluation.run(parse(plain))


def test_eval_without_anything_to_evaluate(config):
    with pytest.raises(ConfigError, match=r"eval\.run="):
        evaluation.run(config())


def test_preview_writes_nothing(config, tmp_path, capsys):
    record = train.run(config(), dry_run=True)
    assert record["status"] == "start"
    assert list(tmp_path.iterdir()) == []
    assert record["path"] in capsys.readouterr().out


def test_a_failed_run_says_why_and_goes_on_when_mended(config, monkeypatch):
    failing = config("optimizer.lr=1e20")
    with pytest.raises(TrainingError, match="not a number"):
        train.run(failing)
    folder = train.plan(failing).run
    assert folder.status() == "failed"
    failure = folder.read_failure()
    assert failure["exit_code"] == 1
    assert "step " in failure["message"]
    assert "layer " in failure["message"]
    sgd = optimizers.sgd
    mended = functools.wraps(sgd)(lambda groups, **given: sgd(groups, **{**given, "lr": 0.1}))
    monkeypatch.setattr(optimizers, "sgd", mended)
    assert train.run(failing)["status"] == "done"
    assert folder.status() == "done" and folder.read_failure() is None


def test_a_disk_that_fills_up_ends_in_one_line_and_the_run_goes_on(config, monkeypatch):
    planned = train.plan(config("trainer.checkpoint_steps=3"))
    real, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 14:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(qexp.files.os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        train.run(config("trainer.checkpoint_steps=3"))
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert planned.run.checkpoint.exists()
    assert train.run(config("trainer.checkpoint_steps=3"))["status"] == "done"
    assert planned.run.read_failure() is None


def test_no_data_leaves_nothing_behind(config, tmp_path):
    from qexp.errors import DataError

    with pytest.raises(DataError):
        train.run(config("dataset=mnist", f"dataset.root={tmp_path / 'none'}"))
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_built_leaves_nothing_behind(config, tmp_path):
    with pytest.raises(ConfigError):
        train.run(config("quantizer.activation.alpha=-1"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.lr=abc",
        "optimizer.lr=-1",
        "optimizer.momentum=1",
        "optimizer.weight_decay=-1",
        "optimizer.decay=some",
        "schedule.rise=2",
        "schedule.start=-1",
        "task.label_smoothing=1",
        "+logger.mlflow._target_=qexp.lit.loggers.mlflow",
        "layers.nothing.bits=3",
        "model.weights=https://example.org/a.pth",
        "model.weights=5",
    ],
)
def test_a_mistake_in_any_part_leaves_nothing_behind(config, tmp_path, override, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(QexpError) as caught:
        train.run(config(override))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_preview_says_how_a_failed_run_would_go_on(config, capsys):
    planned = train.plan(config())
    planned.run.prepare({}, planned.identity, {})
    planned.run.write_failure("out of luck", 1)
    assert train.run(config(), dry_run=True)["status"] == "start"
    planned.run.checkpoint.touch()
    assert train.run(config(), dry_run=True)["status"] == "resume"
    with planned.run.lock():
        assert train.run(config(), dry_run=True)["status"] == "running"
    planned.run.write_result({"test_accuracy": None})
    assert train.run(config(), dry_run=True)["status"] == "skip"
    assert train.run(config())["status"] == "skipped"
    assert "test accuracy not known" in capsys.readouterr().out


def test_an_alpha_of_the_whole_network_is_blamed_once(config):
    record = train.run(
        config(
            "epochs=1", "batch_size=1400", "optimizer.momentum=0", "schedule=constant",
            "alpha_regularization.lambda_alpha=15", "quantizer.activation.scope=network",
        )
    )  # fmt: skip
    (warning,) = RunDirectory(record["path"]).read_warnings()
    assert warning.startswith("epoch 1: layer act1 (one for 2 layers): alpha is negative (-5)")


def test_events_compare_the_runs_of_a_sweep(config, tmp_path):
    from tensorboard import context
    from tensorboard.backend.event_processing import data_provider
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    paths = [train.run(config("epochs=1", "model.hidden=[8]", f"bits={bits}"))["path"] for bits in (2, 3, 4)]
    events = EventAccumulator(str(Path(paths[0]) / "tensorboard")).Reload()
    found = set(events.Tags()["scalars"])
    assert {"train_loss", "train_accuracy", "lr", "test_accuracy", "alpha/act1"} <= found
    assert {"alpha_grad/act1", "clip_share/act1"} <= found
    assert events.Tags()["images"] == ["alpha"]
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(tmp_path))
    backend = backend_context.Context(TBContext(data_provider=provider, logdir=str(tmp_path)))
    request = api_pb2.ListSessionGroupsRequest(slice_size=9, allowed_statuses=[0, 1, 2, 3])
    groups = list_session_groups.Handler(context.RequestContext(), backend, "", request).run().session_groups
    assert sorted(group.hparams["bits.weight"].number_value for group in groups) == [2, 3, 4]
    assert all("test_accuracy" in [value.name.tag for value in group.metric_values] for group in groups)


def test_a_run_that_began_from_weights_is_evaluated_without_them(config, tmp_path, capsys):
    from qexp import hydra_app

    began = train.run(config("epochs=1", "quantizer=none"))
    record = train.run(config("epochs=1", f"model.weights={began['path']}"))
    (Path(began["path"]) / "last.ckpt").unlink()
    assert hydra_app.main("eval", [record["path"], "trainer.device=cpu"]) == 0
    assert "the same as in" in capsys.readouterr().out


def test_layers_that_begin_at_zero_are_in_the_runs_log_and_said_by_one_process(
    config: Callable[..., Config], caplog: pytest.LogCaptureFixture
) -> None:
    silent = config("quantizer=wrpn", "bits=2", "epochs=1", "model.hidden=[256,256]")
    train._network(train.plan(silent))  # as each of a job's processes builds it
    assert caplog.text == ""
    record = train.run(silent)
    assert "begin with every quantized weight at 0 (fc2)" in (Path(record["path"]) / "run.log").read_text()


def test_layers_that_begin_at_zero_are_named(caplog: pytest.LogCaptureFixture) -> None:
    layers = [
        QuantLinear(nn.Linear(8, 8), WRPNWeight(2, Site(f"fc{index}", "weight", (8, 8))), None) for index in (1, 2)
    ]
    network = nn.Sequential(*layers)
    with torch.no_grad():
        layers[0].weight.fill_(0.4)
        layers[1].weight.fill_(0.6)
    train._warn_of_silence(network)
    assert "1 of 2 layers begin with every quantized weight at 0 (fc1)" in caplog.text
    layers[0].weight.data.fill_(0.6)
    caplog.clear()
    train._warn_of_silence(network)
    assert caplog.text == ""


def test_gradients_without_a_quantized_layer_are_refused(config) -> None:
    with pytest.raises(ConfigError, match="gradient_bits=6: gradients are quantized behind quantized layers"):
        train.run(config("quantizer=none", "gradient_bits=6"))


def test_a_batch_of_one_and_a_task_of_another_kind_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["epochs=1", f"output_dir={tmp_path}", "trainer.threads=1", "trainer.compile=false"]
    small = ["batch_size=1", "dataset.train_samples=20", "quantizer=none"]
    for words, said in (
        (small, "batch_size=1: a batch norm needs more than one value"),
        ([*small, "normalization=shift"], "batch_size=1: a batch norm needs more than one value"),
        (["task=language_modelling"], "task=LanguageModelling: the network reads images"),
        (["model=lstm", "dataset=descriptions", "task=classification"], "task=Classification: the network reads"),
    ):
        assert hydra_app.main("train", [*common, *words]) == 2
        assert said in capsys.readouterr().err

from __future__ import annotations

import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from qexp.files import MetricsFile
from qexp.lit.alphas import Seen, look, numbers
from qexp.lit.start import calibrate
from qexp.lit.summary import write_summary
from qexp.quantizers.base import Site, named_quantizers
from qexp.quantizers.pact import PACT

TENSORBOARD = {"tensorboard": {"_target_": "qexp.lit.loggers.tensorboard"}}


def test_looking_changes_nothing(small_run):
    network = small_run.network().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.randn(16, 1, 8, 8)
    generator = torch.get_rng_state()
    seen = list(look(network, images))
    assert [entry.site for entry in seen] == ["first", "second"]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(module.training for module in network.modules())
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_what_one_look_gives():
    quantizer = PACT(2, Site("act", "activation"), alpha=3.0)
    network = nn.Sequential(nn.Identity(), quantizer)
    quantizer.alpha.grad = torch.tensor(-2.0)
    (seen,) = look(network, torch.tensor([[-1.0, 0.0, 1.0, 2.0, 3.0, 5.0, 7.0, 9.0]]))
    assert numbers(seen) == {
        "alpha/act": 3.0, "alpha_grad/act": 2.0, "clip_share/act": 0.5, "levels/act": 4.0
    }  # fmt: skip


def test_many_values_give_mean_and_extremes():
    quantizer = PACT(4, Site("act", "activation", (2, 4, 4)), scope="channel")
    quantizer.alpha.data = torch.tensor([1.0, 3.0]).view_as(quantizer.alpha)
    (seen,) = look(nn.Sequential(quantizer), None)
    assert numbers(seen) == {"alpha/act": 2.0, "alpha_min/act": 1.0, "alpha_max/act": 3.0}


def test_the_epochs_are_in_metrics_csv_with_epoch_zero_first(small_run, tmp_path):
    small_run.train(tmp_path, epochs=2)
    rows = MetricsFile(tmp_path / "metrics.csv").rows()
    alphas = [(epoch, step) for epoch, step, name, _ in rows if name == "alpha/first"]
    assert alphas == [(0, 0), (1, 11), (2, 22)]
    assert (0, 0, "alpha/first", 10.0) in rows
    names = {name for _, _, name, _ in rows}
    assert {"train_loss", "train_accuracy", "lr", "alpha_grad/first", "clip_share/second", "levels/first"} <= names


def test_tensorboards_own_reader_finds_everything(small_run, tmp_path):
    from matplotlib.figure import Figure

    config = small_run.config(epochs=2, logger=TENSORBOARD)
    _, metrics = small_run.train(tmp_path, epochs=2, logger=TENSORBOARD)
    write_summary(tmp_path / "tensorboard", config, {**metrics, "test_accuracy": 0.5}, 22, Figure())
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train_loss", "train_accuracy", "lr", "alpha/first", "alpha_grad/second", "clip_share/first"} <= tags
    assert next((e.step, e.value) for e in events.Scalars("alpha/first")) == (0, 10.0)
    assert [e.step for e in events.Scalars("train_loss")] == [11, 22]
    assert events.Scalars("test_accuracy")[0].value == 0.5
    assert events.Tags()["images"] == ["alpha"]
    hparams = events.summary_metadata["_hparams_/session_start_info"].plugin_data
    assert hparams.plugin_name == "hparams"
    assert b"optimizer.lr" in hparams.content
    assert [path.is_dir() for path in (tmp_path / "tensorboard").iterdir()].count(True) == 0


def test_the_summary_is_read_after_the_tenth_event_file_of_a_process(small_run, tmp_path, monkeypatch):
    """TensorBoard sorts names as text: within a second a file with the count 10 comes before the one with 9."""
    from tensorboard.summary.writer import event_file_writer

    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9))
    while time.time() % 1 > 0.2:  # the second has to be young enough for both files
        time.sleep(0.01)
    training = SummaryWriter(log_dir=str(tmp_path), purge_step=0)  # as the logger begins
    for step in (1, 2):
        training.add_scalar("train_loss", 0.25, step)
    training.close()
    write_summary(tmp_path, small_run.config(epochs=1), {"test_accuracy": 0.5}, 2, None)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.value for event in events.Scalars("train_loss")] == [0.25, 0.25]
    assert [event.value for event in events.Scalars("test_accuracy")] == [0.5]


def test_a_resumed_runs_events_are_not_doubled(small_run, tmp_path):
    small_run.train(tmp_path, epochs=1, logger=TENSORBOARD)
    (tmp_path / "last.ckpt").unlink()
    time.sleep(1 - time.time() % 1)  # event files are read by name: a second, then a number, "10" before "9"
    small_run.train(tmp_path, epochs=2, logger=TENSORBOARD)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("train_loss")] == [11, 22]


class Calibrated(PACT):
    def calibrate(self, x):
        self.alpha.data.fill_(float(x.max()))


def test_calibration_starts_from_the_first_batch_and_leaves_the_rest():
    from qexp.data.digits import Digits

    network = nn.Sequential(nn.BatchNorm2d(1), Calibrated(4, Site("act", "activation")), nn.Dropout(0.5))
    alpha, generator = network[1].alpha, torch.get_rng_state()
    batches = Digits().train_batches(128, 0, "cpu")
    first, _ = next(iter(batches))
    batches.load_state_dict({"epoch": 0, "position": 0})
    assert calibrate(network, batches, torch.device("cpu"))
    normalised = (first - first.mean()) / torch.sqrt(first.var(unbiased=False) + 1e-5)
    torch.testing.assert_close(network[1].alpha.detach(), normalised.max())
    assert network[1].alpha is alpha
    assert network[0].num_batches_tracked == 0
    assert torch.equal(torch.get_rng_state(), generator)
    assert (batches.epoch, batches.position) == (0, 0)


def test_without_a_calibrating_quantizer_nothing_runs(small_run):
    network = small_run.network()
    network.forward = None
    assert not any(quantizer.starts_from_data for _, quantizer in named_quantizers(network))
    assert calibrate(network, None, torch.device("cpu")) is False


@pytest.mark.parametrize("name", ["csv"])
def test_lightnings_csv_logger_by_config(name, small_run, tmp_path):
    small_run.train(tmp_path, epochs=1, logger={name: {"_target_": f"qexp.lit.loggers.{name}"}})
    assert (tmp_path / "csv" / "metrics.csv").exists()


def test_the_gradient_of_many_alphas_is_told_by_its_norm():
    seen = Seen("act", {"alpha": torch.ones(2)}, {"alpha": torch.tensor([3.0, 4.0])})
    assert numbers(seen)["alpha_grad/act"] == 5.0

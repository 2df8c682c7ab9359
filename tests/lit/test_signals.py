from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest
import torch

from qexp.errors import Interrupted
from qexp.files import MetricsFile
from qexp.lit.checkpoint import read_checkpoint
from qexp.lit.signals import StopRequest
from qexp.lit.task import Classification


@pytest.fixture
def signal_at_step(monkeypatch):
    """Send this process a signal during a step, as a terminal would."""

    def arrange(step: int, number: int) -> None:
        original = Classification.training_step

        def training_step(self, batch, index):
            if self.global_step + 1 == step:
                os.kill(os.getpid(), number)
            return original(self, batch, index)

        monkeypatch.setattr(Classification, "training_step", training_step)

    return arrange


@pytest.fixture(scope="module")
def whole(small_run, tmp_path_factory):
    """The run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    network, metrics = small_run.train(folder, epochs=2)
    return folder, network.state_dict(), metrics


@pytest.mark.parametrize(
    ("number", "step", "code"),
    # In an epoch, at its end, in the next one, and in the last step of all.
    [(signal.SIGINT, 5, 130), (signal.SIGTERM, 11, 143), (signal.SIGTERM, 15, 143), (signal.SIGINT, 22, 130)],
)
def test_a_signal_leaves_a_checkpoint_of_whole_steps_that_goes_on(
    number, step, code, small_run, whole, tmp_path, signal_at_step, monkeypatch
):
    folder, state, expected = whole
    before = signal.getsignal(number)
    signal_at_step(step, number)
    with pytest.raises(Interrupted) as caught:
        small_run.train(tmp_path, epochs=2)
    assert caught.value.exit_code == code
    assert signal.getsignal(number) is before
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == step
    monkeypatch.undo()
    network, metrics = small_run.train(tmp_path, epochs=2)
    for name, value in state.items():
        assert torch.equal(network.state_dict()[name], value)
    assert metrics["train_loss"] == expected["train_loss"]
    rows = [MetricsFile(path / "metrics.csv").rows() for path in (tmp_path, folder)]
    assert rows[0] == rows[1]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 on; the child only signals itself
def test_a_second_signal_ends_at_once():
    child = os.fork()
    if child == 0:
        try:
            with StopRequest():
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 130


def test_a_signal_during_the_processes_agreement_is_for_the_next_step(monkeypatch):
    trainer = SimpleNamespace(world_size=2, strategy=SimpleNamespace(root_device="cpu"))
    with StopRequest() as request:
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
        assert request.agreed(trainer) == (False, False)
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, **__: None)
        assert request.agreed(trainer) == (True, False)
        assert request.signal == signal.SIGTERM

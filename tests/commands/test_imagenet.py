"""The whole path on a small tree of real JPEG files, in two processes: train, be ended, go on, evaluate."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from qexp import hydra_app
from qexp.commands import train
from qexp.commands.distributed import Report, Worker
from qexp.commands.network import build_network
from qexp.config import Config, parse
from qexp.errors import Interrupted, TrainingError
from qexp.lit.checkpoint import network_state, read_checkpoint
from qexp.lit.evaluate import evaluate
from qexp.runs import find_runs

from ..composing import compose

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:This DataLoader will create . worker processes:UserWarning"),  # on one core
]

PLUGIN = '''
"""ImageNet that ends its own job: in the second epoch the first process sends the signal that $END_BY names."""

import os
import signal
import time

from torch import nn

from qexp.data.decoding import FileBatches
from qexp.data.imagenet import ImageNet


class Ending(FileBatches):
    def __iter__(self):
        for batch in super().__iter__():
            end, first = os.environ.get("END_BY"), os.environ.get("RANK") == "0"
            if end and first and (self.epoch, self.position) == (1, 2):
                whom = os.getpid() if end == "SIGKILL" else int(os.environ["LAUNCHER"])
                os.kill(whom, getattr(signal, end))
                time.sleep(1)
            yield batch


class EndingImageNet(ImageNet):
    def train_batches(self, *arguments, **named):
        batches = super().train_batches(*arguments, **named)
        return Ending(
            batches.decoding, batches.plan, batches.scale, batches.shift, batches.workers, batches.channels_last
        )


class Small(nn.Sequential):
    """Batch norm has state of its own in each process, dropout draws from each process's generator."""

    def __init__(self, input_shape, num_classes):
        super().__init__(
            nn.Conv2d(input_shape[0], 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, num_classes),
        )
'''


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Two classes, 10 images each to train, 4 and 3 in val, which is flat with its list beside it."""
    root = tmp_path_factory.mktemp("tree")
    (root / "val").mkdir()
    number, lines = 0, []
    for name, photograph in zip(("n01440764", "n02111889"), load_sample_images().images, strict=True):
        (root / "train" / name).mkdir(parents=True)
        for piece in range(10):
            cut(photograph, piece).save(root / "train" / name / f"{name}_{piece}.JPEG")
        for piece in range(4 - number // 4):
            number += 1
            cut(photograph, 20 + piece).save(root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")
            lines.append(f"ILSVRC2012_val_{number:08d}.JPEG {name}\n")
    (root / "val.txt").write_text("".join(lines))
    return root


def cut(photograph: np.ndarray, piece: int) -> Image.Image:
    return Image.fromarray(photograph[9 * piece : 9 * piece + 24, 13 * piece : 13 * piece + 30])


@pytest.fixture
def job(tree, tmp_path, monkeypatch):
    """Make the configuration of a run in `tmp_path/<name>`, in two processes with a decoding worker each."""
    (tmp_path / "ending.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("QEXP_PLUGINS", "ending")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def make(name: str, *overrides: str) -> Config:
        plain = compose(
            "dataset=imagenet", f"dataset.root={tree}", "dataset.num_classes=2", "dataset.resize=20",
            "dataset.crop=16", "dataset.workers=1", "dataset.validation=0.1", "dataset.eval_batch_size=3",
            "bits=4", "epochs=3", "batch_size=4", "trainer.devices=2", "trainer.device=cpu",
            "trainer.threads=1", "trainer.compile=false", "trainer.progress=false", "trainer.checkpoint_steps=1",
            f"output_dir={tmp_path / name}", *overrides,
        )  # fmt: skip
        plain["dataset"]["_target_"] = "ending.EndingImageNet"
        plain["model"] = {"_target_": "ending.Small"}
        plain["names"] = {"model": "small", "dataset": "imagenet", "quantizer": "pact"}
        return parse(plain)

    return make


def state_of(config: Config) -> tuple[dict, list, dict]:
    folder = train.plan(config).run
    content = read_checkpoint(folder.checkpoint)
    return content, folder.metrics.rows(), folder.read_result()["metrics"]


def assert_every_sample_counts_once(config: Config, checkpoint: dict, metrics: dict) -> None:
    """Of 7 to test and 2 to validate, measured by two processes; here the network is measured again by one."""
    planned = train.plan(config)
    network = build_network(planned.config, planned.source)
    network.load_state_dict(network_state(checkpoint))
    for split, prefix, samples in (("test", "test", 7), ("validation", "val", 2)):
        again = evaluate(network, planned.source, planned.config, split)
        assert round(metrics[f"{prefix}_accuracy"] * samples, 9) == round(again[f"{prefix}_accuracy"] * samples, 9)
        assert metrics[f"{prefix}_loss"] == pytest.approx(again[f"{prefix}_loss"], abs=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(
    ("end", "raised", "step"), [("SIGKILL", TrainingError, 5), ("SIGTERM", Interrupted, None)]
)
def test_two_processes_that_are_killed_or_stopped_go_on_bit_for_bit(job, monkeypatch, end, raised, step):
    whole = job("whole")
    train.run(whole)
    expected, rows, metrics = state_of(whole)
    assert_every_sample_counts_once(whole, expected, metrics)
    monkeypatch.setenv("LAUNCHER", str(os.getpid()))
    config = job(end)
    monkeypatch.setenv("END_BY", end)
    with pytest.raises(raised):
        train.run(config)
    monkeypatch.delenv("END_BY")
    folder = train.plan(config).run
    left = read_checkpoint(folder.checkpoint)["global_step"]
    assert left % 4 != 0 and not folder.locked(), "ended in mid-epoch"
    assert step is None or left == step
    train.run(config)
    content, again, measured = state_of(config)
    assert again == rows and measured == metrics
    assert content["global_step"] == expected["global_step"] == 12
    for name, value in expected["state_dict"].items():
        assert torch.equal(content["state_dict"][name], value), name
    for index, buffers in expected["optimizer_states"][0]["state"].items():
        theirs = content["optimizer_states"][0]["state"][index]
        assert torch.equal(theirs["momentum_buffer"], buffers["momentum_buffer"])


class Ended:
    """A process that has ended."""

    def __init__(self, exitcode: int) -> None:
        self.exitcode = exitcode


def test_the_cause_of_a_failure_is_told_from_its_consequences():
    """When one process ends, the others lose their connection; what they say of it is not what happened."""

    def worker(report: Report | None, code: int) -> Worker:
        made = Worker.__new__(Worker)
        made.report, made.process = report, Ended(code)
        return made

    surprised = worker(Report("RuntimeError: Connection closed", 1, trace="Traceback ...", time=1.0), 1)
    surprised_first = worker(Report("ZeroDivisionError", 1, trace="Traceback ...", time=0.5), 1)
    mistake = worker(Report("file: cannot be decoded", 2, time=2.0), 2)
    killed, aborted = worker(None, -9), worker(None, -6)
    mixed = [surprised, aborted, surprised_first, killed, mistake]
    assert sorted(mixed, key=Worker.blame) == [mistake, killed, surprised_first, surprised, aborted]
    assert str(killed.failure()).startswith("a process of the job ended by signal 9")


def typed(tree: Path, output: Path, *overrides: str) -> list[str]:
    return [
        "dataset=imagenet", f"dataset.root={tree}", "dataset.num_classes=2", "dataset.resize=20",
        "dataset.crop=16", "dataset.workers=1", "model=mlp", "model.hidden=[8]", "epochs=1", "batch_size=4",
        "trainer.device=cpu", "trainer.threads=1", "trainer.progress=false", f"output_dir={output}", *overrides,
    ]  # fmt: skip


@pytest.mark.parametrize("devices", [1, 2])
def test_a_truncated_file_ends_a_run_in_one_line(tree, tmp_path, capfd, devices):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tree, broken)
    file = broken / "train/n02111889/n02111889_3.JPEG"
    file.write_bytes(file.read_bytes()[:-300])
    assert hydra_app.main("train", typed(broken, tmp_path / "out", f"trainer.devices={devices}")) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    assert line.startswith(f"qexp train: {file}: cannot be decoded (")
    (run,) = find_runs(tmp_path / "out")
    assert run.status == "failed" and str(file) in run.failure


def test_missing_data_ends_in_one_line_before_anything_is_written(tmp_path, capfd):
    words = typed(tmp_path / "nowhere", tmp_path / "out", "trainer.devices=2")
    assert hydra_app.main("train", words) == 2
    (line,) = capfd.readouterr().err.splitlines()
    for said in ("imagenet", str(tmp_path / "nowhere"), "https://image-net.org", "dataset.root", "QEXP_DATA"):
        assert said in line
    assert not (tmp_path / "out").exists()

from __future__ import annotations

import errno
import json
import random
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import qexp.files
from qexp.build import build, locate
from qexp.commands.network import build_network
from qexp.errors import CheckpointError, OutputError
from qexp.lit import checkpoint as checkpoints
from qexp.lit import world
from qexp.lit.checkpoint import CheckpointWriter, DurableCheckpointIO
from qexp.lit.signals import StopRequest
from qexp.models.mlp import MLP
from qexp.models.weights import load_weights
from qexp.paths import config_dir

from ..composing import parsed


def full_disk(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_old_checkpoint(small_run, tmp_path, monkeypatch):
    small_run.train(tmp_path, epochs=1)
    before = (tmp_path / "last.ckpt").read_bytes()
    monkeypatch.setattr(qexp.files.os, "fsync", full_disk)
    with pytest.raises(OutputError, match=r"last\.ckpt.*No space left on device.*intact"):
        DurableCheckpointIO().save_checkpoint({"a": torch.ones(9)}, tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert list(tmp_path.glob(".last.ckpt*")) == []


def test_a_write_that_fails_inside_torch_is_one_line_too(tmp_path):
    """A real limit on the size of a file: torch reports it wrapped into its own error."""
    resource = pytest.importorskip("resource")
    target = tmp_path / "last.ckpt"
    DurableCheckpointIO().save_checkpoint({"a": 1}, target)
    before = target.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OutputError, match=r"last\.ckpt.*cannot be written"):
            DurableCheckpointIO().save_checkpoint({"a": torch.ones(10**6)}, target)
        with pytest.raises(OutputError) as first:  # there is no earlier one
            DurableCheckpointIO().save_checkpoint({"a": torch.ones(10**6)}, tmp_path / "first.ckpt")
        assert "intact" not in str(first.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert target.read_bytes() == before


def test_every_generator_returns(tmp_path):
    state = checkpoints.random_state()
    torch.save(state, tmp_path / "state")
    drawn = (torch.rand(3), np.random.rand(3), random.random(), random.gauss(0, 1), np.random.randn())
    checkpoints.set_random_state(torch.load(tmp_path / "state", weights_only=True))
    again = (torch.rand(3), np.random.rand(3), random.random(), random.gauss(0, 1), np.random.randn())
    assert torch.equal(drawn[0], again[0])
    assert np.array_equal(drawn[1], again[1])
    assert drawn[2:] == again[2:]


def test_a_run_on_a_gpu_keeps_the_generator_of_its_own_device(monkeypatch):
    """One that saw four devices may go on with one in sight; a list of all of them is what was kept once."""
    states, restored = torch.arange(4), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: states[1])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state: restored.append(int(state)))
    state = checkpoints.random_state()
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for kept in (state["cuda"], list(states), [], None):
        checkpoints.set_random_state({**state, "cuda": kept})
    assert restored == [1, 0]


def writer_of(minutes=None):
    return CheckpointWriter("last.ckpt", StopRequest(), minutes, None, compiled=False)


def test_each_process_goes_on_from_its_own_sums(monkeypatch):
    sums = [torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([6.0, 1.0, 2.0, 1.0])]
    monkeypatch.setattr(world, "size", lambda: 2)
    monkeypatch.setattr(world, "gathered", lambda value: sums if value is sums[0] else [value, value])
    checkpoint = {}
    module = SimpleNamespace(network=torch.nn.Linear(1, 1), totals=sums[0], samples=5)
    writer_of().on_save_checkpoint(None, module, checkpoint)
    older = {"qexp": {**checkpoint["qexp"], "totals": (sums[0] + sums[1])[:3]}}  # those of all processes together
    for kept, expected in ((checkpoint, sums), (older, torch.tensor([[10.0, 4.0, 4.0, 0.0], [0.0] * 4]))):
        for rank in (0, 1):
            monkeypatch.setattr(world, "rank", lambda rank=rank: rank)
            module, writer = SimpleNamespace(totals=torch.zeros(4), samples=0), writer_of()
            writer.on_load_checkpoint(None, module, kept)
            writer.on_train_start(None, module)
            assert torch.equal(module.totals, expected[rank]) and module.samples == 5


def test_processes_agree_once_a_step_on_stopping_and_writing(monkeypatch):
    reductions, writes = [], []

    def another_is_late(wish, op):
        reductions.append(wish.tolist())
        wish[1] = 1

    monkeypatch.setattr(torch.distributed, "all_reduce", another_is_late)
    trainer = SimpleNamespace(
        world_size=2, is_last_batch=False, global_step=3, strategy=SimpleNamespace(root_device="cpu")
    )
    writer = writer_of(minutes=5)
    monkeypatch.setattr(writer, "write", lambda *_: writes.append(1))
    writer.on_train_batch_end(trainer, None, None, None, 2)
    assert (reductions, writes) == ([[0, 0]], [1])


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_what_is_no_checkpoint_is_named(content, tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last\.ckpt"):
        checkpoints.read_checkpoint(path)


def test_a_file_that_may_be_whole_is_not_to_be_deleted(tmp_path, monkeypatch):
    def locked(*_, **__):
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "last.ckpt"
    path.write_bytes(b"whole")
    monkeypatch.setattr(torch, "load", locked)
    with pytest.raises(CheckpointError, match=r"cannot be read \(Permission denied\)") as caught:
        checkpoints.read_checkpoint(path)
    assert "delete" not in str(caught.value)


def test_a_foreign_checkpoint_is_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="not a checkpoint of a qexp run"):
        checkpoints.read_checkpoint(tmp_path / "last.ckpt")


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def test_a_checkpoint_that_runs_code_is_refused(tmp_path, capsys):
    torch.save({"state_dict": {}, "qexp": Evil()}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError):
        checkpoints.read_checkpoint(tmp_path / "last.ckpt")
    assert capsys.readouterr().out == ""


def test_a_checkpoint_of_another_network_is_refused(small_run, tmp_path):
    small_run.train(tmp_path, epochs=1)
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    with pytest.raises(CheckpointError, match=r"another network.*0\.bias"):
        small_run.train(tmp_path, epochs=2, network=other)


def narrow(name: str) -> str:
    """The widest width below 32 that all quantizers of a method take."""
    node = parsed(f"quantizer={name}").quantizer
    targets = [node[role]["_target_"] for role in ("weight", "activation") if node.get(role)]
    common = set.intersection(*(set(locate(target).supported_bits) for target in targets)) - {32}
    return f"bits={max(common)}"


@pytest.mark.parametrize("name", sorted(path.stem for path in (config_dir() / "quantizer").glob("*.yaml")))
@pytest.mark.parametrize("older", [False, True])
def test_the_checkpoint_of_a_quantized_run_is_no_float_networks(name, older, tmp_path):
    """Also where its quantizers hold no tensors, so that its names are those of a float network."""
    bits = [] if name == "none" else [narrow(name)]
    config = parsed("model=mlp", "dataset=digits", f"quantizer={name}", *bits)
    source = build(config.dataset)
    network, content = build_network(config, source), {}
    module = SimpleNamespace(network=network, totals=torch.zeros(4), samples=0)
    writer_of().on_save_checkpoint(None, module, content)
    content["state_dict"] = {f"network.{key}": value for key, value in network.state_dict().items()}
    if older:  # which told the names of tensors alone; the run's identity stood beside it
        del content["qexp"]["quantized"]
        told = {"quantization": {"bits": []} if name != "none" else None}
        (tmp_path / "identity.json").write_text(json.dumps(told))
    DurableCheckpointIO().save_checkpoint(content, tmp_path / "last.ckpt")
    target = MLP(input_shape=source.shape, num_classes=source.num_classes)
    load_weights(target, tmp_path)  # a run may begin with it: bits are lowered run by run
    if name == "none":
        load_weights(target, tmp_path, of_float=True)
    else:
        with pytest.raises(CheckpointError, match="of a quantized run"):
            load_weights(target, tmp_path, of_float=True)

from __future__ import annotations

import os
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from qexp.errors import CheckpointError
from qexp.models.mlp import MLP
from qexp.models.resnet_cifar import ResNetV1
from qexp.models.torchvision_models import classifier
from qexp.models.weights import load_weights


@pytest.fixture(scope="module")
def public_resnet20(real_file) -> Path:
    """A checkpoint trained and published by others: post-activation ResNet20, CIFAR-10."""
    return real_file("resnet20-12fca82f.th")


def network(seed: int = 0, hidden: tuple[int, ...] = (6,)) -> MLP:
    torch.manual_seed(seed)
    return MLP(input_shape=(1, 2, 2), num_classes=3, hidden=hidden)


def same(left: nn.Module, right: nn.Module) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "best_prec1": 91.7},
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"net": prefixed(state, "module.")},
        lambda state: prefixed(state, "module._orig_mod."),
        lambda state: OrderedDict((name, t) for name, t in state.items() if "num_batches_tracked" not in name),
        lambda state: {"state_dict": prefixed(state, "network.") | {"metric.total": torch.zeros(1)}, "epoch": 1},
        lambda state: {"state_dict": prefixed(state, "network._orig_mod."), "loops": {"a": [1, "b"]}},
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoints_as_they_are_found(tmp_path: Path, wrap, legacy: bool) -> None:
    source, target = network(1), network(2)
    torch.save(wrap(source.state_dict()), tmp_path / "net.pth", _use_new_zipfile_serialization=not legacy)
    load_weights(target, tmp_path / "net.pth")
    assert same(source, target)


def test_the_folder_of_a_run(tmp_path: Path) -> None:
    source, target = network(1), network(2)
    torch.save({"state_dict": prefixed(source.state_dict(), "network.")}, tmp_path / "last.ckpt")
    load_weights(target, str(tmp_path))
    assert same(source, target)


def test_safetensors(tmp_path: Path) -> None:
    source, target = network(1), network(2)
    save_file(source.state_dict(), tmp_path / "net.safetensors")
    load_weights(target, tmp_path / "net.safetensors")
    assert same(source, target)
    whole = (tmp_path / "net.safetensors").read_bytes()
    (tmp_path / "net.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "net.safetensors", "damaged or cut short")


def test_half_precision_is_widened(tmp_path: Path) -> None:
    source, target = network(1), network(2)
    torch.save(
        {name: t.half() if t.is_floating_point() else t for name, t in source.state_dict().items()},
        tmp_path / "n.pt",
    )
    load_weights(target, tmp_path / "n.pt")
    assert target.fc.weight.dtype == torch.float32
    assert torch.equal(target.fc.weight, source.fc.weight.half().float())


def refused(path: str | Path, *texts: str, model: nn.Module | None = None) -> None:
    """`path` is refused in one line that holds `texts`, and the model is as it was."""
    model = model or network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as raised:
        load_weights(model, path)
    message = str(raised.value)
    assert "\n" not in message
    for text in texts:
        assert text in message
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class Foreign:
    """Stands for any object that a checkpoint should not hold."""


class Hostile:
    """Runs code when it is unpickled in the usual way."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("true",)


@pytest.mark.parametrize(
    "content", [Foreign(), Hostile(), {"state_dict": network().state_dict(), "args": Foreign()}]
)
@pytest.mark.parametrize("legacy", [False, True])
def test_foreign_objects_are_never_loaded(tmp_path: Path, content: object, legacy: bool) -> None:
    torch.save(content, tmp_path / "net.pth", _use_new_zipfile_serialization=not legacy)
    refused(tmp_path / "net.pth", "objects other than tensors", "net.pth")


@pytest.mark.parametrize(
    "name", ["missing.pth", "https://example.org/net.pth", "s3://bucket/net.pth", "file:///tmp/net.pth"]
)
def test_paths_that_lead_nowhere(tmp_path: Path, name: str) -> None:
    if ":" in name:
        refused(name, "a URL is not read", name)
    else:
        refused(tmp_path / name, "there is no such file", name)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    refused(tmp_path, "holds no last.ckpt")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"  <HTML>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "another kind of file"),
        (b"PK\x03\x04 and then nothing that is a zip", "damaged"),
        (b"\x80\x02 and then no pickle", ""),
        (b"\x80\x02}q\x00.", ""),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path: Path, content: bytes, text: str) -> None:
    (tmp_path / "net.pth").write_bytes(content)
    refused(tmp_path / "net.pth", "net.pth", text)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_files_cut_short(tmp_path: Path, legacy: bool, share: float) -> None:
    torch.save(network().state_dict(), tmp_path / "net.pth", _use_new_zipfile_serialization=not legacy)
    whole = (tmp_path / "net.pth").read_bytes()
    (tmp_path / "net.pth").write_bytes(whole[: int(len(whole) * share)])
    refused(tmp_path / "net.pth", "damaged or cut short")


@pytest.mark.parametrize(
    "content", [[1, 2], {"epoch": 3}, {"weight": torch.ones(2), "lr": 0.1}, torch.ones(2), {}]
)
def test_checkpoints_without_a_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "net.pth")
    refused(tmp_path / "net.pth", "no state dict in it")


def test_weights_of_another_model(tmp_path: Path) -> None:
    torch.save(network(hidden=(6, 6)).state_dict(), tmp_path / "deeper.pth")
    refused(
        tmp_path / "deeper.pth",
        "6 of the file's 14 are unknown (fc2.weight, bn2.weight, bn2.bias and 3 more)",
        "MLP",
    )
    refused(
        tmp_path / "deeper.pth",
        "are missing (fc3.weight,",
        model=network(hidden=(6, 6, 6)),
    )
    torch.save(network(hidden=(5,)).state_dict(), tmp_path / "narrower.pth")
    refused(
        tmp_path / "narrower.pth",
        "fc1.weight is (5, 4) in the file and (6, 4) in the model",
        "6 have another shape",
    )


def test_values_that_are_not_numbers(tmp_path: Path) -> None:
    state = network().state_dict()
    state["fc.bias"] = torch.tensor([0.0, float("nan"), 1.0])
    torch.save(state, tmp_path / "net.pth")
    refused(tmp_path / "net.pth", "fc.bias", "no finite numbers")


def test_two_names_for_one_layer(tmp_path: Path) -> None:
    model = ResNetV1(input_shape=(3, 8, 8), num_classes=2, depth=8)
    state = model.state_dict()
    torch.save(state | {"linear.bias": state["fc.bias"]}, tmp_path / "net.pth")
    refused(tmp_path / "net.pth", "two entries mean fc.bias", model=model)


@pytest.mark.parametrize(
    ("architecture", "foreign"), [("googlenet", "aux3.fc2.bias"), ("inception_v3", "Aux.fc.bias")]
)
def test_the_further_outputs_of_torchvisions_networks_are_left_out(
    tmp_path: Path, architecture: str, foreign: str
) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(
        architecture, weights=None, num_classes=3, aux_logits=True, init_weights=False
    ).eval()
    ours = classifier(input_shape=(3, 96, 96), num_classes=3, architecture=architecture).eval()
    state = theirs.state_dict()
    torch.save(state | {foreign: torch.zeros(3)}, tmp_path / "more.pth")
    refused(
        tmp_path / "more.pth", f"1 of the file's {len(ours.state_dict()) + 1} are unknown ({foreign})", model=ours
    )
    torch.save(state, tmp_path / "net.pth")
    load_weights(ours, tmp_path / "net.pth")
    image = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        assert torch.equal(ours(image), theirs(image))


def test_a_network_without_further_outputs_leaves_nothing_out(tmp_path: Path) -> None:
    torch.save(network().state_dict() | {"aux1.fc.bias": torch.zeros(3)}, tmp_path / "net.pth")
    refused(tmp_path / "net.pth", "1 of the file's 9 are unknown (aux1.fc.bias)")


class TestPublicCheckpoint:
    def test_loads_by_name(self, public_resnet20: Path) -> None:
        model = ResNetV1(input_shape=(3, 32, 32), num_classes=10)
        load_weights(model, public_resnet20)
        theirs = torch.load(public_resnet20, map_location="cpu", weights_only=True)["state_dict"]
        assert torch.equal(model.fc.weight, theirs["module.linear.weight"])
        assert torch.equal(model.layer2[0].bn1.running_var, theirs["module.layer2.0.bn1.running_var"])

    def test_is_refused_for_another_model(self, public_resnet20: Path) -> None:
        refused(public_resnet20, "are unknown", "are missing")

    @pytest.mark.slow
    def test_reaches_its_published_accuracy(self, public_resnet20: Path, real_file) -> None:
        with np.load(real_file("cifar10.npz")) as arrays:
            images, labels = torch.from_numpy(arrays["x_test"]), torch.from_numpy(arrays["y_test"]).flatten()
        model = ResNetV1(input_shape=(3, 32, 32), num_classes=10).eval().to(memory_format=torch.channels_last)
        load_weights(model, public_resnet20)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        correct = 0
        with torch.inference_mode():
            for batch, truth in zip(images.split(100), labels.split(100), strict=True):
                normalized = ((batch.float() / 255 - mean) / std).permute(0, 3, 1, 2)
                correct += int((model(normalized).argmax(1) == truth).sum())
        assert correct / len(labels) == pytest.approx(0.9173, abs=0.0003)


@pytest.mark.parametrize(
    ("architecture", "foreign"),
    [
        ("densenet121", lambda name: re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", name)),
        ("vit_b_32", lambda name: name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2.")),
    ],
)
def test_older_names_of_torchvisions_checkpoints(tmp_path: Path, architecture: str, foreign) -> None:
    source, target = (
        classifier(input_shape=(3, 224, 224), num_classes=2, architecture=architecture) for _ in "ab"
    )
    state = {foreign(name): tensor for name, tensor in source.state_dict().items()}
    assert state.keys() != source.state_dict().keys()
    torch.save(state, tmp_path / "old.pth")
    load_weights(target, tmp_path / "old.pth")
    assert same(source, target)


def test_a_quantized_run_is_no_float_network(tmp_path: Path) -> None:
    state = prefixed(network(1).state_dict(), "network.") | {"network.act1.alpha": torch.tensor(1.0)}
    torch.save({"state_dict": state, "qexp": {"quantizers": ["act1.alpha"]}}, tmp_path / "run.ckpt")
    load_weights(network(2), tmp_path / "run.ckpt")  # bits are lowered run by run
    with pytest.raises(CheckpointError, match=r"of a quantized run \(act1\.alpha\)"):
        load_weights(network(2), tmp_path / "run.ckpt", of_float=True)

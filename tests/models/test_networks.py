from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace

from qexp.convert import quantize_model
from qexp.errors import ConfigError
from qexp.graph.scheme import Method
from qexp.models.alexnet_bn import AlexNetBN
from qexp.models.mlp import MLP
from qexp.models.mobile_cifar import mobilenet_v2_cifar, shufflenet_v2_cifar
from qexp.models.qnn import QNNMLP, QNNAlexNet, QNNConvNet
from qexp.models.resnet_cifar import PreactivationResNet, ResNetV1
from qexp.models.svhn import SVHNNet
from qexp.models.torchvision_models import classifier
from qexp.quantizers.base import named_quantizers
from qexp.quantizers.lsq import LSQ

from ..conversions import plan_of, scheme

CIFAR = {"input_shape": (3, 32, 32), "num_classes": 10}
IMAGENET = {"input_shape": (3, 224, 224), "num_classes": 1000}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def relu_calls(graph: GraphModule) -> list[str]:
    """Names of the modules behind each call of a ReLU, one entry per call site."""
    calls = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    return [name for name in calls if isinstance(graph.get_submodule(name), nn.ReLU | nn.ReLU6)]


# He et al. 2016 (arXiv 1512.03385), table 6, prints 0.27, 0.46, 0.66 and 0.85 million.
@pytest.mark.parametrize(("depth", "expected"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)])
@pytest.mark.parametrize("network", [PreactivationResNet, ResNetV1])
def test_cifar_resnets_have_the_published_size(network: type[nn.Module], depth: int, expected: int) -> None:
    model = network(**CIFAR, depth=depth)
    assert parameters(model) == expected
    assert len(relu_calls(symbolic_trace(model))) == depth - 1


@pytest.mark.parametrize(
    ("name", "expected", "relus"),
    [
        ("resnet18", 11_689_512, 17),
        ("resnet34", 21_797_672, 33),
        ("resnet50", 25_557_032, 49),
        ("alexnet", 61_100_840, 7),
        ("mobilenet_v2", 3_504_872, 35),
    ],
)
def test_torchvision_networks(name: str, expected: int, relus: int) -> None:
    with torch.device("meta"):
        model = classifier(**IMAGENET, architecture=name)
    assert parameters(model) == expected
    assert len(relu_calls(symbolic_trace(model))) == relus


def test_the_papers_alexnet_and_svhn_networks() -> None:
    with torch.device("meta"):
        alexnet = AlexNetBN(**IMAGENET)
        svhn = SVHNNet(input_shape=(3, 40, 40), num_classes=10)
    assert relu_calls(symbolic_trace(alexnet)) == [f"act{number}" for number in range(7)]
    assert relu_calls(symbolic_trace(svhn)) == [f"act{number}" for number in range(7)]
    assert alexnet.fc5.in_features == 256 * 6 * 6
    convolutions = [64 * 48 * 9, 64 * 64 * 9, 128 * 64 * 9, 128 * 128 * 9, 128 * 128 * 9, 512 * 128 * 25]
    norms = 2 * (64 + 64 + 128 + 128 + 128 + 512)
    assert parameters(svhn) == 48 * 3 * 25 + 48 + sum(convolutions) + norms + 512 * 10 + 10


def test_preactivation_names_follow_the_papers_figure() -> None:
    names = relu_calls(symbolic_trace(PreactivationResNet(**CIFAR)))
    blocks = [f"conv{stage}blk{block}" for stage in (1, 2, 3) for block in (1, 2, 3)]
    assert names == ["act0", *(f"{block}.{act}" for block in blocks for act in ("stemact", "act"))]


def test_preactivation_shortcut_carries_the_sum_and_its_average() -> None:
    model = PreactivationResNet(**CIFAR)
    total, activated = torch.randn(2, 16, 8, 8), torch.randn(2, 16, 8, 8)
    nn.init.zeros_(model.conv2blk1.conv2.weight)
    out, _ = model.conv2blk1(total, activated)
    expected = total.reshape(2, 16, 4, 2, 4, 2).mean((3, 5))
    assert torch.allclose(out[:, 8:24], expected, atol=1e-6)
    assert not out[:, :8].any() and not out[:, 24:].any()


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (MLP(input_shape=(1, 8, 8), num_classes=10), (1, 8, 8)),
        (MLP(input_shape=(3, 5, 7), num_classes=10, hidden=[4]), (3, 5, 7)),
        (PreactivationResNet(input_shape=(1, 29, 30), num_classes=10, depth=8), (1, 29, 30)),
        (ResNetV1(input_shape=(1, 29, 30), num_classes=10, depth=8), (1, 29, 30)),
        (SVHNNet(input_shape=(3, 37, 46), num_classes=10), (3, 37, 46)),
        (AlexNetBN(input_shape=(3, 48, 90), num_classes=10, hidden=16), (3, 48, 90)),
        (classifier(input_shape=(3, 32, 32), num_classes=10, architecture="resnet18"), (3, 32, 32)),
        (mobilenet_v2_cifar(input_shape=(1, 29, 30), num_classes=10, width=0.25), (1, 29, 30)),
        (shufflenet_v2_cifar(input_shape=(1, 29, 30), num_classes=10, width=0.5), (1, 29, 30)),
    ],
)
def test_output_is_one_row_of_logits_per_image_and_traces_alike(model: nn.Module, shape: tuple[int, ...]) -> None:
    images = torch.randn(2, *shape)
    assert model(images).shape == (2, 10)
    traced = symbolic_trace(model.eval())
    assert torch.equal(traced(images), model(images))


@pytest.mark.parametrize(
    "model",
    [
        mobilenet_v2_cifar(**CIFAR, width=0.25),
        shufflenet_v2_cifar(**CIFAR, width=0.5),
        classifier(**CIFAR, architecture="shufflenet_v2_x1_0"),
    ],
    ids=["mobilenet_v2_cifar", "shufflenet_v2_cifar", "shufflenet_v2_x1_0"],
)
def test_mobile_networks_train_with_a_grid_for_every_layer(model: nn.Module) -> None:
    """Signed grids where values are negative, a gradient for every step, depthwise steps per channel."""
    weight = functools.partial(LSQ, scope="depthwise")
    plan = plan_of(model, scheme((4, 4), (8, 8), method=Method("lsq", weight, LSQ, "input")), (3, 32, 32))
    assert all(layer.weight is not None and layer.input is not None for layer in plan.layers)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(plan.layers) == len(layers)
    network, negative = quantize_model(plan).train(), set()
    quantizers = [q for _, q in named_quantizers(network) if isinstance(q, LSQ)]
    signed = {q.site.name for q in quantizers if q.site.kind == "input" and q.site.signed}

    def begin(quantizer: nn.Module, values: tuple[Tensor, ...]) -> None:
        assert isinstance(quantizer, LSQ)
        quantizer.calibrate(values[0])
        if quantizer.site.kind == "input" and values[0].min() < 0:
            negative.add(quantizer.site.name)

    for quantizer in quantizers:
        quantizer.register_forward_pre_hook(begin)
    torch.manual_seed(0)
    images = torch.rand(4, 3, 32, 32) * 4 - 2
    network(images).logsumexp(1).sum().backward()
    assert negative and negative <= signed
    assert all(q.step.grad is not None and q.step.grad.isfinite().all() and q.step.grad.any() for q in quantizers)
    depthwise = [q for q in quantizers if q.site.kind == "weight" and q.step.dim()]
    assert len(depthwise) == sum(m.groups == m.in_channels > 1 for m in layers if isinstance(m, nn.Conv2d))


def test_initialization_keeps_the_scale_of_the_signal() -> None:
    torch.manual_seed(0)
    model = ResNetV1(**CIFAR, depth=56)
    stds = [model.get_submodule(f"layer3.{block}.conv2").weight.std() for block in range(9)]
    assert float(torch.stack(stds).mean().detach()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert model(torch.randn(8, 3, 32, 32)).std() < 30


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: PreactivationResNet(**CIFAR, depth=21), "model.depth=21"),
        (lambda: ResNetV1(**CIFAR, depth=2), "model.depth=2"),
        (lambda: MLP(input_shape=(1, 8, 8), num_classes=10, hidden=[]), "model.hidden"),
        (lambda: MLP(input_shape=(1, 8, 8), num_classes=10, hidden=[8, 0]), "model.hidden"),
        (lambda: mobilenet_v2_cifar(**CIFAR, width=0), "model.width=0"),
        (lambda: shufflenet_v2_cifar(**CIFAR, width=0.75), "the paper has 0.5, 1.0, 1.5, 2.0"),
        (lambda: QNNMLP(input_shape=(1, 8, 8), num_classes=10, hidden=[0]), "model.hidden=[0]: "),
        (lambda: QNNMLP(input_shape=(1, 8, 8), num_classes=10, width=math.inf), "model.width=inf: "),
        (lambda: QNNMLP(input_shape=(1, 8, 8), num_classes=10, hidden=[4], width=0.1), "model.width=0.1: "),
        (lambda: QNNConvNet(**CIFAR, channels=0), "model.channels=0: "),
        (lambda: QNNConvNet(**CIFAR, hidden=-5), "model.hidden=-5: "),
        (lambda: QNNAlexNet(**IMAGENET, hidden=0), "model.hidden=0: "),
        (lambda: QNNAlexNet(**IMAGENET, hidden=-4), "model.hidden=-4: "),
        (lambda: SVHNNet(**CIFAR), "32x32 are too small"),
        (lambda: SVHNNet(input_shape=(3, 40, 40), num_classes=10, dropout=1.0), "dropout=1.0"),
        (lambda: AlexNetBN(**CIFAR), "32x32 are too small"),
        (lambda: classifier(**CIFAR, architecture="alexnet"), "cannot take images of 32x32"),
        (lambda: classifier(input_shape=(1, 28, 28), num_classes=10, architecture="resnet18"), "these have 1"),
        (lambda: classifier(**CIFAR, architecture="resnet19"), "Did you mean 'resnet18'"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(make, text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        make()
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)


def test_mobile_networks_for_small_images_keep_their_weights_and_shrink_eight_times() -> None:
    """As many weights as torchvision's for 224x224, with the last layer's outputs; only strides differ."""
    for make, architecture in ((mobilenet_v2_cifar, "mobilenet_v2"), (shufflenet_v2_cifar, "shufflenet_v2_x1_0")):
        model = make(**CIFAR)
        like = {
            name: tuple(value.shape)
            for name, value in classifier(
                input_shape=(3, 224, 224), num_classes=CIFAR["num_classes"], architecture=architecture
            )
            .state_dict()
            .items()
        }
        assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == like
        pooled = (
            model.features
            if architecture == "mobilenet_v2"
            else nn.Sequential(model.conv1, model.maxpool, model.stage2, model.stage3, model.stage4, model.conv5)
        )
        assert pooled(torch.zeros(2, 3, 32, 32)).shape[-2:] == (4, 4)

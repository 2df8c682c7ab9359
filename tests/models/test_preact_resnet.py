"""The pre-activation ResNets for ImageNet against counts by hand and a transcription of their unit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import symbolic_trace

from qexp.errors import ConfigError
from qexp.graph.plan import Plan, make_plan
from qexp.hardware.cost import convolution_macs, linear_macs
from qexp.models.preact_resnet import Convolution, PreactivationImageNetResNet, ResidualUnit
from qexp.quantizers.base import Quantizer

from ..conversions import scheme

SHAPE = (3, 224, 224)
DEPTHS = (18, 50)


def network(depth: int, **changes: int) -> PreactivationImageNetResNet:
    with torch.device("meta"):
        return PreactivationImageNetResNet(
            **{"input_shape": SHAPE, "num_classes": 1000, "depth": depth, **changes}
        )


@pytest.fixture(scope="module", params=DEPTHS)
def planned(request: pytest.FixtureRequest) -> tuple[int, Plan]:
    """A depth and its plan at 4 bits with both ends in float."""
    return request.param, make_plan(network(request.param), scheme(), SHAPE)


def test_parameters_of_resnet18_by_hand() -> None:
    model = network(18)
    stem, fc = 3 * 64 * 49, 512 * 1000 + 1000
    stages = 4 * 64 * 64 * 9
    for width in (128, 256, 512):
        stages += width // 2 * width * 9 + 3 * width * width * 9 + width // 2 * width
    # Batch norms: the stem's, those before each convolution (the very first unit's conv1 has none), the last.
    norms = 64 + (64 + 64 + 64) + (64 + 128 * 3) + (128 + 256 * 3) + (256 + 512 * 3) + 512
    expected = stem + stages + fc + 2 * norms
    assert sum(parameter.numel() for parameter in model.parameters()) == expected == 11_687_720


def test_parameters_of_resnet50_by_hand() -> None:
    model = network(50)
    stem, fc = 3 * 64 * 49, 2048 * 1000 + 1000
    stages, norms, channels = 0, 64 + 2048, 64
    for width, units in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for unit in range(units):
            stages += channels * width + width * width * 9 + width * 4 * width
            stages += channels * 4 * width if unit == 0 else 0
            norms += (channels if (width, unit) != (64, 0) else 0) + 2 * width
            channels = 4 * width
    expected = stem + stages + fc + 2 * norms
    assert sum(parameter.numel() for parameter in model.parameters()) == expected == 25_549_352


def test_every_convolution_but_the_first_is_quantized_projections_too(planned: tuple[int, Plan]) -> None:
    depth, plan = planned
    first, *inner, last = plan.layers
    assert (first.name, last.name) == ("conv1", "fc")
    assert {(layer.weight_bits, layer.activation_bits) for layer in (first, last)} == {(32, 32)}
    assert {(layer.weight_bits, layer.activation_bits, layer.note) for layer in inner} == {(4, 4, "")}
    projections = [layer.name for layer in inner if layer.name.endswith("shortcut")]
    assert projections == [f"layer{stage}.0.shortcut" for stage in (1, 2, 3, 4)][-3 if depth == 18 else 0 :]
    assert len(inner) == depth - 2 + len(projections)
    assert plan.float_modules == []


def test_each_activation_has_an_alpha_and_shortcuts_share_that_of_their_branch(planned: tuple[int, Plan]) -> None:
    depth, plan = planned
    assert len(plan.sites) == {18: 17, 50: 49}[depth]
    alphas = {id(alpha) for quantizer in plan.quantizers() for alpha in quantizer.learned().values()}
    assert len(alphas) == len(plan.sites)
    assert all(isinstance(site.quantizer, Quantizer) for site in plan.sites)
    fed_by = {layer.name: layer.fed_by for layer in plan.layers}
    for name, sources in fed_by.items():
        if name.endswith("shortcut"):
            assert sources == fed_by[name.replace("shortcut", "conv1")]
    assert fed_by["layer1.0.conv1"] == ["act1"] and fed_by["fc"] == ["act"]


# As in torchvision's networks, published as 1.81 and 4.09 GFLOPS: pre-activation moves no convolution.
def test_multiply_accumulates(planned: tuple[int, Plan]) -> None:
    depth, plan = planned
    macs = sum(
        (linear_macs if layer.kind == "Linear" else convolution_macs)(layer.weight_shape, made)
        for layer in plan.layers
        for _, made in layer.calls
    )
    assert macs == {18: 1_814_073_344, 50: 4_089_184_256}[depth]


def transcribed(unit: ResidualUnit, total: Tensor, stride: int) -> Tensor:
    """Full pre-activation (arXiv 1603.05027, section 4), with a projection on what the branch reads."""
    ready = F.relu(F.batch_norm(total, None, None, training=True))
    branch = F.conv2d(ready, unit.conv1.weight, stride=stride, padding=1)
    branch = F.conv2d(F.relu(F.batch_norm(branch, None, None, training=True)), unit.conv2.weight, padding=1)
    if unit.shortcut is None:
        return total + branch
    return F.conv2d(ready, unit.shortcut.weight, stride=stride) + branch


@pytest.mark.parametrize(("channels", "stride"), [(6, 1), (6, 2), (8, 1), (8, 2)])
def test_a_unit_is_that_of_the_paper(channels: int, stride: int) -> None:
    unit = ResidualUnit(6, [Convolution(channels, 3, stride), Convolution(channels, 3)])
    total = torch.randn(4, 6, 9, 9)
    assert (unit.shortcut is None) == (channels == 6 and stride == 1)
    torch.testing.assert_close(unit(total), transcribed(unit, total, stride), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("shape", [(3, 64, 96), (1, 33, 17)])
def test_it_takes_any_images_and_traces_alike(depth: int, shape: tuple[int, int, int]) -> None:
    model = PreactivationImageNetResNet(input_shape=shape, num_classes=7, depth=depth, width=4)
    images = torch.randn(2, *shape)
    assert model(images).shape == (2, 7)
    model.eval()
    assert torch.equal(symbolic_trace(model)(images), model(images))


def test_twice_as_wide_is_four_times_the_weights_of_a_hidden_convolution() -> None:
    narrow, wide = network(18), network(18, width=128)
    assert wide.layer3[1].conv1.weight.numel() == 4 * narrow.layer3[1].conv1.weight.numel()
    assert isinstance(wide.fc, nn.Linear) and wide.fc.in_features == 1024


@pytest.mark.parametrize(("changes", "text"), [({"depth": 20}, "model.depth=20"), ({"width": 0}, "model.width=0")])
def test_what_cannot_be_built_is_refused_in_one_line(changes: dict[str, int], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        network(**{"depth": 18, **changes})

from __future__ import annotations

import pytest
import torch
from torch import nn

from qexp.errors import ConfigError
from qexp.hardware.cost import bit_operations, convolution_macs, linear_macs, packed_bytes
from qexp.models.resnet_cifar import PreactivationResNet
from qexp.models.torchvision_models import construct


def network_macs(model: nn.Module, side: int) -> int:
    counts: list[int] = []

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        macs = convolution_macs if isinstance(module, nn.Conv2d) else linear_macs
        counts.append(macs(tuple(module.weight.shape), tuple(output.shape[1:])))

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, side, side, device=next(model.parameters()).device))
    return sum(counts)


# Published by torchvision with its weights, as GFLOPS with two digits behind the point.
@pytest.mark.parametrize(
    ("name", "giga"),
    [("resnet18", 1.81), ("resnet34", 3.66), ("resnet50", 4.09), ("mobilenet_v2", 0.30), ("alexnet", 0.71)],
)
def test_networks_have_their_published_multiply_accumulates(name: str, giga: float) -> None:
    with torch.device("meta"):
        model = construct(name, 1000)
    assert network_macs(model, 224) / 1e9 == pytest.approx(giga, abs=0.006)


def test_exact_multiply_accumulates() -> None:
    with torch.device("meta"):
        model = construct("resnet18", 1000)
    assert network_macs(model, 224) == 1_814_073_344
    # By hand: conv0, then per stage its convolutions at the same cost each, the two strided ones half of that, fc.
    resnet20 = PreactivationResNet(input_shape=(3, 32, 32), num_classes=10)
    each = 16 * 16 * 9 * 32 * 32
    assert network_macs(resnet20, 32) == 3 * 16 * 9 * 32 * 32 + 16 * each + 2 * each // 2 + 64 * 10 == 40_551_040


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 0, 1), (2, 1, 1), (1, 2, 2), (3, 2, 3)])
def test_macs_are_those_of_torchs_output(groups: int, stride: int, padding: int, dilation: int) -> None:
    layer = nn.Conv2d(8, 16, 3, stride, padding, dilation, groups, bias=False)
    output = layer(torch.ones(1, 8, 17, 17)).shape[1:]
    assert convolution_macs(layer.weight.shape, output) == 16 * output[1] * output[2] * 9 * 8 // groups


def test_bit_operations_and_bytes() -> None:
    assert bit_operations(10, 2, 4) == 80
    assert linear_macs((5, 7), (3, 5)) == 105
    assert [packed_bytes(9, bits) for bits in (1, 2, 3, 8, 32)] == [2, 3, 4, 9, 36]
    assert packed_bytes(0, 4) == 0


def test_shapes_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="does not give an output"):
        convolution_macs((16, 8, 3, 3), (8, 4, 4))
    with pytest.raises(ConfigError, match="does not give an output"):
        convolution_macs((16, 8, 3, 3), (16, 4))
    with pytest.raises(ConfigError, match="does not give an output"):
        linear_macs((5, 7), (7,))

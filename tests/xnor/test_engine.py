"""Layers and networks on bits give what fake quantization gives; what cannot run is named."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from qexp.commands.packed import proof_lines
from qexp.convert import TwoModes
from qexp.errors import CheckpointError, ConfigError
from qexp.graph.scheme import Method, Widths
from qexp.layers.normalization import shifted
from qexp.layers.quantized import QuantConv2d, QuantLinear
from qexp.models.qnn import QNNMLP, QNNConvNet
from qexp.models.torchvision_models import classifier
from qexp.ops.codes import uniform_codebook
from qexp.quantizers.base import Quantizer, Site
from qexp.quantizers.dorefa import DoReFaActivation, DoReFaWeight
from qexp.quantizers.lsq_plus import LSQPlusActivation
from qexp.quantizers.pact import PACT
from qexp.quantizers.qnn_binary import BinaryActivation, BinaryWeight
from qexp.quantizers.qnn_linear import LinearActivation, LinearWeight
from qexp.quantizers.qnn_log import LogActivation, LogWeight
from qexp.quantizers.ternary import TernaryWeight
from qexp.quantizers.xnor import XNORWeight
from qexp.xnor import extension
from qexp.xnor.checkpoint import load_packed, save_packed, take_over
from qexp.xnor.engine import Engine, make_engine, products, prove
from qexp.xnor.fusion import FusedLinear, limits_of
from qexp.xnor.grids import grid_of
from qexp.xnor.layers import IntegerLayer
from qexp.xnor.product import TorchProduct, linear_geometry

from ..conversions import DOREFA, TwoGraphs, quantized, scheme

BINARY = Method("qnn_binary", BinaryWeight, BinaryActivation)
HALF = ((-1.0,), (1.0,))


@pytest.fixture(scope="module")
def product(compiler: bool) -> TorchProduct:
    return products(pytest.fail if compiler else print)


def network(model: nn.Module, method: Method, bits=(1, 1), shape=(1, 8, 8), first=(1, 8)) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):  # as after training: gains of either sign
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean, std=5.0)
    how = scheme(bits, bits, method=method, first=Widths(*first), input_range=HALF)
    return quantized(model, how, shape).eval()


def mlp(method: Method = BINARY, **changes) -> nn.Module:
    return network(QNNMLP(input_shape=(1, 8, 8), num_classes=10, hidden=(70, 100)), method, **changes)


class Branches(nn.Module):
    """Two layers side by side, and one that reads both."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 5, 1)
        self.fc = nn.Linear(9 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.cat([self.one(x).relu(), self.two(x).relu()], 1).flatten(1))


def pixel_classes() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1))


def spread(layer: nn.Module) -> nn.Module:
    """Give a layer weights on every level of a grid from -1 to 1; as they start, many are 0 on a coarse one."""
    nn.init.normal_(layer.weight, std=0.5)
    return layer


def batches(shape=(1, 8, 8), count: int = 40):
    images = torch.randint(256, (count, *shape)) / 127.5 - 1
    return [(images, torch.zeros(count))]


@pytest.mark.parametrize(
    ("weight", "bits", "activation", "input_bits", "signed"),
    [
        (BinaryWeight, 1, BinaryActivation, 1, True),
        (XNORWeight, 1, BinaryActivation, 1, True),
        (TernaryWeight, 2, LinearActivation, 3, True),
        (LinearWeight, 2, LinearActivation, 2, True),
        (LinearWeight, 1, LinearActivation, 8, True),
        (DoReFaWeight, 3, DoReFaActivation, 2, False),
        (LinearWeight, 2, LSQPlusActivation, 3, True),  # whose offset counts on the image alone
    ],
)
@pytest.mark.parametrize("padding", [0, 1, "same"])
def test_a_layer_on_bits_is_the_fake_quantized_one(weight, bits, activation, input_bits, signed, padding, product):
    layer = spread(nn.Conv2d(5, 7, 3, padding=padding))
    x = torch.randn(2, 5, 6, 7)
    weights = weight(bits, Site("l", "weight", tuple(layer.weight.shape)))
    inputs = activation(input_bits, Site("l", "input", (5, 6, 7), signed=signed))
    inputs.calibrate(x)
    fake = QuantConv2d(layer, weights, inputs).eval()
    packed = IntegerLayer("l", fake, grid_of(inputs.codes(x).codebook), product)
    packed.mode = "prove"
    with torch.no_grad():
        y = packed(x)
        torch.testing.assert_close(y, fake(x))
    assert (packed.different, packed.compared) == (0, y.numel())


@given(
    *(st.integers(1, 3), st.integers(1, 8), st.sampled_from([LinearActivation, DoReFaActivation])),
    *(st.integers(1, 2), st.integers(1, 70), st.integers(1, 9), st.integers(5, 9), st.integers(5, 9)),
    *(st.integers(1, 3), st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3))),
    *(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.tuples(st.integers(1, 2), st.integers(1, 2))),
)
@settings(deadline=None, max_examples=40)
def test_a_convolution_of_any_bits_and_geometry(
    product, bits, input_bits, activation, images, inputs, outputs, height, width, kh, kw, stride, pad, dilation
) -> None:
    layer = spread(nn.Conv2d(inputs, outputs, (kh, kw), stride, pad, dilation))
    x = torch.randn(images, inputs, height, width)
    weights = LinearWeight(bits, Site("l", "weight", tuple(layer.weight.shape)))
    signed = activation is LinearActivation
    quantizer = activation(input_bits, Site("l", "input", (inputs, height, width), signed=signed))
    fake = QuantConv2d(layer, weights, quantizer).eval()
    packed = IntegerLayer("l", fake, grid_of(quantizer.codes(x).codebook), product)
    packed.mode = "prove"
    with torch.no_grad():
        torch.testing.assert_close(packed(x), fake(x), atol=1e-4, rtol=1e-4)
    assert packed.different == 0 and packed.weights_off() == 0


@pytest.mark.parametrize(
    "method", [BINARY, Method("xnor", XNORWeight, BinaryActivation)], ids=["qnn_binary", "xnor"]
)
def test_a_network_proves_itself(method: Method, product: TorchProduct) -> None:
    fake = mlp(method)
    engine = make_engine(fake, product)
    assert [layer.name for layer in engine.layers] == ["fc1", "fc2", "fc"]
    proof = prove(engine, fake, batches())
    assert proof.holds
    assert proof.accumulators == [("fc1", 2800, 0), ("fc2", 4000, 0), ("fc", 400, 0)]


def test_bit_planes_and_convolutions_prove_themselves(product: TorchProduct) -> None:
    model = QNNConvNet(input_shape=(3, 8, 8), num_classes=10, channels=8, hidden=16)
    fake = network(model, Method("qnn_linear", LinearWeight, LinearActivation), (2, 2), (3, 8, 8), (2, 8))
    engine = make_engine(fake, product)
    assert len(engine.layers) == 9
    assert prove(engine, fake, batches((3, 8, 8), 4)).holds


def test_a_float_layer_behind_bits_adds_in_one_order(product: TorchProduct) -> None:
    """Whatever the order in memory: sums of rounded products would differ in their last bits."""
    pooled = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )
    fake = quantized(pooled, scheme((4, 4), method=DOREFA, first=Widths(8, 8), input_range=HALF), (3, 8, 8)).eval()
    proof = prove(make_engine(fake, product), fake, batches((3, 8, 8)))
    assert proof.logits and proof.holds


def test_a_network_of_branches_proves_itself(product: TorchProduct) -> None:
    fake = network(
        classifier(input_shape=(3, 32, 32), num_classes=10, architecture="googlenet"), BINARY, (1, 1), (3, 32, 32)
    )
    engine = make_engine(fake, product)
    assert len(engine.layers) == 57
    assert engine.left == [("fc", "its input does not come from quantizers alone")]  # means of signs
    assert prove(engine, fake, batches((3, 32, 32), 4)).holds


def test_branches_on_different_grids_stay_as_they_are(product: TorchProduct) -> None:
    how = scheme((2, 2), (2, 2), method=Method("pact", LinearWeight, PACT))
    fake = quantized(Branches(), how, (3, 8, 8)).eval()
    assert not make_engine(fake, product).left
    with torch.no_grad():
        next(module for module in fake.modules() if isinstance(module, PACT)).alpha.mul_(2)
    assert make_engine(fake, product).left == [("fc", "its input comes from 2 quantizers whose levels differ")]


def test_a_network_of_two_graphs_runs_on_that_of_evaluation(product: TorchProduct) -> None:
    fake = network(TwoGraphs(), BINARY, (1, 1), (3, 8, 8), (1, 8))
    engine = make_engine(fake, product)
    assert isinstance(fake, TwoModes) and engine.layers
    images = batches((3, 8, 8), 4)
    assert prove(engine, fake, images).holds
    assert torch.allclose(engine.network(images[0][0]), fake(images[0][0]), atol=1e-5)


def test_a_wrong_accumulator_is_found(product: TorchProduct) -> None:
    fake = mlp()
    engine = make_engine(fake, product)
    engine.layers[1].codes[0, 0] ^= 1  # the kernel's words stay as they were
    engine.layers[1].integers[0, 0] *= -1
    proof = prove(engine, fake, batches())
    assert proof.accumulators[1][2] == 40
    assert not proof.holds


def test_weights_that_are_not_the_quantizers_are_found(product: TorchProduct) -> None:
    fake = mlp()
    weights = {layer.name: (layer.weight_grid, layer.codes) for layer in make_engine(fake, product).layers}
    weights["fc2"][1][0, 0] ^= 1
    proof = prove(make_engine(fake, product, weights), fake, batches())
    assert not any(different for _, _, different in proof.accumulators)  # both ways sum the same wrong integer
    assert proof.weights == [0, 1, 0] and not proof.holds


@pytest.mark.parametrize("off", [0.0, 2e-6, 1e-4, 4.9e-4, 0.1])
def test_an_offset_however_small_is_kept(off: float, product: TorchProduct) -> None:
    """Of each of 4096 inputs it is a little of a half step, and of their sum several."""
    layer = nn.Linear(4096, 64)
    with torch.no_grad():
        layer.weight.copy_(torch.where(torch.rand(64, 4096) < 0.9, 1.0, -1.0))
    inputs = LSQPlusActivation(4, Site("l.input", "input", (4096,), signed=False))
    inputs.step.data.fill_(0.1)
    inputs.offset.data.fill_(0.1 * off)
    fake = QuantLinear(layer, BinaryWeight(1, Site("l", "weight", (64, 4096))), inputs).eval()
    x = torch.rand(8, 4096)
    with torch.no_grad():
        packed = IntegerLayer("l", fake, grid_of(inputs.codes(x).codebook), product)
        exact = F.linear(inputs(x).double(), fake.weight_quantizer(layer.weight).double(), layer.bias.double())
        assert float((packed(x) - exact).abs().max()) < 0.02 * float(packed.grid.half_step)
        packed.mode = "prove"
        packed(x)
    assert (packed.different, packed.outputs_off(x, fake(x))) == (0, 0)


def test_weights_a_little_off_zero_are_refused() -> None:
    found = grid_of(torch.arange(4.0) + 2e-4)
    assert not isinstance(found, str) and found.offset == pytest.approx(2e-4)
    found = grid_of(torch.stack([torch.arange(4.0), torch.arange(4.0) + 2e-4], 1).reshape(4, 2, 1))
    assert found == "its channels have grids of their own that zero is no point of"


@given(st.floats(1e-3, 1e3), st.integers(1, 8), st.booleans(), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_a_grid_that_float32_rounded_needs_no_offset(step: float, bits: int, signed: bool, seed: int) -> None:
    lowest = -(2 ** (bits - 1)) if signed else 0
    table = uniform_codebook(lowest, lowest + 2**bits - 1, torch.tensor(step))
    found = grid_of(table)
    assert not isinstance(found, str) and found.offset == 0.0
    x = table[torch.randint(2**bits, (50,), generator=torch.Generator().manual_seed(seed))]
    assert torch.allclose(found.values(found.codes(x)), x, rtol=1e-6, atol=0)


@pytest.mark.parametrize("wrong", ["scale", "bias", "padding"])
def test_a_layer_that_is_not_the_real_networks_breaks_the_proof(wrong: str, product: TorchProduct) -> None:
    """What both ways of taking sums have in common, only the real network's own layers can show."""
    fake = network(pixel_classes(), DOREFA, (2, 2), (3, 8, 8))
    engine = make_engine(fake, product)
    layer = engine.layers[1]
    with torch.no_grad():
        if wrong == "scale":
            layer.scale.mul_(1.01)
        elif wrong == "bias":
            layer.layer.bias = nn.Parameter(torch.full((layer.weight.outputs,), 0.01))
        else:
            layer.layer.padding = layer.layer.dilation = (2, 2)
    proof = prove(engine, fake, batches((3, 8, 8), 4))
    assert not any(different for _, _, different in proof.accumulators) and not any(proof.weights)
    assert proof.logits and proof.predictions == proof.samples
    assert proof.broken == [layer.name] and not proof.holds
    _, first, second, _, plain = proof_lines(engine, proof)
    assert "NOT" not in first and second.endswith("outputs NOT the float layer's")
    assert plain.endswith("NOT within what float32 rounds")


@given(
    st.integers(1, 3), st.integers(2, 4), st.integers(1, 300), st.floats(1e-3, 10), st.floats(-2, 2), st.booleans()
)
@settings(deadline=None, max_examples=20)
def test_the_float_layer_is_within_its_rounding(product, bits, input_bits, fan_in, step, offset, biased) -> None:
    layer = spread(nn.Linear(fan_in, 5, bias=biased))
    inputs = LSQPlusActivation(input_bits, Site("l.input", "input", (fan_in,), signed=True))
    inputs.step.data.fill_(step)
    inputs.offset.data.fill_(offset)
    fake = QuantLinear(layer, LinearWeight(bits, Site("l", "weight", (5, fan_in))), inputs).eval()
    x = 3 * torch.randn(20, fan_in)
    with torch.no_grad():
        packed = IntegerLayer("l", fake, grid_of(inputs.codes(x).codebook), product)
        assert packed.outputs_off(x, fake(x)) == packed.weights_off() == 0
        moved = fake(x) + 0.01 * packed.scale * packed.bound
        assert packed.outputs_off(x, moved) == moved.numel()


def test_a_scale_one_percent_off_shows_in_the_widest_layers(product) -> None:
    """Of 4608 products, as many as in the last stage of a ResNet18."""
    layer = nn.Conv2d(512, 4, 3)
    fake = QuantConv2d(
        layer,
        DoReFaWeight(2, Site("l", "weight", (4, 512, 3, 3))),
        DoReFaActivation(2, Site("i", "input", (512, 6, 6))),
    ).eval()
    x = torch.rand(8, 512, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        packed = IntegerLayer("l", fake, grid_of(fake.input_quantizer.codes(x).codebook), product)
        output = fake(x)
        assert packed.outputs_off(x, output) == 0
        assert packed.outputs_off(x, 1.01 * output) > output.numel() / 10


def test_a_network_of_a_class_for_every_pixel_proves_itself(product: TorchProduct) -> None:
    fake = network(pixel_classes(), DOREFA, (2, 2), (3, 8, 8))
    proof = prove(make_engine(fake, product), fake, batches((3, 8, 8), 6))
    assert proof.holds and proof.predictions == proof.plain == proof.samples == 6


def test_a_network_of_several_answers_is_refused(product: TorchProduct) -> None:
    class Two(Branches):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return self.one(x), self.two(x)

    fake = network(Two(), DOREFA, (2, 2), (3, 8, 8))
    with pytest.raises(ConfigError, match="answers with a tuple; it runs networks that answer with one tensor"):
        prove(make_engine(fake, product), fake, batches((3, 8, 8), 2))


def test_inputs_that_are_off_the_grid_are_named(product: TorchProduct) -> None:
    layer = nn.Linear(6, 4)
    fake = QuantLinear(layer, BinaryWeight(1, Site("l", "weight", (4, 6))), None).eval()
    packed = IntegerLayer("l", fake, grid_of(torch.arange(4.0)), product)
    packed.mode = "prove"
    packed(torch.ones(1, 6))
    for value, why in (
        (math.nan, r"no numbers \(NaN\)"),
        (1 + 1e-4, "values that its quantizer does not make"),
        (4.0, "values that its quantizer does not make"),
    ):
        x = torch.ones(2, 6)
        x[1, 2] = value
        with pytest.raises(ConfigError, match=f"engine xnor: l: its input holds {why}"):
            packed(x)


@pytest.mark.parametrize("shape", [(3, 5, 5), (6,), (5, 6)])
def test_a_batch_without_samples(shape: tuple[int, ...], product: TorchProduct) -> None:
    layer = nn.Conv2d(3, 4, 3) if len(shape) == 3 else nn.Linear(6, 4)
    kind = QuantConv2d if len(shape) == 3 else QuantLinear
    weights = LinearWeight(2, Site("l", "weight", tuple(layer.weight.shape)))
    inputs = BinaryActivation(1, Site("l.input", "input", shape, signed=True))
    fake = kind(layer, weights, inputs).eval()
    packed = IntegerLayer("l", fake, grid_of(inputs.codes(torch.zeros(1, *shape)).codebook), product)
    for mode in ("packed", "reference", "prove"):
        packed.mode = mode
        assert packed(torch.zeros(0, *shape)).shape == fake(torch.zeros(0, *shape)).shape


def test_layers_that_cannot_run_are_named(product: TorchProduct) -> None:
    fake = mlp(Method("qnn_log", LogWeight, LogActivation), bits=(3, 3), first=(3, 8))
    left = dict(make_engine(fake, product).left)
    assert left["fc2"] == "the codes of its input: its levels are not equally spaced"
    half = make_engine(mlp(first=(32, 32)), product)
    assert half.left == [("fc1", "its weights are float")]
    assert [layer.name for layer in half.layers] == ["fc2", "fc"]
    with pytest.raises(ConfigError, match="nothing of this network is quantized"):
        make_engine(nn.Linear(2, 2), product)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"groups": 3}, "3 groups"), ({"padding_mode": "circular"}, "padding is circular")],
)
def test_a_convolution_that_cannot_run_says_why(change, reason, product: TorchProduct) -> None:
    layer = nn.Conv2d(3, 3, 3, padding=1, **change)
    weights: Quantizer = BinaryWeight(1, Site("l", "weight", tuple(layer.weight.shape)))
    fake = QuantConv2d(layer, weights, None)
    with pytest.raises(ConfigError, match=reason):
        IntegerLayer("l", fake, grid_of(torch.tensor([-1.0, 1.0])), product)


@pytest.mark.parametrize(("value", "known"), [(0.0, True), (0.3, False)])
def test_a_channel_of_one_value_is_no_channel_of_zeros(value: float, known: bool) -> None:
    even = torch.tensor([-1.0, -0.5, 0.0, 0.5])
    found = grid_of(torch.stack([even, torch.full((4,), value)], dim=1).reshape(4, 2, 1, 1, 1))
    assert isinstance(found, str) is not known


def test_bits_beyond_the_accumulators_are_refused(product: TorchProduct) -> None:
    layer = nn.Linear(40_000, 1)
    fake = QuantLinear(layer, LinearWeight(8, Site("l", "weight", (1, 40_000))), None)
    with pytest.raises(ConfigError, match="beyond 32 bits"):
        IntegerLayer("l", fake, grid_of(torch.arange(256.0)), product)


@pytest.mark.parametrize(
    ("weight", "bits"), [(BinaryWeight, 1), (XNORWeight, 1), (TernaryWeight, 2), (LinearWeight, 2)]
)
def test_a_packed_checkpoint_has_as_many_bits_a_weight_and_evaluates_to_the_same(
    weight, bits: int, tmp_path: Path, product
) -> None:
    how = {"method": Method("t", weight, BinaryActivation), "bits": (bits, 1), "first": (bits, 8)}
    fake, file = mlp(**how), tmp_path / "packed.safetensors"
    engine = make_engine(fake, product)
    sizes = save_packed(file, fake, engine.layers)
    weights = 64 * 70 + 70 * 100 + 100 * 10
    assert (sizes.float_weights, sizes.packed_weights) == (4 * weights, bits * weights // 8)
    assert sizes.file == file.stat().st_size
    again = mlp(**how)
    packed = load_packed(file)
    take_over(again, packed, file)
    loaded = make_engine(again, product, packed.weights)
    images = batches()[0][0]
    with torch.no_grad():
        assert torch.equal(loaded.network(images), engine.network(images))


def test_a_damaged_or_foreign_packed_checkpoint(tmp_path: Path, product: TorchProduct) -> None:
    fake, file = mlp(), tmp_path / "packed.safetensors"
    save_packed(file, fake, make_engine(fake, product).layers)
    wider = network(QNNMLP(input_shape=(1, 8, 8), num_classes=10, hidden=(70, 101)), BINARY)
    with pytest.raises(CheckpointError, match="another network, it differs in bn2"):
        take_over(wider, load_packed(file), file)
    content = file.read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    assert header["__metadata__"]["format"] == "qexp-packed-2"
    file.write_bytes(content.replace(b"qexp-packed-2", b"qexp-packed-1"))
    with pytest.raises(CheckpointError, match=r"earlier qexp, which did not note the quantizers; write it again"):
        load_packed(file)
    for damaged in (content[:100], b"", content.replace(b"qexp-packed-2", b"qexp-packed-3")):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"no packed checkpoint of qexp"):
            load_packed(file)
    with pytest.raises(CheckpointError, match="there is no such file"):
        load_packed(tmp_path / "none")


@pytest.mark.parametrize(
    ("method", "bits", "images", "why"),
    [
        (Method("t", LinearWeight, BinaryActivation), (1, 1), HALF, "weights of fc1: BinaryWeight (bits=1)"),
        (Method("t", BinaryWeight, LinearActivation), (1, 1), HALF, "act1: BinaryActivation (bits=1, -1 to 1)"),
        (Method("t", BinaryWeight, LinearActivation), (1, 4), HALF, "act1: BinaryActivation (bits=1, -1 to 1)"),
        (BINARY, (1, 1), ((0.0,), (1.0,)), "input of fc1: ImageGrid (bits=8, -1 to 1)"),
    ],
)
def test_a_packed_checkpoint_of_other_quantizers_is_refused(
    method: Method, bits: tuple[int, int], images, why: str, tmp_path: Path, product: TorchProduct
) -> None:
    """Of the same names and shapes."""
    fake, file = mlp(), tmp_path / "packed.safetensors"
    save_packed(file, fake, make_engine(fake, product).layers)
    model = QNNMLP(input_shape=(1, 8, 8), num_classes=10, hidden=(70, 100))
    how = scheme(bits, bits, method=method, first=Widths(1, 8), input_range=images)
    other = quantized(model, how, (1, 8, 8)).eval()
    with pytest.raises(CheckpointError, match=re.escape(why) + " in the file, .* in this network") as caught:
        take_over(other, load_packed(file), file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "change", "why"),
    [
        (
            "half_step/fc1",
            lambda old: torch.ones(7),
            "half_step/fc1 is torch.float32 (7,), not torch.float32 () or",
        ),
        ("half_step/fc1", lambda old: old.double(), "half_step/fc1 is torch.float64 ()"),
        ("half_step/fc1", lambda old: old * math.nan, "half_step/fc1 holds values that are no finite numbers"),
        ("half_step/fc2", lambda old: -old, "half_step/fc2 holds values that are no finite numbers from 0 up"),
        ("bits/fc2", lambda old: old | 255, "bits/fc2 does not hold codes of 3 levels (2 to 256)"),
        ("rest/bn1.bias", lambda old: old.long(), "bn1.bias is torch.int64, not torch.float32"),
    ],
)
def test_a_damaged_entry_of_a_packed_checkpoint_is_named(entry, change, why, tmp_path: Path, product) -> None:
    fake, file = mlp(Method("t", TernaryWeight, BinaryActivation), bits=(2, 1), first=(2, 8)), tmp_path / "packed"
    save_packed(file, fake, make_engine(fake, product).layers)
    with safe_open(file, "pt") as stored:
        about, tensors = stored.metadata(), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    take_over(fake, load_packed(file), file)
    save_file({**tensors, entry: change(tensors[entry])}, file, metadata=about)
    with pytest.raises(CheckpointError, match=re.escape(f"engine.load={file}: {why}")):
        take_over(fake, load_packed(file), file)


@pytest.mark.parametrize(
    ("compiler", "why"),
    [
        ("g++ '", """CXX="g++ '" names no C++ compiler; set it to g++"""),
        ("  ", "CXX='  ' names no C++ compiler; set it to g++"),
        ("no-such-compiler", "no C++ compiler here (no-such-compiler); install g++ or clang"),
        ("c++ --no-such-flag", "c++ cannot build the kernel: "),
        ("false", "false cannot build the kernel: it ended with 1"),
    ],
)
def test_without_a_compiler_torch_computes_and_one_line_says_so(
    compiler: str, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("QEXP_CACHE", str(tmp_path))
    extension.built.cache_clear()
    said: list[str] = []
    try:
        product = products(said.append)
    finally:
        extension.built.cache_clear()
    assert product.name == "torch"
    assert len(said) == 1
    assert why in said[0]
    assert "\n" not in said[0]
    assert not list(tmp_path.iterdir())
    fake = mlp()
    assert prove(make_engine(fake, product), fake, batches(count=5)).holds


def test_a_kernel_that_is_built_needs_no_compiler(product: TorchProduct, monkeypatch: pytest.MonkeyPatch) -> None:
    if product.name != "native":
        pytest.skip("no C++ compiler here")
    monkeypatch.setenv("PATH", "")
    extension.built.cache_clear()
    try:
        assert products(pytest.fail).name == "native"
    finally:
        extension.built.cache_clear()


def test_each_compiler_has_a_kernel_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    usual = extension.library()
    monkeypatch.setenv("CXX", "c++")
    assert extension.library() == usual
    monkeypatch.setenv("CXX", "c++ -O0")
    assert extension.library() != usual


def test_a_damaged_build_stays_until_another_takes_its_place(
    product: TorchProduct, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two processes that find it build both; neither deletes what the other made."""
    if product.name != "native":
        pytest.skip("no C++ compiler here")
    good = extension.library()
    monkeypatch.setenv("QEXP_CACHE", str(tmp_path))
    file, real = extension.library(), extension.Kernel
    file.write_bytes(b"no library")

    def while_another_builds(library: Path) -> object:
        monkeypatch.setattr(extension, "Kernel", real)
        file.unlink()
        shutil.copy(good, file)
        raise OSError("damaged when it was read")

    monkeypatch.setattr(extension, "Kernel", while_another_builds)
    monkeypatch.setattr(extension, "_build", lambda file: None if file.exists() else pytest.fail("deleted"))
    extension.built.cache_clear()
    try:
        assert products(pytest.fail).name == "native"
    finally:
        extension.built.cache_clear()


def test_a_damaged_build_is_made_again(
    product: TorchProduct, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if product.name != "native":
        pytest.skip("no C++ compiler here")
    monkeypatch.setenv("QEXP_CACHE", str(tmp_path))
    extension.library().write_bytes(b"no library")
    extension.built.cache_clear()
    try:
        assert products(pytest.fail).name == "native"
    finally:
        extension.built.cache_clear()


def test_a_folder_of_somebody_else_is_not_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("QEXP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "qexp").mkdir()
    monkeypatch.setattr(extension.os, "getuid", lambda: 12345)
    if (tmp_path / "qexp").stat().st_uid == 0:
        os.chown(tmp_path / "qexp", 54321, 54321)
    extension.built.cache_clear()
    try:
        with pytest.raises(extension.NoCompilerError, match="belongs to another user"):
            extension.native()
    finally:
        extension.built.cache_clear()


def fused_layers(engine: Engine) -> dict[str, tuple[bool, bool]]:
    """Whether each fused layer reads packed signs, and returns them."""
    found = (module for module in engine.fused.modules() if isinstance(module, FusedLinear))
    return {each.layer.name: (each.packed, each.limits is not None) for each in found}


def test_layers_fused_with_batch_norm_and_sign_give_the_same_bits(product: TorchProduct) -> None:
    fake = mlp()
    engine = make_engine(fake, product)
    layers = fused_layers(engine)
    assert layers == {"fc1": (False, True), "fc2": (True, True), "fc": (True, False)}
    limits = [module.limits for module in engine.fused.modules() if isinstance(module, FusedLinear)]
    assert any(each.turned.any() for each in limits if each is not None)  # negative gains are among them
    assert not any(isinstance(module, BinaryActivation) for module in engine.fused.modules())
    proof = prove(engine, fake, batches(count=200))
    assert proof.holds and proof.fused
    assert "as it evaluates: scores bit by bit the same" in "\n".join(proof_lines(engine, proof))


def test_where_a_batch_norm_never_turns_the_sign_the_bit_is_constant(product: TorchProduct) -> None:
    fake = mlp()
    with torch.no_grad():
        fake.bn1.weight[:6] = torch.tensor([0.0, 0.0, 1e-6, 1e-6, -1e-6, -1e-6])
        fake.bn1.bias[:6] = torch.tensor([1.0, -1.0, 9.0, -9.0, 9.0, -9.0])
    engine = make_engine(fake, product)
    limits = limits_of(engine.network.fc1, fake.bn1)
    first, bound = engine.network.fc1, engine.network.fc1.bound
    for sums in (-bound, 0, bound):
        row = torch.full((1, 70), sums, dtype=torch.int32)
        wanted = fake.bn1(first.rescaled(row, linear_geometry(1)))[0] >= 0
        assert torch.equal((row[0] >= limits.least) ^ limits.turned, wanted)


class Routed(nn.Module):
    """Layers that read a part of what quantizers made, or all of it in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Conv2d(3, 6, 3, padding=1)
        self.part, self.rest = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(2, 4, 1)
        self.turned, self.fc = nn.Conv2d(8, 6, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.start(x))
        x = torch.cat([F.relu(self.part(x.chunk(2, 1)[0])), F.relu(self.rest(torch.split(x, [4, 2], 1)[1]))], 1)
        x = F.relu(self.turned(x.permute(0, 2, 3, 1).transpose(1, 3).transpose(2, 3)))
        return self.fc(x[:, :, 0].flatten(1)[:, :8])


def test_layers_that_read_a_part_of_quantized_values_run_on_bits(product: TorchProduct) -> None:
    fake = network(Routed(), DOREFA, (2, 2), (3, 8, 8), first=(2, 8))
    engine = make_engine(fake, product)
    assert engine.left == [] and len(engine.layers) == 5
    assert prove(engine, fake, batches((3, 8, 8), 4)).holds


def test_signs_beside_zeros_stay_float(product: TorchProduct) -> None:
    class Padded(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](F.pad(F.relu(self[0](x)), (1, 1, 1, 1)))

    fake = network(Padded(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 3)), BINARY, (1, 1), (3, 8, 8))
    assert make_engine(fake, product).left == [("1", "its input does not come from quantizers alone")]


def test_an_input_that_is_zero_alone_is_on_its_grid(product: TorchProduct) -> None:
    """What calibration finds behind a dead layer: a step of 0."""
    layer = nn.Linear(6, 4)
    fake = QuantLinear(layer, LinearWeight(3, Site("l", "weight", (4, 6))), None).eval()
    packed = IntegerLayer("l", fake, grid_of(torch.zeros(16)), product)
    packed.mode = "prove"
    with torch.no_grad():
        torch.testing.assert_close(packed(torch.zeros(3, 6)), fake(torch.zeros(3, 6)))
    with pytest.raises(ConfigError, match="values that its quantizer does not make"):
        packed(torch.ones(3, 6))


def test_weights_off_a_centred_grid_are_not_fused(product: TorchProduct) -> None:
    fake = mlp(Method("linear", LinearWeight, BinaryActivation), bits=(2, 1), first=(2, 8))
    engine = make_engine(fake, product)
    assert not engine.left and any(layer.weight_grid.shift for layer in engine.layers)
    assert engine.fused is engine.network


def test_shift_based_norms_are_fused_and_a_wrong_limit_breaks_the_proof(product: TorchProduct) -> None:
    model = QNNMLP(input_shape=(1, 8, 8), num_classes=10, hidden=(70, 100))
    shifted(model, "shift")
    fake = network(model, BINARY)
    engine = make_engine(fake, product)
    assert len(fused_layers(engine)) == 3 and prove(engine, fake, batches()).holds
    limits = next(limits for module in engine.fused.modules() if (limits := getattr(module, "limits", None)))
    limits.turned.logical_not_()
    proof = prove(engine, fake, batches())
    assert proof.logits and not proof.broken and not proof.fused and not proof.holds
    assert "as it evaluates: scores NOT the same" in "\n".join(proof_lines(engine, proof))


def test_of_a_convolutional_network_the_linear_layers_are_fused(product: TorchProduct) -> None:
    fake = network(
        QNNConvNet(input_shape=(3, 8, 8), num_classes=10, channels=8, hidden=70), BINARY, shape=(3, 8, 8)
    )
    engine = make_engine(fake, product)
    ends = {"classifier.0.0": (False, True), "classifier.1.0": (True, True), "fc": (True, False)}
    assert fused_layers(engine) == ends
    assert prove(engine, fake, batches((3, 8, 8), 10)).holds


class Reread(nn.Module):
    """Linear layers whose sums or signs have one kind of a second reader."""

    def __init__(self, second: str) -> None:
        super().__init__()
        self.second = second
        self.one, self.two, self.three = nn.Linear(64, 70), nn.Linear(70, 70), nn.Linear(70, 70)
        self.norm, self.fc = nn.BatchNorm1d(70), nn.Linear(70, 10)

    def forward(self, x: Tensor) -> Tensor:
        before = self.one(x.flatten(1))
        signs = F.relu(self.norm(before))
        y = self.two(signs)
        if self.second == "layer":
            y = y + self.three(signs)
        if self.second == "signs":
            y = y + signs
        if self.second == "sums":
            y = y + before
        return self.fc(F.relu(y))


@pytest.mark.parametrize(
    ("second", "found"),
    [
        ("none", {"one": (False, True), "two": (True, True), "fc": (True, False)}),
        ("layer", {"one": (False, True), "two": (True, False), "three": (True, False)}),
        ("signs", {}),
        ("sums", {}),
        ("batch", {"two": (False, True), "fc": (True, False)}),
    ],
)
def test_what_is_read_twice_is_fused_where_linear_layers_alone_read_the_signs(second, found, product) -> None:
    fake = network(Reread(second), BINARY)
    if second == "batch":  # statistics of each batch: a sign depends on the other rows
        fake.norm.running_mean = fake.norm.running_var = None
    engine = make_engine(fake, product)
    assert fused_layers(engine) == found
    assert (engine.fused is engine.network) is not bool(found)
    assert prove(engine, fake, batches()).holds


def test_rows_of_several_places_are_not_fused(product: TorchProduct) -> None:
    """A batch norm between their layers has the places for channels."""
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5), nn.Flatten())
    fake = network(model, BINARY, shape=(8, 8))
    engine = make_engine(fake, product)
    assert len(engine.layers) == 2 and engine.fused is engine.network

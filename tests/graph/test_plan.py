from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qexp.convert import quantize_model
from qexp.errors import ConfigError
from qexp.graph.plan import LayerPlan, Plan
from qexp.graph.scheme import LayerRule, Method, Scheme, Widths
from qexp.models.mlp import MLP
from qexp.models.resnet_cifar import PreactivationResNet
from qexp.ops.rounding import ASR
from qexp.quantizers.base import Quantizer
from qexp.quantizers.dorefa import DoReFaWeight
from qexp.quantizers.image import ImageGrid
from qexp.quantizers.lsq import LSQ
from qexp.quantizers.pact import PACT
from qexp.quantizers.qnn_binary import BinaryActivation
from qexp.quantizers.qnn_linear import LinearActivation
from qexp.quantizers.qnn_log import LogActivation

from ..conversions import (
    DOREFA,
    INPUTS,
    NONE,
    PACT_METHOD,
    RANGE,
    Small,
    TwoGraphs,
    plan_of,
    rule,
    scheme,
    shapes_only,
)


def weight_bits(plan: Plan) -> dict[str, int]:
    return {layer.name: layer.weight_bits for layer in plan.layers}


def site_bits(plan: Plan) -> dict[str, int]:
    return {site.name: site.bits for site in plan.sites}


def input_bits(plan: Plan) -> dict[str, int]:
    return {layer.name: layer.activation_bits for layer in plan.layers}


def small(how: Scheme | None = None, *rules: LayerRule, ends: tuple[int, int] = (4, 4)) -> Plan:
    return plan_of(Small(), how or scheme(ends=ends, rules=rules))


def resnet18(**changes: object) -> Plan:
    return plan_of(shapes_only("resnet18", 64), scheme(**changes), (3, 64, 64))


@pytest.mark.parametrize(
    ("name", "side", "layers", "alphas"),
    [("resnet18", 64, 21, 17), ("resnet50", 64, 54, 49), ("alexnet", 224, 8, 7)],
)
def test_every_relu_call_becomes_an_alpha(name: str, side: int, layers: int, alphas: int) -> None:
    plan = plan_of(shapes_only(name, side), scheme(), (3, side, side))
    assert len(plan.layers) == layers and len(plan.sites) == alphas
    quantizers = [site.quantizer for site in plan.sites]
    assert all(isinstance(quantizer, PACT) for quantizer in quantizers)
    assert len({id(quantizer.alpha) for quantizer in quantizers}) == alphas  # type: ignore[union-attr]
    assert len({site.name for site in plan.sites}) == alphas
    assert all(layer.input is None for layer in plan.layers), "no layer is quantized a second time"


def test_linear_bottlenecks_get_a_signed_grid() -> None:
    plan = plan_of(shapes_only("mobilenet_v2", 64), scheme(), (3, 64, 64))
    assert len(plan.sites) == 35
    signed = {layer.name: layer.input for layer in plan.layers if layer.input is not None}
    # The 17 blocks' outputs are linear: they are read by the 16 blocks after them and by the last convolution.
    assert len(signed) == 17 and "features.18.0" in signed
    for name, quantizer in signed.items():
        assert isinstance(quantizer, PACT) and quantizer.site.signed
        assert quantizer.site.name == f"{name}.input"


def test_the_images_grid_learns_nothing() -> None:
    plan = small(scheme(ends=(8, 8), rounding=lambda site: ASR(mode="learned")))
    grid = plan.layers[0].input
    assert isinstance(grid, ImageGrid) and not grid.learned_with_rounding()
    assert all(layer.weight.learned_with_rounding() for layer in plan.layers)  # type: ignore[union-attr]


def test_paper_ends_are_left_in_float_with_the_activation_that_feeds_only_the_last() -> None:
    plan = resnet18()
    assert {name for name, bits in weight_bits(plan).items() if bits == 32} == {"conv1", "fc"}
    assert {name for name, bits in site_bits(plan).items() if bits == 32} == {"layer4.1.relu_1"}
    final = plan.sites[-1].quantizer
    assert isinstance(final, PACT) and final.bits == 32, "PACT still clips there"
    assert input_bits(plan)["conv1"] == 32


@pytest.mark.parametrize("ends", [(8, 8), (2, 8), (4, 4)])
def test_ends_at_a_width_of_their_own(ends: tuple[int, int]) -> None:
    plan = resnet18(ends=ends)
    weights, inputs = weight_bits(plan), input_bits(plan)
    assert (weights["conv1"], inputs["conv1"]) == (weights["fc"], inputs["fc"]) == ends
    assert {bits for name, bits in weights.items() if name not in ("conv1", "fc")} == {4}
    assert isinstance(plan.layers[0].input, ImageGrid) and plan.layers[0].input.bits == ends[1]
    assert sum(isinstance(layer.input, ImageGrid) for layer in plan.layers) == 1


def test_each_end_by_itself() -> None:
    plan = resnet18(first=Widths(8, 8), last=Widths(3, 5))
    assert (weight_bits(plan)["conv1"], input_bits(plan)["conv1"]) == (8, 8)
    assert (weight_bits(plan)["fc"], input_bits(plan)["fc"]) == (3, 5)
    assert site_bits(plan)["layer4.1.relu_1"] == 5
    assert site_bits(plan)["relu"] == site_bits(plan)["layer4.1.relu"] == 4


def test_the_last_activation_of_the_papers_resnet20() -> None:
    plan = plan_of(
        PreactivationResNet(input_shape=(3, 32, 32), num_classes=10), scheme((2, 2), (8, 8)), (3, 32, 32)
    )
    assert {name for name, bits in site_bits(plan).items() if bits == 8} == {"conv3blk3.act"}
    assert {name for name, bits in weight_bits(plan).items() if bits == 8} == {"conv0", "fc"}
    assert plan.sites[-1].feeds == ["fc"]


class SharedLast(nn.Module):
    """The activation before the last layer feeds another one too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.side, self.fc = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x.mean((2, 3))).relu()
        return self.fc(x + self.side(x))


def test_an_activation_that_feeds_others_too_keeps_the_inner_width() -> None:
    plan = plan_of(SharedLast(), scheme(ends=(8, 8)))
    assert site_bits(plan) == {"relu": 4}
    assert plan.sites[0].feeds == ["fc", "side"]


def test_a_bit_width_for_weights_and_another_for_activations() -> None:
    plan = small(scheme((2, 5), (3, 8)))
    assert weight_bits(plan) == {"conv1": 3, "conv2": 2, "conv3": 2, "fc": 3}
    assert site_bits(plan) == {"relu": 5, "relu_1": 5, "relu_2": 8}


def test_of_several_matching_patterns_the_last_one_wins() -> None:
    rules = rule("conv*", weight_bits=2, activation_bits=2), rule("conv3", weight_bits=8, activation_bits=8)
    assert weight_bits(small(None, *rules)) == {"conv1": 2, "conv2": 2, "conv3": 8, "fc": 4}
    assert weight_bits(small(None, *reversed(rules)))["conv3"] == 2
    assert site_bits(small(None, *rules)) == {"relu": 2, "relu_1": 8, "relu_2": 4}


def test_a_pattern_without_a_match_names_the_nearest_layer() -> None:
    with pytest.raises(ConfigError, match=r"layers\.'conv22' matches no layer .*Did you mean 'conv2'\?"):
        small(None, rule("conv22", weight_bits=2))


def test_a_rule_for_weights_leaves_the_activations_alone_and_the_reverse() -> None:
    plan = small(None, rule("conv2", weight_bits=8))
    assert (weight_bits(plan)["conv2"], input_bits(plan)["conv2"]) == (8, 4)
    plan = small(None, rule("conv2", activation_bits=8))
    assert (weight_bits(plan)["conv2"], input_bits(plan)["conv2"]) == (4, 8)


def test_a_rule_may_name_an_activation() -> None:
    assert site_bits(small(None, rule("relu_1", activation_bits=3))) == {"relu": 4, "relu_1": 3, "relu_2": 4}


def test_a_rule_changes_only_what_it_names() -> None:
    # The final ReLU has the last layer's width; setting its scope must not give it another one.
    plan = small(scheme(ends=(8, 8), rules=(rule("relu*", scope="channel"),)))
    assert site_bits(plan) == {"relu": 4, "relu_1": 4, "relu_2": 8}
    assert [tuple(site.quantizer.alpha.shape) for site in plan.sites] == [(4, 1, 1)] * 3  # type: ignore[union-attr]


def test_layers_agree_on_their_activation_whatever_their_weights_are() -> None:
    rules = rule("layer2.0.conv1", weight_bits=2, activation_bits=8), rule("layer2.0.down*", activation_bits=8)
    plan = resnet18(rules=rules)
    assert site_bits(plan)["layer1.1.relu_1"] == 8
    assert input_bits(plan)["layer2.0.conv1"] == input_bits(plan)["layer2.0.downsample.0"] == 8


def test_layers_that_disagree_leave_their_activation_as_it_is_elsewhere() -> None:
    for changes in ({"activation_bits": 8}, {"scope": "channel"}, {"method": DOREFA}):
        site = next(
            site
            for site in resnet18(rules=(rule("layer2.0.conv1", **changes),)).sites
            if "layer2.0.conv1" in site.feeds
        )
        assert site.feeds == ["layer2.0.conv1", "layer2.0.downsample.0"]
        assert isinstance(site.quantizer, PACT) and (site.bits, site.quantizer.scope) == (4, "layer")


def test_dorefas_clip_to_1_takes_a_float_relus_place_only_beside_narrower_ones() -> None:
    kinds = {
        bits: [type(site.quantizer).__name__ for site in small(scheme((4, bits), method=DOREFA)).sites]
        for bits in (4, 32)
    }
    assert kinds == {4: ["DoReFaActivation"] * 3, 32: ["NoneType"] * 3}


def test_none_for_a_layer_keeps_it_and_its_relu() -> None:
    plan = small(None, rule("conv2", method=NONE))
    layer = next(layer for layer in plan.layers if layer.name == "conv2")
    assert (layer.weight, layer.input, layer.note) == (None, None, "all: quantizer none")
    assert {site.name: site.quantizer is None for site in plan.sites} == {
        "relu": True,
        "relu_1": False,
        "relu_2": False,
    }


def test_another_method_for_a_layer() -> None:
    plan = small(None, rule("conv3", method=DOREFA), rule("conv2", method=INPUTS))
    kinds = {site.name: type(site.quantizer).__name__ for site in plan.sites}
    assert kinds == {"relu": "NoneType", "relu_1": "DoReFaActivation", "relu_2": "PACT"}
    before = {layer.name: type(layer.input).__name__ for layer in plan.layers}
    assert before == {"conv1": "ImageGrid", "conv2": "PACT", "conv3": "NoneType", "fc": "NoneType"}


def test_quantizing_inputs_leaves_every_relu() -> None:
    plan = small(scheme(method=INPUTS, ends=(8, 8)))
    assert all(site.quantizer is None for site in plan.sites)
    assert [type(layer.input).__name__ for layer in plan.layers] == ["ImageGrid", "PACT", "PACT", "PACT"]
    assert [layer.input.site.signed for layer in plan.layers if isinstance(layer.input, PACT)] == [False] * 3
    assert input_bits(plan) == {"conv1": 8, "conv2": 4, "conv3": 4, "fc": 8}


def test_element_and_channel_alphas_have_the_shape_of_their_activation() -> None:
    plan = resnet18(rules=(rule("layer2.0.relu", scope="element"), rule("layer2.0.relu_1", scope="channel")))
    shapes = {site.name: tuple(site.quantizer.alpha.shape) for site in plan.sites}  # type: ignore[union-attr]
    assert shapes["layer2.0.relu"] == (128, 8, 8)
    assert shapes["layer2.0.relu_1"] == (128, 1, 1)
    assert shapes["relu"] == ()


def test_one_alpha_for_the_network() -> None:
    plan = small(None, rule("*", scope="network"))
    assert len({id(site.quantizer.alpha) for site in plan.sites}) == 1  # type: ignore[union-attr]


def test_one_bit_where_values_are_negative_names_the_layer_to_set_apart() -> None:
    class Linear(nn.Sequential):
        pass

    model = Linear(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(192, 2))
    with pytest.raises(ConfigError, match=r"layers\.'1'\.bits=2"):
        plan_of(model, scheme((1, 1)))
    assert input_bits(plan_of(model, scheme((1, 1), rules=(rule("1", activation_bits=2),))))["1"] == 2


def test_a_quantized_image_needs_its_range() -> None:
    with pytest.raises(ConfigError, match=r"conv1\.input: quantizing the image to 8 bits needs its range"):
        small(scheme(ends=(8, 8), input_range=None))


class TwoStems(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 5, padding=2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.cat([self.a(x), self.b(x)], 1).relu().mean((2, 3)))


def test_the_image_has_the_first_layers_width_wherever_it_is_read() -> None:
    first = Widths(5, 8)
    plan = plan_of(TwoStems(), scheme((2, 2), first=first))
    assert input_bits(plan)["b"] == input_bits(plan)["a"] == 8 and weight_bits(plan) == {"a": 5, "b": 2, "fc": 32}
    ruled = plan_of(TwoStems(), scheme((2, 2), first=first, rules=(rule("b", activation_bits=3),)))
    assert (input_bits(ruled)["a"], input_bits(ruled)["b"]) == (8, 3)


def test_a_flattened_image_is_quantized_by_channel() -> None:
    plan = plan_of(MLP(input_shape=(3, 8, 8), num_classes=4, hidden=(6,)), scheme(ends=(8, 8)))
    grid = plan.layers[0].input
    assert isinstance(grid, ImageGrid) and grid.lowest.shape == (192,)
    low = torch.full((1, 192), RANGE[0][0])
    torch.testing.assert_close(grid(low), low)


def test_what_has_no_quantized_form_is_listed() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv1d(3, 4, 1), nn.LayerNorm(4)
            self.attention, self.fc = nn.MultiheadAttention(4, 2), nn.Linear(4, 2)
            self.token = nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.conv(x.flatten(2)).permute(2, 0, 1)) + self.token
            return self.fc(self.attention(x, x, x)[0].mean(0))

    plan = plan_of(Attention(), scheme())
    kinds = {"model": "Attention", "conv": "Conv1d", "attention": "MultiheadAttention"}
    assert {name: kind for name, kind in plan.float_modules if "." not in name} == kinds
    assert "attention.out_proj" in dict(plan.float_modules), "a linear layer that nothing can reach"


def test_a_layer_only_training_runs_is_never_the_last() -> None:
    plan = plan_of(TwoGraphs(), scheme(ends=(8, 8)))
    assert {name for name, bits in weight_bits(plan).items() if bits == 8} == {"body.conv", "fc"}
    assert set(weight_bits(plan)) == {"body.conv", "body.scale", "body.aux", "fc", "aux_fc"}


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="no convolution or linear layer"):
        plan_of(nn.Sequential(nn.ReLU()), scheme())


def test_planning_changes_nothing() -> None:
    model = Small()
    before = dict(model.named_modules())
    plan_of(model)
    assert dict(model.named_modules()) == before


class Mixed(nn.Module):
    """Reads the image, then the image beside features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mixed, self.head = nn.Conv2d(3, 5, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.mixed(torch.cat([x, self.stem(x)], dim=1))))


def test_the_image_beside_features_is_not_rounded_as_an_image() -> None:
    plan = plan_of(Mixed(), scheme(ends=(4, 4)))
    kinds = {layer.name: type(layer.input).__name__ for layer in plan.layers}
    assert kinds["stem"] == "ImageGrid"
    assert kinds["mixed"] == "PACT"
    mixed = next(layer for layer in plan.layers if layer.name == "mixed")
    assert mixed.input is not None and mixed.input.site.signed
    assert quantize_model(plan)(torch.randn(2, 3, 8, 8)).shape == (2, 2, 8, 8)


def test_the_channels_of_a_sequence_are_its_last_axis() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    how = scheme(ends=(4, 4), method=Method("pact", DoReFaWeight, functools.partial(PACT, scope="channel")))
    plan = plan_of(model, how, (5, 6))
    (site,) = plan.sites
    assert site.quantizer is not None
    assert site.quantizer.alpha.shape == (16,)
    assert quantize_model(plan)(torch.randn(2, 5, 6)).shape == (2, 5, 3)


def test_a_sequences_elements_are_the_features_of_one_step() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    how = scheme(ends=(4, 4), method=Method("pact", DoReFaWeight, functools.partial(PACT, scope="element")))
    network = quantize_model(plan_of(model, how, (5, 6)))
    assert network(torch.randn(2, 7, 6)).shape == (2, 7, 3)


def test_one_step_for_the_network_is_one_for_weights_and_one_for_inputs() -> None:
    method = Method(
        "lsq", functools.partial(LSQ, scope="network"), functools.partial(LSQ, scope="network"), "input"
    )
    plan = plan_of(Small(), scheme(ends=(4, 4), method=method))
    weights = {id(layer.weight.step) for layer in plan.layers if isinstance(layer.weight, LSQ)}
    inputs = {id(layer.input.step) for layer in plan.layers if isinstance(layer.input, LSQ)}
    assert (len(weights), len(inputs), len(weights | inputs)) == (1, 1, 2)


def test_a_step_for_the_network_is_shared_by_what_has_the_same_integers() -> None:
    one = functools.partial(LSQ, scope="network")
    plan = resnet18(bits=(2, 2), ends=(8, 8), method=Method("lsq", one, one, "input"))
    steps: dict[tuple[str, int, int], set[int]] = {}
    for quantizer in plan.quantizers():
        if isinstance(quantizer, LSQ):
            key = (quantizer.site.kind, quantizer.lowest, quantizer.highest)
            steps.setdefault(key, set()).add(id(quantizer.step))
    assert {key: len(found) for key, found in steps.items()} == {
        ("weight", -128, 127): 1,
        ("weight", -2, 1): 1,
        ("input", 0, 255): 1,
        ("input", 0, 3): 1,
    }
    assert len(set().union(*steps.values())) == 4


class Forked(nn.Module):
    """A ReLU that feeds two layers, whose sum the last one reads through another ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.act, self.last, self.fc = nn.ReLU(), nn.ReLU(), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        return self.fc(self.last(self.left(x) + self.right(x)).mean((2, 3)))


def forked(method: Method, *rules: LayerRule, bits: tuple[int, int] = (4, 4)) -> LayerPlan:
    plan = plan_of(Forked(), scheme(bits, method=method, rules=rules))
    return next(layer for layer in plan.layers if layer.name == "left")


class Dropped(Forked):
    """Training scales what one of the layers reads."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        y = x * torch.rand_like(x[:, :1, :1, :1]) if self.training else x
        return self.fc(self.last(self.left(y) + self.right(x)).mean((2, 3)))


def test_what_a_layer_reads_in_evaluation_decides_its_input() -> None:
    plan = plan_of(Dropped(), scheme())
    assert len(plan.graphs) == 2
    left = next(layer for layer in plan.layers if layer.name == "left")
    assert (left.input, left.fed_by, left.activation_bits) == (None, ["act"], 4)


def test_a_layer_whose_relu_stays_quantizes_its_input_itself() -> None:
    layer = forked(INPUTS, rule("left", method=PACT_METHOD))
    assert isinstance(layer.input, PACT) and (layer.activation_bits, layer.note) == (4, "")
    assert not layer.input.site.signed
    assert forked(PACT_METHOD, rule("right", method=NONE)).input is None
    layer = forked(PACT_METHOD, rule("act", method=NONE))
    assert (layer.input, layer.note) == (None, "input"), "a rule on the ReLU itself leaves it as it says"


@pytest.mark.parametrize("activation", [BinaryActivation, LinearActivation, LogActivation, PACT])
def test_what_stands_in_a_relus_place_decides_the_sign_behind_it(activation: type[Quantizer]) -> None:
    lsq = Method("lsq", LSQ, LSQ, "input")
    outer = Method("outer", None, activation)
    for device in ("cpu", "meta"):
        with torch.device(device):
            layer = forked(outer, rule("left", method=lsq, activation_bits=4), bits=(32, 1))
        assert layer.input is not None and layer.input.site.signed == (activation is not PACT)


class Averaged(nn.Module):
    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.conv, self.act, self.pool, self.fc = nn.Conv2d(3, 4, 3), nn.ReLU(), pool, nn.LazyLinear(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.act(self.conv(x))).flatten(1))


class ChannelsLast(nn.Module):
    """Linear layers on (H, W, C), and at last on all of it in a row or turned."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.a, self.b, self.turned = nn.Linear(8, 8), nn.Linear(8, 8), turned
        self.fc = nn.Linear(8 if turned else 5 * 8 * 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a(x))))
        return self.fc(x.transpose(2, 3) if self.turned else x.flatten(1))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("scope", "shapes"), [("channel", [(8,), (5, 1, 1)]), ("element", [(8,), (5, 8, 8)])])
def test_features_of_linear_layers_are_the_last_axis_but_for_what_is_flattened_or_turned(
    scope: str, shapes: list[tuple[int, ...]], turned: bool
) -> None:
    how = scheme(method=Method("pact", DoReFaWeight, functools.partial(PACT, scope=scope)))
    plan = plan_of(ChannelsLast(turned), how, (5, 8, 8))
    assert [tuple(site.quantizer.alpha.shape) for site in plan.sites] == shapes  # type: ignore[union-attr]
    quantize_model(plan)(torch.randn(2, 5, 8, 8))


@pytest.mark.parametrize(("pool", "said"), [(nn.AvgPool2d(2), True), (nn.MaxPool2d(2), False)])
def test_a_layer_behind_an_average_is_said_to_read_between_the_levels(pool: nn.Module, said: bool) -> None:
    model = Averaged(pool)
    model(torch.zeros(1, 3, 8, 8))
    layer = plan_of(model, scheme(ends=(4, 4)), (3, 8, 8)).layers[-1]
    assert (layer.note == "input (averaged: between the levels)") == said
    assert layer.activation_bits == 4


class Written(nn.Module):
    """A shift written in place, with and without another name on what it writes into."""

    def __init__(self, named: bool) -> None:
        super().__init__()
        self.named, self.conv = named, nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = z = self.conv(x)
        y += 1.0
        return z if self.named else y


def test_a_graph_that_computes_something_else_is_refused() -> None:
    plan_of(Written(named=False), scheme())
    with pytest.raises(ConfigError, match=r"Written does not compute what its traced graph computes"):
        plan_of(Written(named=True), scheme())


class Arranged(nn.Module):
    """Reads the image by channels, by patches, by pixels, in part or averaged."""

    def __init__(self, how: Callable[[Tensor], Tensor], features: int) -> None:
        super().__init__()
        self.how = how
        self.fc: nn.Module = nn.Linear(features, 4) if features > 3 else nn.Conv2d(features, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.how(x))


PATCHES = {
    "flat": (lambda x: x.flatten(1), 192, 3),
    "pooled": (lambda x: F.avg_pool2d(x, 2).reshape(-1, 48), 48, 3),
    "pixels": (lambda x: x.permute(0, 2, 3, 1).flatten(1), 192, 1),
    "patches": (lambda x: x.unfold(2, 4, 4).permute(0, 2, 3, 4, 1).reshape(-1, 4, 48), 48, None),
    "rows": (lambda x: x.reshape(-1, 3, 64).transpose(1, 2).reshape(-1, 24, 8), 8, 1),
    "cut apart": (lambda x: x.reshape(-1, 96), 96, 1),
    "batched": (lambda x: x.reshape(-1, 3, 4, 8), 3, 1),
    "bordered": (lambda x: F.pad(x.flatten(1), (0, 30)), 222, 1),
    "one channel": (lambda x: x[:, :1], 1, 1),
    "grey": (lambda x: x.mean(1, keepdim=True), 1, 1),
    "doubled": (lambda x: torch.cat([x, x[:, :1]], 1)[:, 1:], 3, 1),
}


@pytest.mark.parametrize("name", PATCHES)
def test_the_images_grid_goes_by_channel_only_where_channels_are_where_they_were(name: str) -> None:
    how, features, values = PATCHES[name]
    ends = ((-2.0, -1.0, -0.5), (2.5, 1.0, 0.25))  # black and white, of three channels
    quantizer = plan_of(Arranged(how, features), scheme(ends=(8, 8), input_range=ends)).layers[0].input
    assert isinstance(quantizer, ImageGrid) == (values is not None)
    if isinstance(quantizer, ImageGrid):
        quantizer.eval()
        assert quantizer.lowest.unique().numel() == values
        x = how(torch.tensor(ends).reshape(2, 3, 1, 1).expand(2, 3, 8, 8))
        assert (quantizer(x) - x).abs().max() <= 4.5 / 255 / 2 + 1e-6


class Lookup(nn.Module):
    """Takes no values but those of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.values, self.conv = nn.Embedding(256, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.values((255 * x[:, 0]).long()).permute(0, 3, 1, 2))


def test_a_network_that_does_not_take_random_values_is_not_compared() -> None:
    assert len(plan_of(Lookup(), scheme()).layers) == 1

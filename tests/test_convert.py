from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from qexp.convert import TwoModes
from qexp.errors import ConfigError
from qexp.graph.scheme import Method, Widths
from qexp.layers.quantized import QuantConv2d, QuantLinear
from qexp.models.resnet_cifar import PreactivationResNet, ResNetV1
from qexp.models.torchvision_models import classifier
from qexp.quantizers.base import Site, named_quantizers
from qexp.quantizers.dorefa import dorefa_weight
from qexp.quantizers.pact import PACT, pact
from qexp.quantizers.qnn_linear import LinearActivation

from .conversions import INPUTS, NONE, Small, TwoGraphs, quantized, rule, scheme

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def resnet20() -> nn.Module:
    return PreactivationResNet(input_shape=(3, 16, 16), num_classes=10, depth=8)


@pytest.mark.parametrize(
    "make", [Small, resnet20, lambda: ResNetV1(input_shape=(3, 16, 16), num_classes=10, depth=8)]
)
def test_parameters_keep_their_names_and_are_the_same_tensors(make: type[nn.Module]) -> None:
    model = make()
    floats, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    network = quantized(model, shape=(3, 16, 16))
    after = dict(network.named_parameters())
    assert all(after[name] is parameter for name, parameter in floats.items())
    assert all(dict(network.named_buffers())[name] is buffer for name, buffer in buffers.items())
    added = after.keys() - floats.keys()
    assert added == {f"{name}.alpha" for name, module in network.named_modules() if isinstance(module, PACT)}
    assert set(network.state_dict()) == set(model.state_dict()) | added


def test_a_float_checkpoint_loads_by_name() -> None:
    source, network = Small(), quantized(Small())
    missing, unexpected = network.load_state_dict(source.state_dict(), strict=False)
    assert not unexpected and all(name.endswith(".alpha") for name in missing)


@pytest.mark.parametrize("training", [True, False])
def test_without_a_quantizer_the_output_is_the_float_models_bit_for_bit(training: bool) -> None:
    model = resnet20().train(training)
    network = quantized(copy.deepcopy(model), scheme(method=NONE), (3, 16, 16)).train(training)
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(network(x), model(x))
    assert not list(named_quantizers(network))


def test_pact_at_32_bits_is_a_clipped_network() -> None:
    class Clipped(Small):
        def forward(self, x: Tensor) -> Tensor:
            x = self.bn1(self.conv1(x)).clip(0, 0.5)
            x = self.conv2(x).clip(0, 0.5)
            return self.fc(self.conv3(x).clip(0, 0.5).mean((2, 3)))

    model = Clipped().eval()
    network = quantized(_like(Small().eval(), model), scheme((32, 32)))
    with torch.no_grad():
        for _, quantizer in named_quantizers(network):
            quantizer.alpha.fill_(0.5)
    torch.testing.assert_close(network(IMAGES), model(IMAGES))


def _like(target: nn.Module, source: nn.Module) -> nn.Module:
    target.load_state_dict(source.state_dict())
    return target


def test_a_network_by_hand() -> None:
    """The two-layer network written out with the functions of the methods."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
    )
    conv, inner, last = model[0], model[2], model[5]
    network = quantized(model, scheme((2, 3), (32, 32)))
    x = pact(conv(IMAGES), torch.tensor(10.0), 3)
    x = nn.functional.conv2d(x, dorefa_weight(inner.weight, 2), inner.bias)
    x = pact(x, torch.tensor(10.0), 32)
    assert torch.equal(network(IMAGES), last(x.flatten(1)))


def test_every_call_of_a_shared_relu_has_an_alpha_that_learns_by_itself() -> None:
    network = quantized(Small())
    sites = dict(named_quantizers(network))
    assert set(sites) >= {"relu", "relu_1", "relu_2"}
    with torch.no_grad():
        for number, name in enumerate(("relu", "relu_1", "relu_2")):
            sites[name].alpha.fill_(0.05 * (number + 1))
    network(IMAGES).square().sum().backward()
    gradients = [sites[name].alpha.grad.item() for name in ("relu", "relu_1", "relu_2")]
    assert all(gradients) and len(set(gradients)) == 3


def test_a_shared_relu_that_stays_is_not_replaced_by_the_quantizer_of_its_first_call() -> None:
    network = quantized(Small(), scheme(rules=(rule("fc", method=NONE),)))
    assert isinstance(network.get_submodule("relu"), PACT)
    seen: list[Tensor] = []
    network.get_submodule("fc").register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.no_grad():
        network.get_submodule("relu").alpha.fill_(1e-3)  # would clip everything behind it
        network.get_submodule("conv3").bias.fill_(5.0)
        network(IMAGES)
    assert seen[0].min() > 1


def test_the_other_order_keeps_the_first_call() -> None:
    network = quantized(Small(), scheme(rules=(rule("conv2", method=NONE),)))
    assert type(network.get_submodule("relu")) is nn.ReLU
    assert isinstance(network.get_submodule("relu_2"), PACT)
    assert type(network.get_submodule("conv2")) is nn.Conv2d
    assert type(network.get_submodule("conv3")) is QuantConv2d


def test_one_alpha_for_the_network_is_one_parameter_for_the_optimizer() -> None:
    network = quantized(Small(), scheme(rules=(rule("*", scope="network"),)))
    alphas = [parameter for name, parameter in network.named_parameters() if name.endswith("alpha")]
    assert len(alphas) == 1
    assert sum(name.endswith("alpha") for name in network.state_dict()) == 3
    network(10 * IMAGES).sum().backward()
    assert alphas[0].grad is not None


def test_alphas_by_element_refuse_another_size() -> None:
    network = quantized(Small(), scheme(rules=(rule("relu", scope="element"),)))
    network(IMAGES)
    with pytest.raises(ConfigError, match=r"relu: alpha\.scope=element was made for inputs of"):
        network(torch.randn(2, 3, 12, 12))


def test_placement_before_layers_runs() -> None:
    network = quantized(Small(), scheme(method=INPUTS, ends=(8, 8)))
    network(IMAGES).sum().backward()
    assert [name for name, _ in named_quantizers(network) if name.endswith(".input")] == [
        "conv1.input", "conv2.input", "conv3.input", "fc.input"
    ]  # fmt: skip
    assert type(network.get_submodule("fc")) is QuantLinear


@pytest.mark.parametrize("make", [Small, TwoGraphs])
@pytest.mark.parametrize("training", [True, False])
def test_the_copy_and_the_reloaded_give_the_same_outputs(make: type[nn.Module], training: bool) -> None:
    network = quantized(make(), scheme(ends=(8, 8)))
    with torch.no_grad():
        for _, quantizer in named_quantizers(network):
            for value in quantizer.learned().values():
                value.fill_(0.7)
    duplicate, fresh = copy.deepcopy(network), quantized(make(), scheme(ends=(8, 8)))
    fresh.load_state_dict(network.state_dict())
    expected = network.train(training)(IMAGES)
    for other in (duplicate, fresh):
        assert torch.equal(other.train(training)(IMAGES), expected)
        ours = {id(parameter) for parameter in network.parameters()}
        assert not ours & {id(parameter) for parameter in other.parameters()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(duplicate.eval()(IMAGES), fresh.eval()(IMAGES)), "a copy shares nothing with its original"


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_the_float_models(training: bool) -> None:
    for make in (Small, TwoGraphs):
        network = quantized(make().train(training))
        assert {module.training for module in network.modules()} == {training}


def test_memory_format_and_double_precision() -> None:
    network, x = quantized(Small().eval(), scheme(ends=(8, 8))), IMAGES
    expected = network(x)
    torch.testing.assert_close(network.to(memory_format=torch.channels_last)(x), expected)
    double = copy.deepcopy(network).double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("training", [True, False])
def test_two_graphs_compute_what_the_float_model_does(training: bool) -> None:
    model = TwoGraphs().train(training)
    expected = model(IMAGES)
    network = quantized(model, scheme(method=NONE))
    assert isinstance(network, TwoModes)
    assert torch.equal(network.train(training)(IMAGES), expected)


def test_two_graphs_share_everything_and_hold_it_once() -> None:
    model = TwoGraphs()
    floats, state = dict(model.named_parameters()), set(model.state_dict())
    network = quantized(model)
    after = dict(network.named_parameters())
    assert all(after[name] is parameter for name, parameter in floats.items())
    alphas = {name for name in after if name.endswith(".alpha")}
    assert alphas == {"relu.alpha", "relu_1.alpha", "relu_2.alpha"}
    assert set(network.state_dict()) == state | alphas
    reached = set()
    for training in (True, False):
        network.train(training)
        network.zero_grad(set_to_none=True)
        network(10 * IMAGES).square().sum().backward()
        reached |= {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert reached == set(after)


def test_two_graphs_move_as_one() -> None:
    network = quantized(TwoGraphs()).double()
    for training in (True, False):
        assert network.train(training)(IMAGES.double()).dtype == torch.float64
    assert network.offset.dtype == torch.float64


@pytest.mark.parametrize("name", ["conv2", "relu"])
def test_hooks_that_would_be_lost_are_refused(name: str) -> None:
    model = Small()
    handle = model.get_submodule(name).register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(ConfigError, match=f"{name}: it has hooks .*quantizer=none"):
        quantized(model)
    left = quantized(model, scheme(rules=(rule("conv2", method=NONE), rule("relu*", method=NONE))))
    assert left.get_submodule(name)._forward_hooks
    handle.remove()
    quantized(model)


class Regularized(nn.Module):
    """Drops values in training alone, between ReLUs that are modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 5)
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.conv1(x))
        if self.training:
            x = nn.functional.dropout(x, 0.1)
        return self.fc(self.act2(self.conv2(x)).mean((2, 3)))


def test_evaluation_runs_the_quantizers_that_training_trains() -> None:
    network = quantized(Regularized())
    ran: list[str] = []
    for name, quantizer in named_quantizers(network):
        if isinstance(quantizer, PACT):
            quantizer.register_forward_hook(lambda *_, name=name: ran.append(name))
    network.train()(IMAGES)
    network.eval()(IMAGES)
    assert ran == ["act1", "act2"] * 2


class Swapped(nn.Module):
    """One ReLU behind other layers in each mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(4))
        self.relu, self.fc = nn.ReLU(), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.layers[:2] if self.training else self.layers[2:]
        return self.fc(self.relu(second(self.relu(first(x)))).mean((2, 3)))


def test_a_name_for_two_modules_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"relu: training would run ReLU there, evaluation PACT"):
        quantized(Swapped())


@pytest.mark.parametrize("make", [Small, TwoGraphs])
def test_a_converted_network_compiles_as_one_graph(make: type[nn.Module]) -> None:
    torch._dynamo.reset()
    network = quantized(make(), scheme(ends=(8, 8)))
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    for training in (True, False):
        network.train(training)
        torch.testing.assert_close(compiled(IMAGES), network(IMAGES))


@pytest.mark.slow
def test_inception_runs_in_both_modes() -> None:
    model = classifier(input_shape=(3, 299, 299), num_classes=10, architecture="inception_v3")
    names = set(model.state_dict())
    network = quantized(model, scheme(), (3, 299, 299))
    state = set(network.state_dict())
    assert {name for name in state if not name.endswith(".alpha")} == names
    assert sum(name.endswith(".alpha") for name in state) == 94
    with torch.no_grad():
        for training in (True, False):
            assert network.train(training)(torch.randn(2, 3, 299, 299)).shape == (2, 10)


class Dropping(nn.Module):
    """Two layers that hand their input on, the second behind dropout.

    `read`: the second layer `alone` reads the dropped values, or the sum does `too`, or the second layer is called
    `again` on values that were not dropped; `flattened`: alone, through reshapings.
    """

    def __init__(self, kind: type[nn.Module], dropout: type[nn.Module], read: str) -> None:
        super().__init__()
        kernel = (1,) if kind is nn.Conv2d else ()
        self.first, self.second = (kind(30, 30, *kernel, bias=False) for _ in range(2))
        self.dropout = dropout(0.5)
        self.read, self.places = read, kernel * 2
        for layer in (self.first, self.second):
            nn.init.dirac_(layer.weight) if kernel else nn.init.eye_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        dropped = self.dropout(x)
        if self.read == "flattened":
            dropped = torch.flatten(dropped, 1).reshape(-1, 30, *self.places)
        found = self.second(dropped)
        if self.read == "too":
            return found + 0 * dropped
        return found + 0 * self.second(x) if self.read == "again" else found


@pytest.mark.parametrize("read", ["alone", "flattened", "too", "again"])
@pytest.mark.parametrize(
    ("kind", "dropout"), [(nn.Linear, nn.Dropout), (nn.Conv2d, nn.Dropout), (nn.Conv2d, nn.Dropout2d)]
)
def test_values_are_dropped_behind_the_quantizer_of_the_layer_that_alone_reads_them(
    kind: type[nn.Module], dropout: type[nn.Module], read: str
) -> None:
    how = scheme(method=Method("signed", None, LinearActivation, "input"), bits=(32, 3), last=Widths(32, 3))
    shape = (30, 1, 1) if kind is nn.Conv2d else (30,)
    network = quantized(Dropping(kind, dropout, read), how, shape)
    x = torch.linspace(-0.7, 0.7, 30).expand(200, 30).reshape(200, *shape)
    with torch.no_grad():
        evaluated, trained = network.eval()(x), network.train()(x)
    kept = trained != 0
    halved = torch.equal((trained / 2)[kept], evaluated[kept])  # else rounded on the grid when already doubled
    moved = read == "alone" or (read == "flattened" and dropout is nn.Dropout)
    assert halved == moved and 0.3 < kept.float().mean() < 0.6


class Functional(nn.Module):
    """A dropout that is a function, between two layers that hand their input on.

    `always`: in evaluation too, so that there is one graph for both modes.
    """

    def __init__(self, *, always: bool = False) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(30, 30, bias=False) for _ in range(2))
        self.always = always
        for layer in (self.first, self.second):
            nn.init.eye_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(nn.functional.dropout(self.first(x), 0.5, self.always or self.training))


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_dropout_that_is_a_function_of_training_goes_behind_the_quantizer_too(
    training: bool, always: bool
) -> None:
    how = scheme(method=Method("signed", None, LinearActivation, "input"), bits=(32, 3), last=Widths(32, 3))
    network = quantized(Functional(always=always).train(training), how, (30,))
    assert {module.training for module in network.modules()} == {training}
    x = torch.linspace(-0.7, 0.7, 30).expand(200, 30)
    grid = LinearActivation(3, Site("x", "input", (30,), signed=True))(x)
    with torch.no_grad():
        evaluated, trained = network.eval()(x), network.train()(x)
    kept = trained != 0
    assert 0.3 < kept.float().mean() < 0.6
    assert torch.equal((trained / 2)[kept], grid[kept]) == (not always)
    assert torch.equal(evaluated, grid) == (not always), "what is dropped out in evaluation stays so"

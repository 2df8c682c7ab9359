from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qexp.errors import ConfigError
from qexp.graph.shapes import record_shapes
from qexp.graph.tracing import consumers, layer_calls, nonnegative, relu_sites, sources, trace
from qexp.models.resnet_cifar import PreactivationResNet
from qexp.models.torchvision_models import classifier


def torchvision_graph(name: str) -> fx.GraphModule:
    with torch.device("meta"):
        model = classifier(input_shape=(3, 224, 224), num_classes=1000, architecture=name)
    (graph,) = trace(model)
    return graph


# The counts: one alpha for every call, shared modules included.
@pytest.mark.parametrize(
    ("name", "count"), [("resnet18", 17), ("resnet50", 49), ("alexnet", 7), ("mobilenet_v2", 35), ("vgg11_bn", 10)]
)
def test_relu_calls_of_torchvision(name: str, count: int) -> None:
    assert len(relu_sites(torchvision_graph(name))) == count


def test_relu_calls_of_the_papers_resnet20() -> None:
    (graph,) = trace(PreactivationResNet(input_shape=(3, 32, 32), num_classes=10))
    assert len(relu_sites(graph)) == 19


class EveryKind(nn.Module):
    """One ReLU module called twice, and functions and methods between its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.relu = nn.ReLU()
        self.relu_1 = nn.ReLU6()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.relu(self.conv(x)) - 0.1)
        x = F.relu(input=x - 0.1)
        x = (x - 0.1).relu()
        x = torch.relu(x - 0.1)
        x = F.relu6(x - 0.1)
        x = self.relu_1(x - 0.1)
        x = self.relu(x - 0.1).relu_()
        return self.fc(x.mean((2, 3)))


def test_functions_methods_and_shared_modules_get_names_of_their_own() -> None:
    (graph,) = trace(EveryKind())
    names = list(relu_sites(graph))
    assert len(names) == len(set(names)) == 9
    assert names[0] == "relu" and "relu_1" in names
    assert relu_sites(graph)["relu_1"].target == "relu_1", "a module keeps its own name"


class Twice(nn.Module):
    """A block with a functional ReLU inside, called two times."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.conv(F.relu(x)))

    def __init__(self) -> None:
        super().__init__()
        self.block = self.Block()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(self.block(x)).mean((2, 3)))


def test_a_block_that_is_called_twice() -> None:
    (graph,) = trace(Twice())
    assert list(relu_sites(graph)) == ["block.relu", "block.relu_1", "block.relu_2", "block.relu_3"]
    assert {name: len(calls) for name, calls in layer_calls(graph).items()} == {"block.conv": 2, "fc": 1}


def test_a_traced_network_keeps_its_names_when_it_is_traced_again() -> None:
    (graph,) = trace(Twice())
    (again,) = trace(graph)
    assert list(relu_sites(again)) == list(relu_sites(graph)) and again.code == graph.code
    again.graph.erase_node(next(node for node in again.graph.nodes if node.op == "output"))
    assert [node.op for node in graph.graph.nodes][-1] == "output", "the given graph is left as it is"


class Auxiliary(nn.Module):
    """In training a second head reads through the shared ReLU, between the two calls of evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.aux = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 8, 1)
        self.relu = nn.ReLU()
        self.fc, self.aux_fc = nn.Linear(4, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv1(x))
        extra = self.aux_fc(self.relu(self.aux(x)).mean((2, 3))) if self.training else 0
        x = F.dropout(x, 0.5, training=self.training)
        return self.fc(self.relu(self.conv2(x)).mean((2, 3))) + extra


def test_both_modes_call_a_site_by_one_name() -> None:
    training, evaluation = trace(Auxiliary())
    names = {
        name: str(next(sources(graph, node)))
        for graph in (evaluation, training)
        for name, node in relu_sites(graph).items()
    }
    assert names == {"relu": "conv1", "relu_1": "conv2", "relu_2": "aux"}


class StochasticDepth(nn.Module):
    """Drops a branch in training alone, as timm's DropPath."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.9) / 0.9 if self.training else x


class DroppedBranches(nn.Module):
    """A shared ReLU and functional ones behind operations that only training runs."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("stem", "conv1", "conv2", "conv3"):
            self.add_module(name, nn.Conv2d(3, 3, 1))
        self.drop, self.relu, self.own, self.fc = StochasticDepth(), nn.ReLU(), nn.ReLU(), nn.Linear(3, 2)
        self.only = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x = self.relu(x + self.drop(self.conv1(x)))
        if self.training:
            x = F.dropout(x, 0.1)
        x = F.relu(self.conv2(x))
        x = F.relu(x + self.drop(self.conv3(x)))
        if self.training:
            x = self.only(x)
        return self.fc(self.own(x).mean((2, 3)))


def test_an_operation_that_only_training_runs_renames_nothing() -> None:
    training, evaluation = trace(DroppedBranches())
    names = ["relu", "relu_1", "relu_2", "relu_3", "own"]
    assert list(relu_sites(training)) == list(relu_sites(evaluation)) == names


def test_the_modes_of_all_modules_are_left_as_they_were() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Sequential(nn.ReLU()))
    model.train()
    model[1].eval()
    (graph,) = trace(model)
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
    assert graph.training and graph.get_submodule("2").training and not graph.get_submodule("1").training


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_cannot_be_traced_is_named() -> None:
    inner = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(Branching()))
    with pytest.raises(
        ConfigError, match=r"Sequential cannot be traced: '1\.0' does not run on symbolic values"
    ) as caught:
        trace(inner)
    assert "quantizer=none" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="Branching cannot be traced: 'Branching'"):
        trace(Branching())


def resnet_site(name: str) -> set[str]:
    graph = torchvision_graph("resnet18")
    return consumers(graph, relu_sites(graph)[name])


def test_what_an_activation_feeds_ends_at_the_next_relu() -> None:
    assert resnet_site("relu") == {"layer1.0.conv1"}, "behind the shortcut's sum a ReLU comes before any layer"
    assert resnet_site("layer1.1.relu_1") == {"layer2.0.conv1", "layer2.0.downsample.0"}
    assert resnet_site("layer4.1.relu_1") == {"fc"}, "seen through the pooling"


def signs(model: nn.Module) -> dict[str, bool]:
    """Whether each layer's input can be shown never to be negative."""
    (graph,) = trace(model)
    return {
        name: all(nonnegative(graph, source) for call in calls for source in sources(graph, call))
        for name, calls in layer_calls(graph).items()
    }


class Signs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in ("image", "pooled", "summed", "mixed", "gated", "joined"):
            self.add_module(name, nn.Conv2d(6 if name == "joined" else 3, 3, 1))
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.image(x))
        b = self.pooled(self.pool(a))
        c = self.summed(a + F.relu(a - 1))
        d = self.mixed(a + c)
        e = self.gated(torch.sigmoid(d))
        return self.joined(torch.cat([F.relu(e), torch.sigmoid(c)], 1)).sum() + b.sum()


def test_signs_follow_pooling_sums_and_joins() -> None:
    assert signs(Signs()) == {
        "image": False, "pooled": True, "summed": True, "mixed": False, "gated": True, "joined": True
    }  # fmt: skip


def test_shapes_come_from_a_pass_without_data() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.Flatten(), nn.Linear(8 * 7 * 7, 5))
    (graph,) = trace(model)
    before = [parameter.clone() for parameter in model.parameters()]
    shapes = record_shapes(graph, (3, 16, 16))
    assert list(shapes.values()) == [(3, 16, 16), (8, 7, 7), (392,), (5,), (5,)]
    assert all(
        torch.equal(a, b) and b.device.type == "cpu" for a, b in zip(before, model.parameters(), strict=True)
    )


def test_an_input_of_the_wrong_size_is_refused() -> None:
    (graph,) = trace(nn.Sequential(nn.Flatten(), nn.Linear(10, 5)))
    with pytest.raises(ConfigError, match=r"does not take inputs of \(3, 4, 4\)"):
        record_shapes(graph, (3, 4, 4))


def test_a_layer_called_by_name_is_called_by_place_in_the_graph() -> None:
    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(input=self.conv(input=x).mean((2, 3)))

    model = ByName().eval()
    (graph,) = trace(model)
    assert all(len(call.args) == 1 and not call.kwargs for calls in layer_calls(graph).values() for call in calls)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(graph(x), model(x))


class Writing(nn.Module):
    """In-place ReLUs in every form, with what they write into read again later."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.relu = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c1(x)
        y = self.relu(x)
        a = x + self.c2(y)
        F.relu(a, inplace=True)
        b = self.c2(a)
        b.relu_()
        c = self.c2(b) - b
        F.relu_(c)
        return c


def test_what_an_inplace_relu_wrote_is_read_from_it() -> None:
    torch.manual_seed(0)
    model = Writing().eval()
    (graph,) = trace(model)
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(graph(x), model(x))
    assert all(nonnegative(graph, source) for source in sources(graph, layer_calls(graph)["c2"][1]))
    for node in relu_sites(graph).values():  # a quantizer in its place, which writes nothing, changes nothing
        with graph.graph.inserting_after(node):
            plain = graph.graph.call_function(torch.clamp, (node.all_input_nodes[0], 0.0))
        node.replace_all_uses_with(plain)
        graph.graph.erase_node(node)
    graph.recompile()
    assert torch.equal(graph(x), model(x))


def test_differences_and_borders_below_zero_are_not_taken_for_positive() -> None:
    class Sums(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y, z = F.relu(x), F.relu(-x)
            return (
                torch.add(y, other=x), torch.add(input=x, other=y), y.add(other=x),
                torch.add(y, z, alpha=-1), F.pad(y, (1, 1), value=-1.0), F.pad(y, (1, 1), "constant", -2.0),
                torch.add(y, z, alpha=2), F.pad(y, (1, 1)), y.transpose(1, -1),
                torch.flatten(start_dim=1, input=y), torch.cat(dim=1, tensors=[y, z]), torch.add(y, other=z),
            )  # fmt: skip

    assert nonnegatives(Sums()) == [False] * 6 + [True] * 6


def test_a_product_is_positive_where_both_factors_are() -> None:
    class Products(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y, gate = F.relu(x), F.hardsigmoid(x)
            return x * gate, y * x, y * -2.0, y.mul(other=x), y * gate, torch.mul(gate, other=y), y.mul(gate)

    assert nonnegatives(Products()) == [False] * 4 + [True] * 3


def test_resizing_keeps_signs_but_for_the_bicubic_one() -> None:
    class Resized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.cubic = nn.Upsample(scale_factor=2, mode="bilinear"), nn.Upsample(9, mode="bicubic")

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = F.relu(x)
            bilinear = F.interpolate(y, size=9, mode="bilinear", align_corners=False)
            cubic = F.interpolate(y, 9, None, "bicubic")
            return F.interpolate(y, 9), bilinear, self.up(y), F.interpolate(x, 9), cubic, self.cubic(y)

    assert nonnegatives(Resized()) == [True] * 3 + [False] * 3


def nonnegatives(model: nn.Module) -> list[bool]:
    (graph,) = trace(model)
    (output,) = [node for node in graph.graph.nodes if node.op == "output"]
    returned: Any = output.args[0]
    return [nonnegative(graph, node) for node in returned]


class WritesAView(nn.Module):
    """An in-place ReLU on a part, or on what another name looks at."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.kind == "part":
            F.relu_(x[:, :2])
            return self.last(x)
        seen = x.view(x.shape)
        y = F.relu_(x)
        return self.last(seen if self.kind == "alias" else y)


@pytest.mark.parametrize("kind", ["part", "alias"])
def test_an_in_place_relu_that_is_read_under_another_name_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match="it writes into a tensor that is read elsewhere"):
        trace(WritesAView(kind))


class Shortcut(nn.Module):
    """What is read after the write, under whatever name, reads what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.same, self.relu, self.drop = nn.Conv2d(3, 3, 1), nn.Identity(), nn.ReLU(True), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        factor = x.mean((2, 3), keepdim=True).sigmoid().expand_as(x)
        y = self.conv(self.relu(x)) + self.same(x)
        return y * factor + self.drop(x).flatten(1).sum()


@pytest.mark.parametrize("model", [WritesAView("plain"), Shortcut()], ids=["before", "behind"])
def test_other_in_place_relus_are_not(model: nn.Module) -> None:
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(trace(model.eval())[0](x), model(x))


class Lowered(nn.Module):
    """What a layer reads was never negative when it was made, and is written into before it is read."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.last, self.swish = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Hardswish(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x))
        if self.kind == "method":
            y.sub_(0.5)
        elif self.kind == "module":
            self.swish(y)
        elif self.kind == "function":
            F.elu(y, 1.0, True)
            F.threshold(y, 0.1, -1.0, inplace=True)
        elif self.kind == "border":
            return self.last(F.pad(y, (1, 1, 1, 1), value=-1.0))
        return self.last(y)


@pytest.mark.parametrize("kind", ["method", "module", "function", "border", "nothing"])
def test_a_layers_input_is_what_was_last_written_into_it(kind: str) -> None:
    (graph,) = trace(Lowered(kind).eval())
    made = list(sources(graph, layer_calls(graph)["last"][0]))
    assert [nonnegative(graph, node) for node in made] == [kind == "nothing"]


class Masks(nn.Module):
    """`&` and `|`, whose functions are called and_ and or_, and a part of a tensor written into."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).clone()
        x[:, :1].mul_(2)
        positive = x > 0
        inner = positive & (x < 1) | (x < -1)
        return self.last(torch.where(inner, x, 0.1 * x) * positive)


def test_masks_write_nothing_and_parts_stay_where_they_are() -> None:
    model, x = Masks().eval(), torch.randn(2, 3, 8, 8)
    (graph,) = trace(model)
    with torch.no_grad():
        assert torch.equal(graph(x), model(x))


class Optional(nn.Module):
    """Arguments beside the input, which nobody gives, and a layer whose weights a hook computes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.normed = nn.utils.spectral_norm(nn.Conv2d(4, 4, 1))

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0, features: bool = False) -> Tensor:
        y = self.conv(x)
        if mask is not None:
            y = y * mask
        return y if features else self.normed(y) * scale


def test_arguments_that_nobody_gives_are_their_defaults() -> None:
    model = Optional().eval()
    (graph,) = trace(model)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(graph(x), model(x))
    assert [node.name for node in graph.graph.nodes if node.op == "placeholder"] == ["x"]
    assert list(layer_calls(graph)) == ["conv"], "spectral_norm's weights are computed anew at each call"

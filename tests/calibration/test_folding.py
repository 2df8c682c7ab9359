from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hydra.types import RunMode
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qexp.build import build
from qexp.calibration.folding import Folding, fold_batch_norm
from qexp.convert import quantize_model
from qexp.errors import ConfigError
from qexp.graph.plan import make_plan
from qexp.graph.tracing import layer_calls, relu_sites, trace
from qexp.jobs.composition import config_dir, loader
from qexp.layers.quantized import QuantConv2d, QuantLinear
from qexp.models.torchvision_models import construct

from ..conversions import INPUTS, scheme

RECURRENT = {"lstm", "rnn"}
"""They read a text, have no batch norm, and are trained alone: `qexp ptq` refuses them."""

NAMES = sorted({path.stem for path in (config_dir() / "model").glob("*.yaml")} - RECURRENT)
SMALL = {
    "alexnet": 64,
    "alexnet_bn": 48,
    "qnn_alexnet": 63,
    "inception_v3": 75,
    "svhn": 37,
    "mlp": 8,
    "ssdlite320_mobilenet_v3": 320,
}
"""Sides of the smallest images, where 32 is too small or not the usual size."""

COUNTS = {
    "resnet20": (10, 9),  # the norms between conv1 and conv2 and the first one; the nine behind sums stay
    "preact_resnet18": (9, 8),  # likewise; the last one, in front of the pooling, stays too
    "resnet20_v1": (19, 0),
    "resnet18": (20, 0),
    "mobilenet_v2": (52, 0),
    "inception_v3": (94, 0),
    "googlenet": (57, 0),
    "squeezenet1_1": (0, 0),
    "shufflenet_v2": (56, 0),
    "mlp": (3, 0),
}
"""How many batch norms are folded and kept; those of torchvision are as many as their convolutions."""


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def network(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """Build the network of a configuration for the smallest images that it takes, in float64 if it has norms.

    A weight off by a millionth in any layer moves its answers by 1e-10 of the largest or more (measured).
    """
    config = loader().load_configuration("train", [f"model={name}"], run_mode=RunMode.RUN)
    node = OmegaConf.to_container(config.model)
    del node["weights"]
    if name == "alexnet_bn":
        node["hidden"] = 16
    shape = (1 if name == "mlp" else 3, *[SMALL.get(name, 32)] * 2)
    with torch.device("meta"):  # without the network's own start, which takes longer than the tests
        model = build(node, input_shape=shape, num_classes=7)
    model = (model.double() if norms(model) else model).to_empty(device="cpu")
    for parameter in model.parameters():
        bound = (3 / parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else 0.1
        nn.init.uniform_(parameter, -bound, bound)
    return unsettled(model), shape


def unsettled(model: nn.Module) -> nn.Module:
    """Give every batch norm of `model` statistics and parameters of its own, gammas of both signs."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            if module.running_mean is not None:
                nn.init.normal_(module.running_mean, std=0.2)
                nn.init.uniform_(module.running_var, 0.3, 3)
            if module.weight is not None:
                nn.init.uniform_(module.weight, -0.5, 2)
                nn.init.normal_(module.bias, std=0.5)
    return model


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def difference(model: nn.Module, folding: Folding, x: Tensor) -> float:
    """The largest change of any output, in units of the largest output."""
    x = x.to(next(model.parameters()).dtype)
    with torch.no_grad():
        before, after = (
            each if isinstance(each, tuple) else (each,) for each in (model.eval()(x), folding.model(x))
        )
    return max(float((b - a).abs().max() / a.abs().max()) for a, b in zip(before, after, strict=True))


def norms(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]


@pytest.mark.parametrize("name", NAMES)
def test_every_network_answers_as_before(name: str) -> None:
    model, shape = network(name)
    folding = fold_batch_norm(model)
    assert difference(model, folding, images(1, *shape)) < 1e-12
    folded, kept = ([pair[0] for pair in pairs] for pairs in (folding.folded, folding.kept))
    assert sorted(folded + kept) == sorted(norms(model)) and norms(folding.model) == kept
    assert COUNTS.get(name, (len(folded), len(kept))) == (len(folded), len(kept))


def test_single_precision_is_folded_in_double() -> None:
    """The folded weights are the nearest float32 to the exact ones; arithmetic in float32 misses some."""
    model = unsettled(nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)))
    conv, norm = copy.deepcopy(model).double()
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    exact = conv.weight * scale[:, None, None, None], norm.bias + scale * (conv.bias - norm.running_mean)
    layer = fold_batch_norm(model).model.get_submodule("0")
    assert torch.equal(layer.weight, exact[0].float()) and torch.equal(layer.bias, exact[1].float())


def test_the_given_model_is_left_as_it_was() -> None:
    model, _ = network("resnet20_v1")
    model.layer1.eval()
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    folding = fold_batch_norm(model)
    for parameter in folding.model.parameters():
        nn.init.zeros_(parameter)
    after = model.state_dict()
    assert after.keys() == state.keys() and all(torch.equal(after[name], state[name]) for name in state)
    assert [module.training for module in model.modules()] == modes
    assert not any(module.training for module in folding.model.modules())


def test_names_in_the_state_dict() -> None:
    model, _ = network("resnet20")
    folding = fold_batch_norm(model)
    gone = tuple(f"{norm}." for norm, _ in folding.folded)
    biases = {f"{layer}.bias" for _, layer in folding.folded}
    assert set(folding.model.state_dict()) == {n for n in model.state_dict() if not n.startswith(gone)} | biases
    assert ("conv1blk1.bn1", "conv1blk1.conv1") in folding.folded
    assert dict(folding.kept)["conv1blk1.bn2"].startswith("it is fed by 'conv1blk1.add")


def test_no_batch_norm_is_folded_under_none() -> None:
    model, shape = network("resnet20")
    folding = fold_batch_norm(model, "none")
    assert folding.folded == () and folding.statistics == {}
    assert [name for name, _ in folding.kept] == norms(model)
    assert {reason for _, reason in folding.kept} == {"calibration.fold=none"}
    assert difference(model, folding, images(1, *shape)) == 0


def test_statistics_are_those_of_what_the_layer_puts_out() -> None:
    """Read from a sample, with a large eps, a gamma below 0 and a channel that never varies."""
    norm = nn.BatchNorm2d(3, eps=0.5, momentum=None)
    model = unsettled(nn.Sequential(nn.Conv2d(2, 3, 1), norm, nn.ReLU())).double()
    nn.init.zeros_(model[0].weight[1])
    x = images(512, 2, 4, 4)
    model[1].reset_running_stats()
    model[1].weight.data[0] = -1.5
    model(x)
    folding = fold_batch_norm(model)
    out = folding.model.get_submodule("0")(x)
    mean, deviation = folding.statistics["0"]
    assert set(folding.statistics) == {"0"} and (deviation > 1e-9).tolist() == [True, False, True]
    torch.testing.assert_close(mean, out.mean((0, 2, 3)), rtol=0, atol=1e-12)
    torch.testing.assert_close(deviation, out.std((0, 2, 3)), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (lambda **kw: nn.Conv2d(4, 6, 3, groups=2, stride=2, padding=1, **kw), nn.BatchNorm2d, (2, 4, 5, 5)),
        (lambda **kw: nn.Conv2d(6, 6, 3, groups=6, padding=1, **kw), nn.BatchNorm2d, (1, 6, 5, 5)),
        (lambda **kw: nn.Conv2d(4, 6, 3, **kw), nn.SyncBatchNorm, (1, 4, 5, 5)),
        (lambda **kw: nn.Linear(4, 6, **kw), nn.BatchNorm1d, (3, 4)),
    ],
)
def test_layers_of_every_kind(
    layer: Callable[..., nn.Module], norm: type[nn.Module], shape: tuple[int, ...], bias: bool, affine: bool
) -> None:
    model = unsettled(nn.Sequential(layer(bias=bias), norm(6, eps=0.1, affine=affine))).double()
    folding = fold_batch_norm(model, "strict")
    assert folding.folded == (("1", "0"),) and set(folding.model.state_dict()) == {"0.weight", "0.bias"}
    assert difference(model, folding, images(*shape)) < 1e-12
    assert folding.model.get_submodule("0").bias.requires_grad
    if not affine:
        mean, deviation = folding.statistics["0"]
        variance = model.get_submodule("1").running_var
        assert torch.equal(mean, torch.zeros(6).double())
        torch.testing.assert_close(deviation, torch.sqrt(variance / (variance + 0.1)))


def test_two_batch_norms_behind_one_layer_are_both_folded() -> None:
    model = unsettled(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4))).double()
    folding = fold_batch_norm(model, "strict")
    assert folding.folded == (("1", "0"), ("2", "0"))
    assert torch.equal(folding.statistics["0"][0], model[2].bias)
    assert difference(model, folding, images(1, 3, 4, 4)) < 1e-12


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.booleans(), st.sampled_from("cnr")), min_size=1, max_size=6),
    st.integers(0, 2**31),
)
def test_any_chain_answers_as_before(steps: list[tuple[int, bool, str]], seed: int) -> None:
    """A norm is folded when a convolution, or a norm that is folded itself, stands right in front of it."""
    torch.manual_seed(seed)
    kinds = {
        "c": lambda groups, bias: nn.Conv2d(4, 4, 3, padding=1, groups=groups, bias=bias),
        "n": lambda _, affine: nn.BatchNorm2d(4, affine=affine),
        "r": lambda _, __: nn.ReLU(),
    }
    model = unsettled(nn.Sequential(*(kinds[kind](groups, flag) for groups, flag, kind in steps))).double()
    folding = fold_batch_norm(model)
    before = "".join(kind for _, _, kind in steps)
    expected = [str(i) for i, kind in enumerate(before) if kind == "n" and before[:i].rstrip("n").endswith("c")]
    assert [norm for norm, _ in folding.folded] == expected
    x = images(2, 4, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(folding.model(x), model.eval()(x), rtol=1e-9, atol=1e-12)


class Wired(nn.Module):
    """Two convolutions, a batch norm and a linear layer, in the order that `how` calls them."""

    def __init__(self, how: Callable[[Wired, Tensor], Tensor]) -> None:
        super().__init__()
        self.how = how
        self.conv, self.other = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.bn, self.fc, self.rows = nn.BatchNorm2d(4), nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def tied(self: Wired) -> None:
    self.other.weight = self.conv.weight


def frozen(self: Wired) -> None:
    self.bn.running_mean = self.bn.running_var = None


def hooked(self: Wired) -> None:
    self.conv.register_forward_hook(lambda module, inputs, output: 2 * output)


def volume(self: Wired) -> None:
    self.conv = nn.Sequential(nn.Unflatten(1, (4, 1)), nn.Conv3d(4, 4, 1), nn.Flatten(1, 2))


def two_places(self: Wired, x: Tensor) -> Tensor:
    return self.bn(self.conv(x)) + self.conv(2 * x)


def norm_at_two_places(self: Wired, x: Tensor) -> Tensor:
    return self.bn(self.conv(x)) + self.bn(self.other(x))


def used_elsewhere(self: Wired, x: Tensor) -> Tensor:
    x = self.conv(x)
    return self.bn(x) + F.relu(x)


def also_the_answer(self: Wired, x: Tensor) -> Tensor:
    x = self.conv(x)
    self.bn(x)
    return x


def read_beside(self: Wired, x: Tensor) -> Tensor:
    return self.bn(self.conv(x)) * self.conv.weight.sum()


def by_function(self: Wired, x: Tensor) -> Tensor:
    return F.batch_norm(self.conv(x), self.bn.running_mean, self.bn.running_var)


def both(self: Wired, x: Tensor) -> Tensor:
    return self.other(self.bn(self.conv(x)))


def straight(self: Wired, x: Tensor) -> Tensor:
    return self.bn(self.conv(x))


@pytest.mark.parametrize(
    ("how", "change", "norm", "reason"),
    [
        (lambda self, x: self.bn(x), None, "bn", "it is fed by the network's input, not by a Conv2d or Linear"),
        (lambda self, x: self.bn(self.pool(self.conv(x))), None, "bn", "it is fed by MaxPool2d 'pool', not by"),
        (lambda self, x: self.bn(self.conv(x) + x), None, "bn", "it is fed by 'add', not by a Conv2d or Linear"),
        (lambda self, x: self.bn(self.fc(x)), None, "bn", "it does not normalize the output channels of Linear"),
        (lambda self, x: self.rows(self.fc(x.flatten(1, 2))[:, :4]), None, "rows", "it is fed by 'getitem'"),
        (straight, volume, "bn", "it is fed by Flatten 'conv.2', not by a Conv2d or Linear"),
        (straight, frozen, "bn", "it has no running statistics: it normalizes by those of each batch, in"),
        (straight, hooked, "bn", "'conv' has hooks that may change what it computes"),
        (two_places, None, "bn", "'conv' is called at 2 places"),
        (norm_at_two_places, None, "bn", "it is called at 2 places"),
        (used_elsewhere, None, "bn", "the output of 'conv' is also used by 'relu'"),
        (also_the_answer, None, "bn", "the output of 'conv' is also used by the network's output"),
        (both, tied, "bn", "the parameters of 'conv' are also used as other.weight"),
        (read_beside, None, "bn", "the parameters of 'conv' are also used as conv.weight"),
        (by_function, None, "batch_norm", "it is a call of a function, and no module"),
    ],
)
def test_never_folded(how, change, norm: str, reason: str) -> None:
    model = Wired(how)
    if change is not None:
        change(model)
    unsettled(model).double()
    x = images(2, 4, 4, 4)
    folding = fold_batch_norm(model)
    assert folding.folded == () and [name for name, _ in folding.kept] == [norm]
    assert folding.kept[0][1].startswith(reason)
    assert difference(model, folding, x) == 0
    with pytest.raises(ConfigError) as caught:
        fold_batch_norm(model, "strict")
    assert str(caught.value).startswith(f"calibration.fold=strict: 1 of 1 batch norms cannot be folded: {norm} (")
    assert str(caught.value).endswith("). calibration.fold=auto leaves them in float.")


def test_a_batch_norm_over_rows_is_kept() -> None:
    """Of (N, rows, features) a BatchNorm1d normalizes the rows."""
    model = unsettled(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(3))).double()
    folding = fold_batch_norm(model)
    assert folding.kept == (("1", "it does not normalize the output channels of Linear '0'"),)
    assert difference(model, folding, images(2, 3, 4)) == 0


def test_a_function_says_where_it_is_called() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sequential(Wired(by_function)))
    assert [name for name, _ in fold_batch_norm(model).kept] == ["1.0.batch_norm"]


def test_strict_names_some_of_many_and_the_way_out() -> None:
    model, _ = network("resnet20")
    with pytest.raises(ConfigError) as caught:
        fold_batch_norm(model, "strict")
    text = str(caught.value)
    assert text.startswith("calibration.fold=strict: 9 of 19 batch norms cannot be folded: conv1blk1.bn2 (")
    assert "conv1blk3.bn2" in text and "conv2blk1.bn2" not in text and " and 6 more. " in text
    assert text.endswith("calibration.fold=auto leaves them in float.") and "\n" not in text


def test_what_cannot_be_traced_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be traced"):
        fold_batch_norm(Wired(lambda self, x: x if x.sum() > 0 else self.bn(self.conv(x))))


class Auxiliary(nn.Module):
    """A head in training reads the output that the batch norm reads, and has a batch norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.aux = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.bn(x) + self.aux(x) if self.training else self.bn(x)


def test_only_evaluation_counts() -> None:
    model = unsettled(Auxiliary()).double()
    folding = fold_batch_norm(model, "strict")
    assert folding.folded == (("bn", "conv"),)
    assert set(dict(folding.model.named_children())) == {"conv"}
    assert difference(model, folding, images(1, 3, 4, 4)) < 1e-12


def test_googlenets_own_auxiliary_heads() -> None:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = torchvision.models.googlenet(weights=None, aux_logits=True)
    folding = fold_batch_norm(model, "strict")
    assert len(folding.folded) == 57 and not any(name.startswith("aux") for name in folding.model.state_dict())


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "mobilenet_v2"])
def test_a_folded_network_is_traced_and_quantized_under_its_old_names(name: str) -> None:
    with torch.device("meta"):
        model = construct(name, 7)
    folded = fold_batch_norm(model).model
    (before,), (after,) = trace(model.eval()), trace(folded)
    assert list(layer_calls(after)) == list(layer_calls(before))
    assert list(relu_sites(after)) == list(relu_sites(before))
    plan = make_plan(folded, scheme(method=INPUTS, ends=(8, 8)), (3, 32, 32))
    network = quantize_model(plan)
    layers = {name for name, module in network.named_modules() if isinstance(module, QuantConv2d | QuantLinear)}
    assert layers == set(layer_calls(before))


def test_a_folded_network_runs_quantized() -> None:
    model, shape = network("resnet20")
    folding = fold_batch_norm(model.float())
    quantized = quantize_model(make_plan(copy.deepcopy(folding.model), scheme(ends=(8, 8)), shape))
    assert quantized(images(2, *shape).float()).shape == (2, 7)
    assert norms(quantized) == [name for name, _ in folding.kept]


def test_a_norm_of_a_sequences_steps_is_not_folded() -> None:
    model = unsettled(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    assert fold_batch_norm(model, input_shape=(4,)).folded == (("1", "0"),)
    folding = fold_batch_norm(model, input_shape=(4, 4))
    assert [reason for _, reason in folding.kept] == [
        "it normalizes the steps of a sequence, not the output channels of Linear '0'"
    ]
    assert difference(model, folding, images(3, 4, 4)) < 1e-6

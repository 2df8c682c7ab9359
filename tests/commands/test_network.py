"""From a command line to the network: what the configuration says is what stands in the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from qexp.build import build
from qexp.commands.explain import summary
from qexp.commands.network import build_float, build_network, check_network, scheme
from qexp.errors import ConfigError
from qexp.graph.plan import make_plan
from qexp.layers.normalization import ShiftBatchNorm
from qexp.layers.quantized import QuantLinear
from qexp.models.mlp import MLP
from qexp.ops.discretisation import EWGS, Blend, MSEPull
from qexp.quantizers.base import named_quantizers
from qexp.quantizers.dorefa import DoReFaActivation, DoReFaWeight
from qexp.quantizers.gradient import GradientQuantizer
from qexp.quantizers.image import ImageGrid
from qexp.quantizers.pact import PACT

from ..composing import configured


def network(*overrides: str) -> nn.Module:
    config = configured(*overrides)
    return build_network(config, build(config.dataset))


def quantizers(*overrides: str) -> dict[tuple[str, type], Any]:
    return {(name, type(found)): found for name, found in named_quantizers(network(*overrides))}


def test_the_default_command() -> None:
    found = quantizers("quantizer=pact", "bits=4")
    assert [(name, kind, quantizer.bits) for (name, kind), quantizer in found.items()] == [
        ("act1", PACT, 4), ("fc2", DoReFaWeight, 4), ("act2", PACT, 4), ("fc3", DoReFaWeight, 4),
        ("act3", PACT, 32),
    ]  # fmt: skip
    assert found["act1", PACT].alpha.item() == 10.0


def test_none_is_the_float_model_itself() -> None:
    assert type(network("quantizer=none", "bits=2")) is MLP


def test_alpha_and_scope_reach_the_quantizer() -> None:
    found = quantizers("quantizer.activation.alpha=3", "quantizer.activation.scope=channel")
    assert found["act2", PACT].alpha.shape == (512,)
    assert torch.all(found["act2", PACT].alpha == 3)


def test_weights_and_activations_apart_and_both_ends() -> None:
    found = quantizers("bits=w2a3", "first_last=8", "bits.last=w5a6")
    widths = {name: quantizer.bits for (name, kind), quantizer in found.items() if kind is not PACT}
    assert widths == {"fc1.input": 8, "fc1": 8, "fc2": 2, "fc3": 2, "fc": 5}
    assert [quantizer.bits for (_, kind), quantizer in found.items() if kind is PACT] == [3, 3, 6]
    assert ("fc1.input", ImageGrid) in found
    same = quantizers("bits=2", "first_last=same")
    assert {quantizer.bits for quantizer in same.values()} == {2}


def test_a_layer_of_its_own() -> None:
    found = quantizers("bits=4", "layers.fc2.quantizer=dorefa", "layers.fc2.bits=w3a2")
    assert found["act1", DoReFaActivation].bits == 2 and found["fc2", DoReFaWeight].bits == 3
    with pytest.raises(ConfigError, match=r"layers\.'fc22' matches no layer"):
        network("layers.fc22.bits=2")
    with pytest.raises(ConfigError, match="takes no 'scope'"):
        network("quantizer=dorefa", "layers.fc2.scope=channel")


def test_equal_methods_of_two_patterns_are_one_method() -> None:
    config = configured("quantizer=none", "layers.fc1.quantizer=pact", "layers.fc2.quantizer=pact")
    first, second = scheme(config, build(config.dataset)).rules
    assert first.method == second.method
    assert hash(first.method) == hash(second.method)
    other = configured("quantizer=none", "layers.fc1.quantizer=pact", "layers.fc2.quantizer=dorefa")
    first, second = scheme(other, build(other.dataset)).rules
    assert first.method != second.method


def test_a_method_for_one_layer_of_a_float_network() -> None:
    found = quantizers("quantizer=none", "layers.fc3.quantizer=pact", "layers.fc3.bits=2")
    assert {(name, kind, quantizer.bits) for (name, kind), quantizer in found.items()} == {
        ("act2", PACT, 2), ("fc3", DoReFaWeight, 2)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("quantizer=qnn_binary", "bits=1", "rounding=asr"), "rounding"),
        (("quantizer=qnn_linear", "bits=1", "rounding=asr"), "rounding"),
        (("quantizer=dorefa", "bits=w1a32", "rounding=asr", "discretisation=ewgs"), "rounding and discretisation"),
        (("quantizer=ternary", "bits=w2a32", "discretisation=ewgs"), "discretisation"),
        (("quantizer=pact", "bits=32", "rounding=asr", "discretisation=ewgs"), "rounding and discretisation"),
        (
            ("quantizer=lsq", "bits=w32a4", "first_last=same", "rounding=asr", "discretisation=mse_pull"),
            "discretisation",
        ),
        (
            ("quantizer=ternary", "bits=w2a32", "rounding=asr", "discretisation=blend"),
            "rounding and discretisation",
        ),
    ],
)
def test_a_rounding_that_nothing_would_use_is_refused(words: tuple[str, ...], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}.*: no quantizer here would use it"):
        network(*words)


@pytest.mark.parametrize("command", ["train", "ptq"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["quantizer=ternary", "bits=4"], "bits=4 is not supported by TernaryWeight"),
        (["layers.fc22.bits=2"], "matches no layer"),
    ],
)
def test_weights_to_start_from_hide_no_mistake(command: str, words: list[str], said: str) -> None:
    config = configured("quantizer=pact", *words, "model.weights=some/run", command=command)
    with pytest.raises(ConfigError, match=said):
        check_network(config, build(config.dataset))


@pytest.mark.parametrize(("choice", "kind"), [("blend", Blend), ("mse_pull", MSEPull), ("ewgs", EWGS)])
def test_a_discretisation_is_for_weights_and_where_it_means_something_for_inputs(choice: str, kind: type) -> None:
    found = quantizers("bits=4", f"discretisation={choice}").values()
    around = {(type(one), isinstance(one.rounding, kind)) for one in found if one.bits == 4}
    assert around == {(DoReFaWeight, True), (PACT, kind is EWGS)}


@pytest.mark.parametrize(("kind", "authors"), [("shift", False), ("shift_authors", True)])
def test_every_batch_norm_is_of_the_kind_asked_for(kind: str, authors: bool) -> None:
    norms = [module for module in network(f"normalization={kind}").modules() if isinstance(module, _BatchNorm)]
    assert [(type(norm), norm.authors) for norm in norms] == [(ShiftBatchNorm, authors)] * 3


def test_gradients_are_quantized_behind_every_quantized_layer() -> None:
    model = network("gradient_bits=6", "gradient_form=log")
    behind = [layer.gradient_quantizer for layer in model.modules() if isinstance(layer, QuantLinear)]
    assert [(type(one), one.bits, one.form) for one in behind] == [(GradientQuantizer, 6, "log")] * 2
    assert not any(isinstance(module, GradientQuantizer) for module in network().modules())


@pytest.mark.parametrize(
    ("words", "behind"),
    [
        ("quantizer=qnn_linear bits=w32a4", {"fc1", "fc2", "fc"}),  # the image, and two ReLUs
        ("quantizer=pact bits=w32a4", {"fc2"}),  # both ends are in float
        ("quantizer=pact bits=w4a32 first_last=same", {"fc1", "fc2", "fc"}),
        ("quantizer=lsq bits=w32a4", {"fc1", "fc2", "fc"}),
    ],
)
def test_float_weights_that_quantized_values_meet_have_quantized_gradients(words: str, behind: set[str]) -> None:
    config = configured("model.hidden=[8,8]", "gradient_bits=4", *words.split())
    model = build_network(config, build(config.dataset))
    names = {name for name, module in model.named_modules() if isinstance(module, GradientQuantizer)}
    assert names == {f"{layer}.gradient_quantizer" for layer in behind}
    source = build(config.dataset)
    plan = make_plan(build_float(config, source), scheme(config, source), source.shape)
    assert set(summary(config, plan)["gradients_behind"]) == behind


@pytest.mark.parametrize("words", ["quantizer=qnn_linear bits=32", "quantizer=pact bits=32", "quantizer=none"])
def test_gradients_that_no_layer_would_quantize_are_refused(words: str) -> None:
    with pytest.raises(ConfigError, match=r"gradient_bits=4: .* nothing is quantized here"):
        network("gradient_bits=4", *words.split())


def test_the_seed_decides_the_start_and_the_method_does_not() -> None:
    one, other = network("seed=1", "quantizer=pact").state_dict(), network("seed=1", "quantizer=none").state_dict()
    assert all(torch.equal(one[name], value) for name, value in other.items())
    assert not torch.equal(network("seed=2").state_dict()["fc1.weight"], one["fc1.weight"])


def test_weights_of_a_file_are_in_the_quantized_network(tmp_path: Path) -> None:
    start = network("quantizer=none", "seed=5")
    torch.save(start.state_dict(), tmp_path / "float.pth")
    loaded = network(f"model.weights={tmp_path / 'float.pth'}").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in start.state_dict().items())


def test_one_bit_activations_learn_nothing_wrong() -> None:
    model = network("bits=1")
    images = torch.randn(8, 1, 8, 8)
    model(images).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model(images).isfinite().all()

"""The recurrent layers against torch's own, and what quantizing them does and does not change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qexp.convert import quantize_model
from qexp.graph.plan import make_plan
from qexp.graph.scheme import Method, Scheme, Widths
from qexp.layers.quantized import QuantRecurrence
from qexp.layers.recurrence import Recurrence
from qexp.models.recurrent import LanguageModel
from qexp.quantizers.base import Quantizer, Site
from qexp.quantizers.lsq import LSQ
from qexp.quantizers.qnn_linear import LinearActivation, LinearWeight

STEPS, VOCABULARY, UNITS = 7, 11, 6


def model(cell: Any, layers: int = 2, **more: Any) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(
        input_shape=(STEPS,), num_classes=VOCABULARY, cell=cell, units=UNITS, layers=layers, embedding=5, **more
    )


def torch_twin(ours: LanguageModel, cell: str) -> nn.RNNBase:
    """torch's own network with the same numbers; it has a second bias, which is 0 here."""
    kind = {"rnn": nn.RNN, "lstm": nn.LSTM}[cell]
    twin = kind(5, UNITS, num_layers=len(ours.recurrent), batch_first=True)
    with torch.no_grad():
        for place, layer in enumerate(ours.recurrent):
            getattr(twin, f"weight_ih_l{place}").copy_(layer.input.weight)
            getattr(twin, f"bias_ih_l{place}").copy_(layer.input.bias)
            getattr(twin, f"weight_hh_l{place}").copy_(layer.hidden.weight)
            getattr(twin, f"bias_hh_l{place}").zero_()
    return twin


def scheme(bits: int, weight: Any = LinearWeight, activation: Any = LinearActivation) -> Scheme:
    widths = Widths(bits, bits)
    return Scheme(Method("test", weight, activation), widths, widths, widths)


def quantized(network: LanguageModel, bits: int, **methods: Any) -> nn.Module:
    return quantize_model(make_plan(network, scheme(bits, **methods), (STEPS,)))


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_outputs_states_and_gradients_are_those_of_torchs_own(cell: str) -> None:
    ours = model(cell).double()
    twin = torch_twin(ours, cell).double()
    tokens = torch.randint(0, VOCABULARY, (3, 2 * STEPS), generator=torch.Generator().manual_seed(1))
    first, state = ours(tokens[:, :STEPS])
    second, state = ours(tokens[:, STEPS:], state)
    hidden, last = twin(ours.embedding(tokens))
    expected = ours.decoder(hidden)
    assert torch.allclose(torch.cat([first, second], dim=1), expected, atol=1e-12)
    for row, part in enumerate(last if cell == "lstm" else [last]):
        assert torch.allclose(state[:, row], part, atol=1e-12)
    weights = [ours.recurrent[0].hidden.weight, ours.recurrent[1].input.weight]
    found = torch.autograd.grad(torch.cat([first, second], dim=1).square().sum(), weights)
    names = ["weight_hh_l0", "weight_ih_l1"]
    wanted = torch.autograd.grad(expected.square().sum(), [getattr(twin, name) for name in names])
    assert all(torch.allclose(one, other, atol=1e-10) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_at_32_bits_nothing_is_changed(cell: str) -> None:
    network = model(cell)
    tokens = torch.randint(0, VOCABULARY, (2, STEPS))
    expected = network(tokens)
    found = quantized(network, 32)(tokens)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_every_matrix_gets_its_weights_and_its_input_quantized() -> None:
    plan = make_plan(model("lstm"), scheme(3), (STEPS,))
    assert [layer.name for layer in plan.layers] == [
        "recurrent.0.input", "recurrent.0.hidden", "recurrent.1.input", "recurrent.1.hidden", "decoder",
    ]  # fmt: skip
    assert all(layer.weight_bits == layer.activation_bits == 3 for layer in plan.layers)
    assert all(layer.input is not None and layer.input.site.signed for layer in plan.layers)
    hidden = plan.layers[1]
    assert (hidden.kind, hidden.calls) == ("Recurrence", [((STEPS, UNITS), (STEPS, 4 * UNITS))])
    assert hidden.input is not None and hidden.input.site.shape == (UNITS,)
    assert plan.float_modules == [("embedding", "Embedding")]


class Counting(Quantizer):
    """Doubles, and remembers what it was given."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.given: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.given.append(x.detach())
        return 2 * x


def test_weights_are_quantized_once_for_all_steps_and_outputs_step_by_step() -> None:
    layer = Recurrence("rnn", UNITS)
    site = Site("hidden", "weight", tuple(layer.weight.shape))
    swapped = QuantRecurrence(layer, Counting(4, site), Counting(4, Site("hidden.input", "input", (UNITS,))))
    gates = torch.randn(2, STEPS, UNITS)
    outputs, state = swapped(gates)
    assert len(swapped.weight_quantizer.given) == 1
    # Before the first step there is no output; behind it one for each further step.
    assert len(swapped.input_quantizer.given) == STEPS - 1
    assert torch.equal(torch.stack(swapped.input_quantizer.given, dim=1), outputs[:, :-1])
    last = outputs[:, 0]
    for step in range(1, STEPS):
        last = torch.tanh(gates[:, step] + 2 * last @ (2 * layer.weight).T)
        assert torch.allclose(outputs[:, step], last, atol=1e-5)
    assert torch.equal(state[0], outputs[:, -1])
    swapped(gates, state.unsqueeze(0))
    assert len(swapped.input_quantizer.given) == 2 * STEPS - 1


def test_with_a_state_a_text_in_pieces_is_the_text_whole() -> None:
    network = quantized(model("lstm"), 3).eval()
    tokens = torch.randint(0, VOCABULARY, (2, STEPS))
    whole, end = network(tokens)
    first, state = network(tokens[:, :3])
    second, last = network(tokens[:, 3:], state)
    assert torch.equal(torch.cat([first, second], dim=1), whole) and torch.equal(last, end)


def test_a_level_for_each_channel_is_one_for_each_unit_not_for_each_step() -> None:
    network = quantized(model("lstm", layers=1), 4, activation=lambda **given: LSQ(**given, scope="channel"))
    steps = dict(network.named_parameters())
    assert steps["recurrent.0.hidden.input_quantizer.step"].shape == (UNITS,)
    assert steps["recurrent.0.input.input_quantizer.step"].shape == (5,)


def test_the_gradient_behind_each_steps_product_is_quantized() -> None:
    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shapes: list[tuple[int, ...]] = []

        def forward(self, x: Tensor) -> Tensor:
            self.shapes.append(tuple(x.shape))
            return x

    network = quantize_model(make_plan(model("lstm", layers=1), scheme(4), (STEPS,)), Seen)
    network(torch.randint(0, VOCABULARY, (2, STEPS)))
    layers = dict(network.named_modules())
    assert layers["recurrent.0.input"].gradient_quantizer.shapes == [(2, STEPS, 4 * UNITS)]
    assert layers["recurrent.0.hidden"].gradient_quantizer.shapes == [(2, 4 * UNITS)] * (STEPS - 1)

"""Language models on bits: recurrent products step by step, the state carried from window to window."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qexp.build import build
from qexp.commands.network import build_network
from qexp.data.base import DataSource
from qexp.lit.language import language
from qexp.xnor.engine import Engine, make_engine, products, prove
from qexp.xnor.product import TorchProduct

from ..composing import parsed

LANES, UNITS = 10, 16


@pytest.fixture(scope="module")
def product() -> TorchProduct:
    return products(lambda text: None)


def made(*words: str) -> tuple[nn.Module, DataSource]:
    small = ("dataset=descriptions", "task=language_modelling", f"model.units={UNITS}", "model.start=1.0")
    config = parsed(*small, *words)
    source = build(config.dataset)
    torch.manual_seed(0)
    return build_network(config, source).eval(), source


def windows(source: DataSource):
    return source.test_batches(None, "cpu", channels_last=False)


@pytest.mark.parametrize(
    ("words", "gates", "layers"),
    [
        ("model=rnn quantizer=qnn_binary bits=1", 1, 1),
        ("model=lstm quantizer=qnn_linear bits=w3a2 model.layers=2 model.dropout=0.3", 4, 2),
        ("model=lstm quantizer=dorefa bits=w2a4 first_last=4", 4, 1),
    ],
)
def test_a_language_model_proves_itself(words: str, gates: int, layers: int, product: TorchProduct) -> None:
    network, source = made(*words.split())
    engine = make_engine(network, product)
    recurrent = [f"recurrent.{place}.{part}" for place in range(layers) for part in ("input", "hidden")]
    assert [layer.name for layer in engine.layers] == [*recurrent, "decoder"] and not engine.left
    proof = prove(engine, network, windows(source), text=True)
    assert proof.holds and proof.plain is not None
    tokens = sum(inputs.numel() for inputs, _ in windows(source))
    assert len(list(windows(source))) > 1
    assert proof.samples == tokens
    compared = {name: count for name, count, _ in proof.accumulators}
    assert compared["recurrent.0.input"] == tokens * gates * UNITS
    # The text's first tokens, one a lane, have nothing before them; those of later windows do.
    assert compared["recurrent.0.hidden"] == (tokens - LANES) * gates * UNITS
    engine.set_mode("packed")
    wanted, found = (
        language(each, windows(source), torch.device("cpu"), characters=False) for each in (network, engine.fused)
    )
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-3)


def broken(engine: Engine, network: nn.Module, source: DataSource) -> list[str]:
    proof = prove(engine, network, windows(source), text=True)
    assert not proof.holds
    return proof.broken


def test_a_recurrent_product_that_is_not_the_real_networks_breaks_the_proof(product: TorchProduct) -> None:
    network, source = made("model=lstm", "quantizer=qnn_linear", "bits=w3a2")
    engine = make_engine(network, product)
    hidden = engine.layers[1]
    hidden.scale.mul_(1.01)  # what both ways of taking sums have in common
    assert broken(engine, network, source) == [hidden.name] == ["recurrent.0.hidden"]
    engine = make_engine(network, product)
    engine.layers[1].integers[0, 0] *= -1  # the kernel's words stay as they were
    assert "recurrent.0.hidden" in broken(engine, network, source)


@pytest.mark.parametrize(
    ("setting", "why"), [("bits=32", "its weights are float"), ("bits=w2a32", "its input is float")]
)
def test_a_recurrent_layer_that_cannot_run_on_bits_is_named(setting: str, why: str, product: TorchProduct) -> None:
    words = ("model=lstm", "quantizer=qnn_linear", "bits=w3a2", f"layers.'recurrent.0.hidden'.{setting}")
    network, source = made(*words)
    engine = make_engine(network, product)
    assert engine.left == [("recurrent.0.hidden", why)]
    assert prove(engine, network, windows(source), text=True).holds

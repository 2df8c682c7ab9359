from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from qexp.commands import explain
from qexp.graph.plan import LayerPlan, Plan
from qexp.quantizers.base import Site
from qexp.quantizers.corrected import CorrectedWeight
from qexp.quantizers.omse import OMSEWeight

from ..composing import configured

LAYER_KEYS = {"name", "weight_bits", "activation_bits", "macs", "weight_bytes"}


def explained(capsys: pytest.CaptureFixture[str], *overrides: str) -> dict[str, Any]:
    """What `qexp explain explain.format=json ...` prints."""
    explain.run(configured(*overrides, "explain.format=json", command="explain"))
    report = json.loads(capsys.readouterr().out)
    assert isinstance(report, dict)
    return report


@pytest.fixture(scope="module")
def resnet18() -> dict[str, Any]:
    config = configured("model=resnet18", "bits=4", "explain.format=json", command="explain")
    return explain.run(config)


def layer(report: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in report["layers"] if entry["name"] == name)


def test_the_object_the_issue_asks_for(capsys: pytest.CaptureFixture[str]) -> None:
    report = explained(capsys)
    assert report["alphas"] == 3
    assert len(report["layers"]) == 4
    assert all(entry.keys() >= LAYER_KEYS for entry in report["layers"])
    assert report["quantizer"] == "pact" and report["first"] == {"weight": 32, "activation": 32}


def test_resnet18_has_the_published_size_and_operations(resnet18: dict[str, Any]) -> None:
    # torchvision prints 1.81 GFLOPs for it; the exact count at 224 x 224 from its layers.
    assert resnet18["totals"]["macs"] == 1_814_073_344
    assert resnet18["alphas"] == 17 and len(resnet18["layers"]) == 21
    # 11,689,512 parameters without 9,600 of batch norm and the classifier's 1,000 biases.
    assert resnet18["totals"]["parameters"] == 11_689_512 - 9_600 - 1_000


def test_totals_are_the_sums_of_the_layers(resnet18: dict[str, Any]) -> None:
    for key, total in resnet18["totals"].items():
        assert total == sum(entry[key] for entry in resnet18["layers"]), key


def test_one_layer_by_hand(resnet18: dict[str, Any]) -> None:
    entry = layer(resnet18, "layer1.0.conv1")
    assert entry["shape"] == (64, 64, 3, 3)
    assert (entry["weight_bits"], entry["activation_bits"]) == (4, 4)
    assert entry["macs"] == 64 * 64 * 9 * 56 * 56
    assert entry["weight_bytes"] == 64 * 64 * 9 // 2
    assert entry["bit_operations"] == entry["macs"] * 16
    assert layer(resnet18, "fc")["weight_bytes"] == 512 * 1000 * 4
    assert layer(resnet18, "conv1")["bit_operations"] == layer(resnet18, "conv1")["macs"] * 1024


def test_what_stays_float_says_so(resnet18: dict[str, Any]) -> None:
    assert layer(resnet18, "conv1")["note"] == "weights, input"
    assert layer(resnet18, "fc")["note"] == "weights, input (clipped only)"
    assert layer(resnet18, "layer1.0.conv1")["note"] == ""


@pytest.mark.parametrize(
    ("words", "signed"),
    [
        ("quantizer=qnn_binary bits=1", True),
        ("quantizer=qnn_linear bits=w1a2", True),
        ("quantizer=qnn_log bits=4", True),
        ("quantizer=pact bits=4 first_last=same", False),
        ("quantizer=dorefa bits=1 first_last=same", False),
    ],
)
def test_the_sign_of_what_stands_in_a_relus_place_is_its_grids(
    words: str, signed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    report = explained(capsys, *words.split())
    assert [entry["signed"] for entry in report["layers"][1:]] == [signed] * 3


def test_an_input_that_is_quantized_a_second_time_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("layers.fc2.quantizer=uniform", "layers.fc2.bits=4")
    kept = ("layers.act1.quantizer=qnn_binary", "layers.act1.bits=1")
    config = configured("quantizer=qnn_binary", "bits=1", *words, *kept, command="explain")
    report = explain.run(config)
    assert layer(report, "fc2")["signed"]
    assert layer(report, "fc2")["quantized_before"] == "act1 (BinaryActivation, 1 bit)"
    assert [entry["name"] for entry in report["layers"] if entry["quantized_before"]] == ["fc2"]
    shown = capsys.readouterr().out
    assert "quantized a second time: fc2 reads act1 (BinaryActivation, 1 bit)" in shown


@pytest.mark.parametrize(("scope", "alphas", "values"), [("channel", 3, 3 * 512), ("network", 1, 1)])
def test_alphas_are_counted_once(scope: str, alphas: int, values: int, capsys: pytest.CaptureFixture[str]) -> None:
    report = explained(capsys, f"quantizer.activation.scope={scope}")
    assert (report["alphas"], report["alpha_values"]) == (alphas, values)


def test_a_second_tensor_of_integers_takes_a_second_product() -> None:
    shape = (8, 8, 3, 3)
    weight = OMSEWeight(4, Site("conv", "weight", shape), dual_above=0.0).eval()
    planned = LayerPlan("conv", "Conv2d", shape, [((8, 5, 5), (8, 5, 5))], weight=weight, activation_bits=8)
    row = explain.layer_row(planned, Plan([planned], [], [], ()))
    assert (row.products, row.bit_operations) == (1, row.macs * 4 * 8)
    weight.fit_weights(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    row = explain.layer_row(planned, Plan([planned], [], [], ()))
    assert (row.products, row.bit_operations) == (2, row.macs * 2 * 4 * 8)
    assert CorrectedWeight(weight).products == 2


class Reused(nn.Module):
    """A convolution called at two sizes, and two layers with one tensor of weights."""

    def __init__(self, *_: object) -> None:
        super().__init__()
        self.stem, self.conv, self.pool = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 1), nn.MaxPool2d(2)
        self.first, self.second, self.fc = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 10)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.pool(self.conv(self.stem(x))))
        return self.fc(self.second(self.first(x.mean((2, 3)))))


def test_every_call_is_counted_and_shared_weights_are_stored_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain, "build_float", Reused)
    report = explained(capsys, "quantizer=uniform", "bits=4", "first_last=same")
    assert layer(report, "conv")["macs"] == 8 * 8 * (8 * 8 + 4 * 4)
    assert report["totals"]["parameters"] == 8 + 64 + 64 + 80
    assert report["totals"]["weight_bytes"] == (8 + 64 + 64 + 80) // 2
    assert report["totals"]["macs"] == sum(entry["macs"] for entry in report["layers"])


def test_three_bits_are_packed_and_rounded_up(capsys: pytest.CaptureFixture[str]) -> None:
    report = explained(capsys, "bits=3", "model.hidden=[5,5]", "first_last=same")
    weights = {entry["name"]: entry["weight_bytes"] for entry in report["layers"]}
    assert weights == {"fc1": 64 * 5 * 3 // 8, "fc2": 10, "fc": 19}  # 75 and 150 bits


def test_the_float_network_has_a_plan_too(capsys: pytest.CaptureFixture[str]) -> None:
    report = explained(capsys, "quantizer=none", "bits=2")
    assert report["alphas"] == 0
    assert {entry["weight_bits"] for entry in report["layers"]} == {32}
    assert {entry["note"] for entry in report["layers"]} == {"all: quantizer none"}


def test_the_text_shows_layers_ends_and_totals(capsys: pytest.CaptureFixture[str]) -> None:
    explain.run(configured("layers.fc2.quantizer=none", command="explain"))
    shown = capsys.readouterr().out
    assert "mlp for digits, quantizer=pact, W4A4; first layer W32A32, last layer W32A32" in shown
    rows = {line.split()[0]: line for line in shown.splitlines() if line.split()}
    assert "all: quantizer none" in rows["fc2"]
    assert "weights, input" in rows["fc1"]
    assert "ReLU" in rows["act1"] and "PACT" in rows["act2"]
    assert "4 layers, 2 learned clip levels or steps (2 values)" in shown


def test_the_text_lists_modules_without_a_quantized_form(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class WithEmbedding(nn.Sequential):
        def __init__(self, *_: object) -> None:
            super().__init__(
                nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 2, 3)
            )
            self.append(nn.Flatten()).append(nn.Linear(12, 10))

    monkeypatch.setattr(explain, "build_float", WithEmbedding)
    explain.run(configured(command="explain"))
    assert "stays float: 4 (Conv1d" in capsys.readouterr().out


def test_batch_norms_that_cannot_be_folded_are_in_the_plan_of_a_calibrated_network(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("model=resnet20", "quantizer=pwlq", "bits=w4a8")
    assert explained(capsys, *words)["float_norms"] == []
    # Pre-activation: a norm that reads the sum of two branches has no layer of its own before it.
    norms = explained(capsys, *words, "explain.fold=true")["float_norms"]
    assert len(norms) == 9
    assert all("not by a Conv2d or Linear" in norm["reason"] for norm in norms)
    run = configured(*words, "model.weights=some", command="ptq")
    whole = {
        norm["name"] for norm in explain.run(replace(run, model={**run.model, "weights": None}))["float_norms"]
    }
    assert whole == {norm["name"] for norm in norms}
    printed = capsys.readouterr().out
    assert all(f"not folded, a float affine of each channel: {name} (" in printed for name in whole)


def test_a_narrow_screen_breaks_no_name_and_no_number(resnet18: dict[str, Any]) -> None:
    for width, tables in ((79, 2), (200, 1)):
        console = Console(width=width, file=io.StringIO())
        explain._print_layers(console, resnet18["layers"])
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert max(map(len, text.splitlines())) <= width
        words = text.split()
        for row in resnet18["layers"]:
            assert words.count(row["name"].rstrip(",")) >= tables
            assert f"{row['bit_operations']:,}" in words
        assert ("stays float of" in text) == (tables == 2)

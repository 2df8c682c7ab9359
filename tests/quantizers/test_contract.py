"""The promise of a quantizer, kept by every file in configs/quantizer: a new method is tested by being there."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, fx, nn

from qexp.build import build, locate
from qexp.errors import ConfigError
from qexp.graph.tracing import trace
from qexp.ops import clip_search
from qexp.ops.rounding import ste
from qexp.paths import config_dir
from qexp.quantizers.base import BITS, Quantizer, Site, scope_shape

SITES = {
    "weight": Site("conv", "weight", (6, 4, 3, 3)),
    "activation": Site("act", "activation", (4, 5, 5)),
    "input": Site("conv.input", "input", (4, 5, 5), signed=True),
}
INPUTS = {"weight": (6, 4, 3, 3), "activation": (2, 4, 5, 5), "input": (2, 4, 5, 5)}


def cases() -> Iterator[tuple[str, dict[str, Any], str, str | None]]:
    """Yield (file, node, role, scope) for every quantizer of every file, in each scope it takes.

    One that several files have is the first one's.
    """
    seen = set()
    for path in sorted((config_dir() / "quantizer").glob("*.yaml")):
        method = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        for part, roles in (("weight", ["weight"]), ("activation", ["activation", "input"])):
            if (node := method.get(part)) is not None:
                every = ("layer", "channel") if part == "weight" else ("layer", "channel", "element", "network")
                scopes = every if "scope" in node else (None,)
                if "offset" in node.get("form", ""):  # has levels below 0, so it takes no ReLU's place
                    roles = ["input"]
                if (key := (part, json.dumps(node, sort_keys=True))) not in seen:
                    seen.add(key)
                    yield from ((path.stem, node, role, scope) for role in roles for scope in scopes)


def make(node: dict[str, Any], role: str, scope: str | None = None, bits: int | None = None) -> Quantizer:
    """Build a quantizer; `bits` of None is 4, or the widest below 32 of a method without 4 bits."""
    extra = {} if scope is None else {"scope": scope}
    if bits is None:
        widths = locate(node["_target_"]).supported_bits  # type: ignore[attr-defined]
        bits = 4 if 4 in widths else max(width for width in widths if width < 32)
    quantizer: Quantizer = build({**node, **extra}, bits=bits, site=SITES[role], rounding=ste)
    return quantizer


def supported(node: dict[str, Any], role: str, bits: int) -> bool:
    """Whether the quantizer exists at this width; a signed input it may refuse, with a ConfigError."""
    if bits not in locate(node["_target_"]).supported_bits:  # type: ignore[attr-defined]
        return False
    if role != "input":
        return True
    try:
        make(node, role, bits=bits)
    except ConfigError:
        return False
    return True


CASES = [
    pytest.param(node, role, scope, id=f"{name}-{role}-{scope or 'none'}") for name, node, role, scope in cases()
]
WIDTHS = [
    pytest.param(node, role, scope, bits, id=f"{name}-{role}-{scope or 'none'}-{bits}")
    for name, node, role, scope in cases()
    for bits in BITS
    if supported(node, role, bits)
]


def sample(role: str, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(INPUTS[role], generator=torch.Generator().manual_seed(1))


def test_there_are_methods_to_test() -> None:
    assert {"pact", "dorefa"} <= {name for name, *_ in cases()}


@pytest.mark.parametrize(("node", "role", "scope", "bits"), WIDTHS)
def test_values_and_codes(node: dict[str, Any], role: str, scope: str | None, bits: int) -> None:
    quantizer, x = make(node, role, scope, bits), sample(role)
    quantizer.calibrate(x)
    y = quantizer(x)
    assert (y.shape, y.dtype) == (x.shape, torch.float32)
    if bits == 32:
        with pytest.raises(ConfigError):
            quantizer.codes(x)
        return
    codes = quantizer.codes(x)
    assert codes.values.dtype == torch.int32 and codes.codebook.dtype == torch.float32
    assert codes.values.min() >= 0 and codes.values.max() < codes.levels <= 2**quantizer.stored_bits
    assert quantizer.stored_bits >= bits
    assert torch.equal(codes.decode(), y), "the decoded integers are the values, exactly"
    assert not codes.decode().requires_grad
    with torch.no_grad():
        assert torch.equal(quantizer(x), y), "evaluation gives training's values"


@pytest.mark.parametrize(("node", "role", "scope"), CASES)
def test_other_widths_are_refused(node: dict[str, Any], role: str, scope: str | None) -> None:
    for bits in (0, 9, 16, -4):
        with pytest.raises(ConfigError, match=f"{SITES[role].name}: bits={bits} is not supported"):
            make(node, role, scope, bits)


def unlisted(node: dict[str, Any]) -> list[int]:
    return sorted(set(BITS) - set(locate(node["_target_"]).supported_bits))  # type: ignore[attr-defined]


@pytest.mark.parametrize(("node", "role", "scope"), [case for case in CASES if unlisted(case.values[0])])
def test_widths_it_does_not_list_are_refused(node: dict[str, Any], role: str, scope: str | None) -> None:
    for bits in unlisted(node):
        with pytest.raises(ConfigError, match=f"bits={bits} is not supported"):
            make(node, role, scope, bits)


@pytest.mark.parametrize(("node", "role", "scope"), CASES)
def test_gradients_are_finite_and_reach_everything_learned(
    node: dict[str, Any], role: str, scope: str | None
) -> None:
    quantizer, x = make(node, role, scope), sample(role, 30.0).requires_grad_()
    (quantizer(x) * torch.randn(x.shape)).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.any()
    for name, parameter in quantizer.learned().items():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
        assert parameter.dtype == parameter.grad.dtype == torch.float32


def holds_numbers(quantizer: Quantizer) -> bool:
    """Say whether all is finite; what is put on trained weights may be NaN as a whole: not fitted yet."""
    fits = type(quantizer).fit_weights, type(quantizer).fit_activations
    unfitted = fits != (Quantizer.fit_weights, Quantizer.fit_activations)
    values = quantizer.state_dict().values()
    return all(bool(value.isfinite().all()) or (unfitted and bool(value.isnan().all())) for value in values)


@pytest.mark.parametrize(("node", "role", "scope"), CASES)
def test_calibration_keeps_the_tensors(node: dict[str, Any], role: str, scope: str | None) -> None:
    quantizer = make(node, role, scope)
    before = {name: (id(value), value.data_ptr()) for name, value in quantizer.state_dict(keep_vars=True).items()}
    quantizer.calibrate(sample(role))
    after = {name: (id(value), value.data_ptr()) for name, value in quantizer.state_dict(keep_vars=True).items()}
    assert before == after
    assert holds_numbers(quantizer)


@pytest.mark.parametrize(("node", "role", "scope"), CASES)
def test_under_mixed_precision_the_parameters_stay_float32(
    node: dict[str, Any], role: str, scope: str | None
) -> None:
    quantizer = make(node, role, scope)
    with torch.autocast("cpu", torch.bfloat16):
        x = sample(role).bfloat16().requires_grad_()
        y = quantizer(x)
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    for parameter in quantizer.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is None or parameter.grad.dtype == torch.float32


@pytest.mark.parametrize(("node", "role", "scope"), CASES)
def test_each_parameter_is_in_one_group(node: dict[str, Any], role: str, scope: str | None) -> None:
    quantizer = make(node, role, scope)
    grouped = [id(parameter) for group in quantizer.parameter_groups() for parameter in group.parameters]
    assert sorted(grouped) == sorted(id(parameter) for parameter in quantizer.parameters())
    assert {id(value) for value in quantizer.learned().values()} <= set(grouped)
    assert quantizer.penalized().items() <= quantizer.learned().items()
    for name in quantizer.learned():
        assert getattr(quantizer, name) is quantizer.learned()[name], "share() goes by these names"


@pytest.mark.parametrize(("node", "role", "scope"), CASES)
def test_a_state_dict_brings_it_back(node: dict[str, Any], role: str, scope: str | None) -> None:
    quantizer, fresh, x = make(node, role, scope), make(node, role, scope), sample(role)
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.mul_(0.37)
    fresh.load_state_dict(quantizer.state_dict())
    assert torch.equal(fresh(x), quantizer(x))
    assert torch.equal(copy.deepcopy(quantizer)(x), quantizer(x))
    assert all(
        a is not b for a, b in zip(copy.deepcopy(quantizer).parameters(), quantizer.parameters(), strict=True)
    )


@pytest.mark.parametrize(("node", "role", "scope"), CASES)
def test_what_it_says_of_itself(node: dict[str, Any], role: str, scope: str | None) -> None:
    quantizer, x = make(node, role, scope), sample(role)
    description = quantizer.describe(x)
    assert description.learned.keys() == quantizer.learned().keys()
    assert not any(value.requires_grad for value in description.learned.values())
    assert all(0 <= float(share) <= 1 for share in description.shares.values())
    assert description.levels is not None and 1 <= description.levels <= 2**quantizer.stored_bits
    assert quantizer.describe().levels is None
    if scope is not None:
        assert quantizer.scope == scope
        assert all(value.shape == scope_shape(scope, SITES[role]) for value in quantizer.learned().values())


INPUT_KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "constant": lambda x: torch.full_like(x, 0.7),
    "zero": torch.zeros_like,
    "tiny": lambda x: x * 1e-30,
    "heavy-tailed": lambda x: x / x.flatten().roll(1).reshape(x.shape).pow(3),
}


@pytest.mark.parametrize("kind", INPUT_KINDS)
@pytest.mark.parametrize(("node", "role", "scope"), CASES)
def test_unusual_inputs_give_numbers(node: dict[str, Any], role: str, scope: str | None, kind: str) -> None:
    for bits in filter(lambda bits: supported(node, role, bits), BITS):
        quantizer, x = make(node, role, scope, bits), INPUT_KINDS[kind](sample(role)).requires_grad_()
        try:
            quantizer.calibrate(x.detach())
        except ConfigError as error:  # a learned step that would start at zero
            assert kind == "zero" and "zeros alone" in str(error), f"{bits} bits"
            continue
        y = quantizer(x)
        y.sum().backward()
        assert y.isfinite().all(), f"{bits} bits"
        assert x.grad is not None and x.grad.isfinite().all(), f"{bits} bits"
        assert holds_numbers(quantizer), f"{bits} bits"


@pytest.mark.parametrize(("node", "role", "scope"), [case for case in CASES if case.values[2] in (None, "layer")])
def test_one_element(node: dict[str, Any], role: str, scope: str | None) -> None:
    x = torch.full((1,) * len(INPUTS[role]), 0.3)
    quantizer = make(node, role, scope)
    quantizer.calibrate(x)
    assert torch.equal(quantizer.codes(x).decode(), quantizer(x))
    assert quantizer(x).isfinite().all()


@pytest.mark.parametrize(("node", "role", "scope", "bits"), [case for case in WIDTHS if case.values[3] < 32])
def test_it_says_whether_it_uses_its_rounding(
    node: dict[str, Any], role: str, scope: str | None, bits: int
) -> None:
    quantizer, called = make(node, role, scope, bits), []
    quantizer.rounding = lambda x: called.append(True) or ste(x)
    quantizer(sample(role))
    assert bool(called) is quantizer.rounds


@pytest.mark.parametrize(("node", "role", "scope"), CASES)
def test_tracing_leaves_it_whole(node: dict[str, Any], role: str, scope: str | None) -> None:
    (graph,) = trace(nn.Sequential(nn.Identity(), make(node, role, scope)))
    assert [n.target for n in graph.graph.nodes if n.op == "call_module"] == ["0", "1"]
    assert isinstance(graph, fx.GraphModule)


@pytest.mark.parametrize(("node", "role", "scope"), CASES)
def test_it_compiles_as_one_graph(
    node: dict[str, Any], role: str, scope: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_search, "CANDIDATES", 3)  # of a search that is unrolled: the graph of 80 takes long
    torch._dynamo.reset()
    quantizer, x = make(node, role, scope), sample(role)
    compiled = torch.compile(quantizer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), quantizer(x))

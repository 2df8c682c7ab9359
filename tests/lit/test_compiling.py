from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from qexp.errors import ConfigError
from qexp.lit import compiling
from qexp.lit.evaluate import evaluate
from qexp.quantizers.base import Site
from qexp.quantizers.gradient import GradientQuantizer
from qexp.quantizers.pact import PACT

CPU = torch.device("cpu")


@pytest.fixture
def traced_only(monkeypatch):
    """Dynamo without code generation: the same graphs and limits, in a fraction of the time."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    yield
    compiling.reset()


@pytest.mark.slow
def test_nine_networks_in_one_process_are_all_compiled(small_run, tmp_path, traced_only):
    for width in range(9):  # dynamo keeps eight graphs of one function
        network = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 4 + width), PACT(4, Site("act", "activation")), nn.Linear(4 + width, 10)
        )
        _, metrics = small_run.train(tmp_path / str(width), epochs=1, network=network, trainer_compile=True)
        assert metrics["compiled"] == 1.0


def test_the_recompile_limit_is_an_error_and_reset_lifts_it(traced_only):
    step = compiling.compile_step(lambda x: x * 2, CPU)
    sizes = iter(range(1, 100))
    with pytest.raises(Exception, match=r"recompile_limit"):
        for size in sizes:
            step(torch.ones(size))
    compiling.reset()
    step(torch.ones(next(sizes)))


def test_a_graph_break_is_an_error(traced_only):
    def broken(x):
        torch._dynamo.graph_break()
        return x * 2

    step = compiling.compile_step(broken, CPU)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        step(torch.ones(3))


@pytest.mark.slow
def test_a_compiled_step_draws_what_an_uncompiled_one_draws():
    if compiling._missing_compiler(CPU) is not None:
        pytest.skip("no C++ compiler here")

    quantizer = GradientQuantizer(4)

    def step(x):
        return (quantizer(x) ** 2).sum()

    x, found = torch.randn(8, 100).requires_grad_(), []
    for each in (step, compiling.compile_step(step, CPU)):
        torch.manual_seed(0)
        (gradient,) = torch.autograd.grad(each(x), x)
        found.append((gradient, torch.rand(3)))  # the generator is left where the other leaves it
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.slow
def test_a_compiled_run_learns_what_an_eager_one_learns(small_run, tmp_path):
    if compiling._missing_compiler(CPU) is not None:
        pytest.skip("no C++ compiler here")
    _, compiled = small_run.train(tmp_path / "compiled", epochs=2, trainer_compile=True)
    _, eager = small_run.train(tmp_path / "eager", epochs=2)
    assert compiled["compiled"] == 1.0
    # A fused step rounds otherwise, so the runs are alike, not equal.
    assert compiled["train_accuracy"] == pytest.approx(eager["train_accuracy"], abs=0.05)


def test_auto_compiles_only_what_pays(monkeypatch, caplog):
    convolution, linear = nn.Sequential(nn.Conv2d(1, 1, 1)), nn.Linear(1, 1)
    assert compiling.pays(convolution, 2001)
    assert not compiling.pays(convolution, 2000)
    assert not compiling.pays(linear, 10**6)
    assert not compiling.decide(False, CPU, lambda: True)
    assert not compiling.decide("auto", CPU, lambda: False)
    monkeypatch.setattr(compiling, "_missing_compiler", lambda device: "no C++ compiler was found")
    assert not compiling.decide("auto", CPU, lambda: True)
    assert "no C++ compiler was found" in caplog.text
    with pytest.raises(ConfigError, match=r"trainer\.compile=true: no C\+\+ compiler"):
        compiling.decide(True, CPU, lambda: True)


def test_bfloat16_trains_and_parameters_stay_float32(small_run, tmp_path):
    network, metrics = small_run.train(tmp_path, epochs=2, trainer_precision="bfloat16")
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert metrics["train_accuracy"] > 0.5


def test_evaluation_is_float32_whatever_surrounds_it(small_run):
    from qexp.data.digits import Digits

    seen = []
    network = small_run.network()
    network[3].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        evaluate(network, Digits(), small_run.config(trainer_precision="bfloat16"))
    assert set(seen) == {torch.float32}

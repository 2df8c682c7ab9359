"""`qexp bench`: what is counted and compared is right; no test here depends on how long anything takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qexp.benchmarks import programs, training, xnor
from qexp.benchmarks.measure import Measure, Spread, in_turns, ratios, spread
from qexp.benchmarks.memory import held_bytes
from qexp.benchmarks.steps import TrainingStep, random_batches, wait_for_compile_workers
from qexp.commands import bench
from qexp.commands.network import build_network
from qexp.data.digits import Digits
from qexp.errors import ConfigError, TrainingError
from qexp.lit import cpu
from qexp.ops.clip import clip_round
from qexp.xnor import triton_kernel
from qexp.xnor.extension import NoCompilerError
from qexp.xnor.product import TorchProduct

from ..composing import parsed

ONE = Spread(1.0, 1.0, 1.0)


def test_both_sides_take_turns_and_the_warm_up_is_not_timed() -> None:
    order: list[str] = []
    works = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = in_turns(works, 3, warm_up=2, finish=lambda: order.append("-"))
    assert "".join(order) == "-a--b-" * 5
    assert {name: len(each) for name, each in seconds.items()} == {"a": 3, "b": 3}


def test_a_ratio_is_taken_round_by_round() -> None:
    # The second round was ten times slower for both: the ratio of that round is not.
    assert ratios([1.2, 11.0, 1.0], [1.0, 10.0, 1.0]) == Spread(1.1, 1.0, 1.2)
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


@pytest.mark.parametrize(
    ("measure", "held"),
    [
        (Measure("step", "x", spread([1.1]), 1.1), True),
        (Measure("step", "x", spread([1.2, 1.0, 1.3]), 1.1), False),
        (Measure("digits", "x", spread([0.97]), 0.97, at_least=True), True),
        (Measure("digits", "x", spread([0.96]), 0.97, at_least=True), False),
        (Measure("step", "x", None, 1.1), False),
        (Measure("data", "x", None), None),
    ],
)
def test_a_limit(measure: Measure, held: bool | None) -> None:
    assert measure.held is held


def test_bytes_held_by_a_network_counted_by_hand() -> None:
    network = nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 5, bias=False))
    images = torch.zeros(4, 3)
    # The images (4 x 3 floats) for the first weights' gradient, and the ReLU's output (4 x 2), which two keep:
    # the ReLU itself and the second layer. The weights that the second layer keeps are parameters.
    assert held_bytes(lambda: network(images).sum(), network.parameters()) == 48 + 32


def test_a_view_counts_as_the_whole_storage_it_keeps_alive() -> None:
    weight = nn.Parameter(torch.zeros(2))
    values = torch.zeros(10, 2)
    assert held_bytes(lambda: (values[:1] * weight).sum(), [weight]) == 80


def test_an_eager_clip_keeps_one_byte_an_element() -> None:
    x, level = torch.zeros(4, 2, requires_grad=True), nn.Parameter(torch.tensor(1.0))
    assert held_bytes(lambda: clip_round(x, level, 15).sum(), [x, level]) == 8


def test_random_batches_have_the_sources_form() -> None:
    source = Digits()
    batches = random_batches(source, 8, 40, torch.device("cpu"))
    images, labels = next(iter(batches))
    lowest, highest = source.input_range()
    assert len(batches) == 5
    assert images.shape == (8, *source.shape) and images.dtype == torch.float32
    assert lowest[0] <= float(images.min()) < float(images.max()) <= highest[0]
    assert int(labels.min()) >= 0 and int(labels.max()) < source.num_classes


@pytest.mark.parametrize("precision", bench.PRECISIONS)
def test_a_step_is_one_of_training(precision: str) -> None:
    config = parsed("batch_size=16")
    network = build_network(config, Digits())
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    step = TrainingStep(network, config, Digits(), precision, compiled=False)
    step()
    moved = [name for name, value in network.named_parameters() if not torch.equal(value, before[name])]
    assert any(name.endswith("alpha") for name in moved)
    assert any(name.endswith("weight") for name in moved)
    assert step.task.samples == 16
    assert all(value.dtype == torch.float32 for value in network.parameters())


def test_without_children_there_is_nothing_to_wait_for() -> None:
    assert wait_for_compile_workers(patience=5.0, look=0.01)


def contest(**changes: Any) -> training.Contest:
    settings: dict[str, Any] = {
        "name": "pact W4A4",
        "config": parsed("quantizer=pact", "batch_size=16", "trainer.device=cpu"),
        "float_config": parsed("quantizer=none", "batch_size=16", "trainer.device=cpu"),
        "source": Digits(),
        "network": build_network,
        "precision": "float32",
        "rounds": 2,
    }
    return training.Contest(**{**settings, **changes})


def test_training_topics_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_can_compile", lambda device: False)
    monkeypatch.setattr(training, "_EPOCH_SAMPLES", 160)
    compiled, eager = training.step(contest())
    assert compiled.spread is None and compiled.held is False and "no C++ compiler" in compiled.basis
    assert eager.what == "pact W4A4 / float, eager, float32"
    assert eager.spread is not None and eager.spread.low <= eager.spread.median <= eager.spread.high
    (share,) = training.data(contest())
    assert share.spread is not None and share.limit == 0.03 and "eager pact" in share.what
    assert len(training.step(contest(precision="bfloat16"))) == 1


def test_memory_compares_the_two_networks() -> None:
    (same,) = training.memory(contest(config=contest().float_config))
    assert same.spread == ONE
    (quantized,) = training.memory(contest())
    assert quantized.spread is not None and quantized.spread.median > 1.0


def test_data_read_by_workers_is_not_measured() -> None:
    (row,) = training.data(contest(source=type("Imagenet", (), {"name": "imagenet"})()))
    assert row.spread is None and row.held is None and "worker processes" in row.basis


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"SIDE": 64, "FIGURE_SIDE": 128, "BATCH": 2, "FIGURE_BATCH": 3, "CONVOLUTION_BATCH": 1}
    for name, size in {**sizes, "HIDDEN": (32, 32)}.items():
        monkeypatch.setattr(xnor, name, size)


def test_every_layer_of_the_convnet_is_measured_on_bits(small: None) -> None:
    found = [one for one in xnor.measures(1, gpu=False) if one.what.endswith("float32 / packed")]
    assert [one.what.removesuffix(", float32 / packed") for one in found] == [
        "64^3 product",
        "MNIST MLP, batch 2",
        "3x3 3 of 8 bits-128 at 32x32",
        "3x3 128-128 at 32x32",
        "3x3 128-256 at 16x16",
        "3x3 256-256 at 16x16",
        "3x3 256-512 at 8x8",
        "3x3 512-512 at 8x8",
        "linear 8192-1024",
        "linear 1024-1024",
        "linear 1024-10",
        "CIFAR-10 ConvNet, batch 1",
    ]
    assert all(one.spread is not None and one.spread.median > 0 for one in found)


def test_a_gpus_products_are_compared_with_the_packed_one(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(xnor, "TritonProduct", lambda device: asked.append(device) or TorchProduct())
    found = list(xnor._on_gpu(32, 2, 1, "kernels", "cpu"))
    product, network = "32^3 product on the GPU", "MNIST MLP on the GPU, batch 2"
    assert [one.what for one in found] == [
        *(f"{product}, {name} / packed" for name in ("float32", "bfloat16", "int8")),
        *(f"{network}, {name} / packed" for name in ("float32", "bfloat16")),
    ]
    assert asked == ["cpu"] and all(one.spread is not None for one in found)


def test_a_gpu_without_triton_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernel, "triton", None)
    (found,) = xnor._on_gpu(32, 2, 1, "xnor")
    assert found.spread is None and "`pip install triton`" in found.basis


@pytest.mark.parametrize(("topic", "of_gpu"), [(xnor.measures, "xnor"), (xnor.kernels, "kernels")])
def test_a_gpu_is_measured_without_a_compiler_for_the_cpu(
    topic: Callable[..., Any], of_gpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> None:
        raise NoCompilerError("no C++ compiler")

    monkeypatch.setattr(xnor, "native", none)
    monkeypatch.setattr(xnor, "_on_gpu", lambda side, batch, rounds, topic: [Measure(topic, "on the GPU", ONE)])
    on_cpu, on_gpu = topic(1, gpu=True)
    assert on_cpu.spread is None and "no C++ compiler" in on_cpu.basis
    assert (on_gpu.topic, on_gpu.what) == (of_gpu, "on the GPU")


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
@pytest.mark.parametrize("topic", ["ptq", "xnor", "kernels"])
def test_a_gpu_that_is_not_there_is_not_measured(topic: str) -> None:
    with pytest.raises(ConfigError, match="--device cuda: no CUDA device here"):
        bench.main([topic, "--device", "cuda", "--rounds", "1"])


def test_the_kernel_figure_stands_beside_the_printed_ratios(small: None) -> None:
    product, network = xnor.kernels(1, gpu=False)
    assert product.spread is not None and product.basis.endswith("published, on a GPU: 3.46")
    assert network.spread is not None and network.basis.endswith("published, on a GPU: 1.65")


def test_startup_counts_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, modules = programs.startup(1)
    assert seconds.spread is not None and seconds.limit == 0.3
    assert modules.spread == Spread(0.0, 0.0, 0.0) and modules.held


def test_a_program_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"`qexp trian` ended with exit code 2: .*Did you mean 'train'"):
        programs._timed(["trian"], tmp_path)


@pytest.fixture
def fake_topics(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def replace(*measures: Measure) -> None:
        monkeypatch.setattr(programs, "startup", lambda rounds: list(measures))

    return replace


def test_the_table_and_its_exit_code(
    fake_topics: Callable[..., None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    slow = Measure("startup", "qexp --help", spread([0.5, 0.4, 0.6]), 0.3, "{:.3f} s", basis="3 processes")
    fake_topics(slow)
    file = tmp_path / "bench.json"
    assert bench.main(["startup", "--json", str(file)]) == 0
    out, meanwhile = capsys.readouterr()
    assert "  qexp --help: 0.500 s (3 processes); limit 0.300 s, NOT HELD" in meanwhile.splitlines()
    for text in ("0.500 s", "0.400 s to 0.600 s", "0.300 s", "NOT HELD", "torch ", "threads", "again"):
        assert text in out
    record = json.loads(file.read_text())
    (row,) = record["measures"]
    assert (row["value"], row["low"], row["high"], row["limit"], row["held"]) == (0.5, 0.4, 0.6, 0.3, False)
    assert record["settings"]["topics"] == ["startup"] and record["machine"]["cores"] >= 1
    assert bench.main(["startup", "--check"]) == 1
    fake_topics(Measure("startup", "qexp --help", spread([0.2]), 0.3))
    assert bench.main(["startup", "--check"]) == 0


def test_forms(fake_topics: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    fake_topics(Measure("startup", "qexp --help", spread([0.2]), 0.3))
    bench.main(["startup", "--format", "json"])
    assert json.loads(capsys.readouterr().out)["measures"][0]["held"] is True
    bench.main(["startup", "--format", "markdown"])
    assert "| startup | qexp --help | 0.200 |" in capsys.readouterr().out


def test_the_long_topics_are_asked_for_by_name() -> None:
    def topics(*words: str) -> list[str]:
        arguments = bench.parser().parse_args(words)
        bench.check(arguments)
        return list(arguments.topics)

    assert topics() == ["step", "data", "memory", "startup"]
    assert topics("digits", "step") == ["step", "digits"]
    assert topics("all") == list(bench.TOPICS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["steps"], "topic steps: choose from step, "),
        (["--precision", "float16"], "--precision float16: choose from float32, bfloat16"),
        (["--quantizer", ","], "--quantizer: name at least one"),
        (["--bits", "9"], "9"),
        (["memory", "epochs=3"], "epochs=3: what may stand here is rounding, "),
        (["memory", "quantizer=lsq"], "quantizer=lsq: what may stand here is "),
        (["memory", "rounding=arctan"], "unknown rounding 'arctan'"),
        (["--json", "nowhere/bench.json"], "there is no folder nowhere"),
        (["memory", "--quantizer", "pcat"], "Did you mean 'pact'"),
        (["memory", "--threads", "0"], "argument --threads: '0' is no whole number above 0"),
        (["memory", "--batch-size", "x"], "argument --batch-size: 'x' is no whole number above 0"),
    ],
)
def test_mistakes(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bench.main(words)


def test_how_the_network_is_quantized_may_be_said_anywhere(
    fake_topics: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(training, "memory", lambda one: seen.append(one) or [])
    bench.main(["memory", "--quantizer", "lsq", "rounding=asr", "--precision", "float32", "rounding.k=2"])
    (one,) = seen
    assert one.name == "lsq rounding=asr rounding.k=2 W4A4"
    assert one.config.rounding["k"] == 2 and one.config.quantizer["weight"]["_target_"].endswith("LSQ")
    assert one.float_config.rounding["_target_"].endswith("ste")


def test_steps_have_the_threads_and_the_images_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, seen = [], []
    monkeypatch.setattr(cpu, "prepare", threads.append)
    monkeypatch.setattr(training, "memory", lambda one: seen.append(one) or [])
    bench.main(["memory", "--threads", "3", "--batch-size", "7", "--precision", "float32"])
    (one,) = seen
    assert threads == [3]
    assert one.config.batch_size == one.float_config.batch_size == 7


def test_a_configuration_is_what_train_composes() -> None:
    config = bench.composed("model=resnet20", "quantizer=dorefa", "bits=w4a8", "experiment.name=bench")
    assert (config.bits.weight, config.bits.activation) == (4, 8)
    assert config.dataset["name"] == "cifar10"


def test_help_names_every_topic_with_its_limit(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        bench.main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(f"  {name}" in out for name in bench.TOPICS)


@pytest.mark.long
def test_a_finished_sweep_and_the_default_run() -> None:
    (again,) = programs.sweep(threads=1)
    assert again.spread is not None
    _, accuracy = programs.digits(threads=1)
    assert accuracy.held

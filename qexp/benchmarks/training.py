"""The topics about a training step: what quantization costs in time and memory, and what feeding it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from qexp.benchmarks.measure import Measure, Spread, in_turns, milliseconds, ratios
from qexp.benchmarks.memory import cuda_peak, held_bytes
from qexp.benchmarks.steps import (
    TrainingStep,
    finishing,
    fresh_compiler,
    random_batches,
    wait_for_compile_workers,
)
from qexp.config import Config
from qexp.data.arrays import ArraySource
from qexp.data.base import ImageSource
from qexp.lit import compiling
from qexp.lit.evaluate import device_of

COMPILED_RATIO = 1.10
EAGER_RATIO = 1.6
DATA_SHARE = 0.03
MEMORY_RATIO = 1.35

WARM_UP = 5
_EPOCH_SAMPLES = 50_000
_EPOCH_BYTES = 512 * 2**20
_NO_COMPILER = "not measured: no C++ compiler here; install g++ or clang"


@dataclass(frozen=True)
class Contest:
    """A quantized network against the float network it was made from, in one precision.

    Attributes:
        name: of the quantized network, such as `pact W4A4`.
        config: of its run; `float_config` of the float network's.
        network: makes the network of a configuration, anew at each call.
        rounds: how often each is timed.
    """

    name: str
    config: Config
    float_config: Config
    source: ImageSource
    network: Callable[[Config, ImageSource], torch.nn.Module]
    precision: str
    rounds: int
    say: Callable[[str], None] = lambda text: None

    def step(self, config: Config, *, compiled: bool) -> TrainingStep:
        """Return the step of one of the two networks."""
        network = self.network(config, self.source)
        return TrainingStep(network, config, self.source, self.precision, compiled=compiled)

    def pair(self, *, compiled: bool) -> dict[str, TrainingStep]:
        """Return the steps of both, by `quantized` and `float`."""
        configs = {"quantized": self.config, "float": self.float_config}
        return {name: self.step(config, compiled=compiled) for name, config in configs.items()}


def step(contest: Contest) -> list[Measure]:
    """Return the ratio of the quantized to the float step: compiled, and in float32 eager too."""
    measures = [_step_ratio(contest, compiled=True)]
    if contest.precision == "float32":
        measures.append(_step_ratio(contest, compiled=False))
    return measures


def _step_ratio(contest: Contest, *, compiled: bool) -> Measure:
    kind, limit = ("compiled", COMPILED_RATIO) if compiled else ("eager", EAGER_RATIO)
    what = f"{contest.name} / float, {kind}, {contest.precision}"
    device = device_of(contest.config)
    if compiled and not _can_compile(device):
        return Measure("step", what, None, limit, basis=_NO_COMPILER)
    contest.say(f"step: {what} ...")
    with fresh_compiler():
        pair = contest.pair(compiled=compiled)
        rest = _settle(list(pair.values()), compiled=compiled)
        seconds = in_turns(pair, contest.rounds, warm_up=WARM_UP, finish=finishing(device))
    basis = f"{milliseconds(seconds['quantized'])} / {milliseconds(seconds['float'])}{rest}"
    return Measure("step", what, ratios(seconds["quantized"], seconds["float"]), limit, basis=basis)


def data(contest: Contest) -> list[Measure]:
    """Return the time of making one training batch as a share of the quantized step that takes it."""
    device, source = device_of(contest.config), contest.source
    compiled = _can_compile(device)
    kind = "compiled" if compiled else "eager"
    what = f"one batch / {kind} {contest.name} step, {contest.precision}"
    if not isinstance(source, ArraySource):
        basis = f"not measured: {source.name} is read by worker processes, as fast as its disk"
        return [Measure("data", what, None, None, basis=basis)]
    contest.say(f"data: {what} ...")
    channels, height, width = source.shape
    samples = max(min(_EPOCH_SAMPLES, _EPOCH_BYTES // (channels * height * width)), contest.config.batch_size)
    batches = random_batches(source, contest.config.batch_size, samples, device)
    with fresh_compiler():
        train = contest.step(contest.config, compiled=compiled)
        rest = _settle([train], compiled=compiled)
        works: dict[str, Callable[[], object]] = {"epoch": lambda: [None for _ in batches], "step": train}
        seconds = in_turns(works, contest.rounds, warm_up=WARM_UP, finish=finishing(device))
    # A whole epoch, because its order and its draws are made once for all of its batches.
    one = [time / len(batches) for time in seconds["epoch"]]
    basis = f"{milliseconds(one)} / {milliseconds(seconds['step'])}{rest}"
    return [Measure("data", what, ratios(one, seconds["step"]), DATA_SHARE, "{:.2%}", basis=basis)]


def memory(contest: Contest) -> list[Measure]:
    """Return the ratio of the bytes held for the backward pass, and of the peak where there is a GPU."""
    device = device_of(contest.config)
    what = f"{contest.name} / float, eager, {contest.precision}"
    contest.say(f"memory: {what} ...")
    held, peak = {}, {}
    for name, one in contest.pair(compiled=False).items():
        one()  # the optimizer makes its buffers in the first step
        held[name] = held_bytes(one.loss, one.task.parameters())
        if device.type == "cuda":
            peak[name] = cuda_peak(one, device)
    measures = [_bytes_ratio(f"held for backward, {what}", held)]
    return [*measures, _bytes_ratio(f"CUDA peak, {what}", peak)] if peak else measures


def _bytes_ratio(what: str, found: dict[str, int]) -> Measure:
    ratio = found["quantized"] / found["float"]
    basis = " / ".join(f"{found[name] / 2**20:.1f} MiB" for name in ("quantized", "float"))
    return Measure("memory", what, Spread(ratio, ratio, ratio), MEMORY_RATIO, basis=basis)


def _settle(steps: Sequence[TrainingStep], *, compiled: bool) -> str:
    """Compile by a first step of each and wait for the compiler's workers; return a remark if they go on."""
    if not compiled:
        return ""
    for one in steps:
        one()
    return "" if wait_for_compile_workers() else " (while compile workers were busy: repeat)"


def _can_compile(device: torch.device) -> bool:
    return compiling.decide("auto", device, lambda: True)

"""`qexp bench`: how fast training, its data, its memory and start-up are here, each beside its limit."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexp.benchmarks import programs
from qexp.benchmarks.measure import Measure
from qexp.benchmarks.record import TRAINING, as_record, table, text
from qexp.bits import parse_bits
from qexp.commands.options import Parser
from qexp.config import Config, parse
from qexp.errors import ConfigError
from qexp.files import write_output
from qexp.report.tables import render, screen_width

if TYPE_CHECKING:
    import torch

    from qexp.benchmarks.training import Contest
    from qexp.data.base import ImageSource

FORMS = ("terminal", "markdown", "json")
PRECISIONS = ("float32", "bfloat16")
TOPICS = {
    "step": "a quantized training step / the float one: compiled (limit 1.10), eager float32 (1.6)",
    "data": "making a training batch / the step that takes it (3%)",
    "memory": "bytes kept for the backward pass, quantized / float (1.35); the peak on a GPU too",
    "ptq": "ResNet50: PWLQ weights / uniform ones (3), a forward pass with each observer (1.3; 2.5)",
    "xnor": "float32 / packed bits: a 4096^3 product (20), the MNIST MLP of batch 1000 (12), ConvNet's; GPUs",
    "kernels": "float32 / packed bits, the QNN paper's figure: a product of 8192^3, an MNIST MLP; a minute each",
    "startup": "qexp --help (0.3 s), and that it does not import torch",
    "sweep": "a finished sweep of 20 jobs typed again (10 s); makes it first, a minute or two",
    "digits": "the default run on the digits (60 s) and its accuracy (0.97)",
}
METHOD = ("rounding", "discretisation", "gradient_bits", "gradient_form", "first_last", "quantizer")
"""Keys of `qexp train` that the quantized network alone has; both have everything else alike."""
_MAY_STAND = f"{', '.join(METHOD[:-1])} and quantizer.<key>"
LONG = ("ptq", "xnor", "kernels", "sweep", "digits")

_EXAMPLES = """\
examples:
  qexp bench                                    step, data, memory and startup: some minutes, most of it compiling
  qexp bench all                                everything
  qexp bench step --quantizer dorefa --bits 2 --precision bfloat16
  qexp bench step --quantizer lsq rounding=asr discretisation=ewgs
  qexp bench ptq --rounds 5                     what quantization after training costs
  qexp bench xnor --rounds 5                    products on packed bits against torch's
  qexp bench kernels --rounds 3                 the same as a figure of the QNN paper has it
  qexp bench memory --model resnet18 --batch-size 32
  qexp bench --json bench.json --check          for a program: the numbers, and exit code 1 beyond a limit

The images are random, so no data set is needed. Nothing is kept: runs are made in a temporary folder. Ratios come
from one process in which both sides take turns; the value is the median of the rounds.
"""


def parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    topics = "\n".join(f"  {name:9}{text}" for name, text in TOPICS.items())
    options = Parser(
        prog="qexp bench",
        description="Measure how fast training, its data, its memory and start-up are here, beside limits.\n\n"
        f"topics:\n{topics}",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    short = ", ".join(name for name in TOPICS if name not in LONG)
    what = f"what to measure, or all ({short}); KEY=VALUE of {_MAY_STAND}: how the network is quantized"
    options.add_argument("topics", nargs="*", metavar="TOPIC", help=what)
    options.add_argument("--model", default="resnet20", help="network, with its data set's image size (resnet20)")
    options.add_argument("--batch-size", type=_whole, default=128, metavar="N", help="images in a step (128)")
    options.add_argument("--bits", default="4", help="4, w4a8 ... (4)")
    options.add_argument("--quantizer", default="pact", metavar="NAMES", help="one or more, with commas (pact)")
    options.add_argument(
        "--precision", default=",".join(PRECISIONS), metavar="NAMES", help="float32, bfloat16, or both (both)"
    )
    options.add_argument("--rounds", type=_whole, default=15, metavar="N", help="times each side is timed (15)")
    options.add_argument("--threads", type=_whole, metavar="N", help="of the CPU (as torch decides)")
    options.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where to measure (auto: a GPU where there is one)",
    )
    options.add_argument("--format", choices=FORMS, default="terminal", help="of what is printed (terminal)")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file, too")
    options.add_argument("--check", action="store_true", help="exit code 1 when a limit is not held")
    return options


def main(argv: Sequence[str]) -> int:
    """Measure, print the table, and return 0 (with --check: 1 when a limit is not held).

    Raises:
        QexpError: an unknown topic, model or method, a device that is not there, a program that failed.
    """
    arguments = parser().parse_intermixed_args(list(argv))
    check(arguments)
    measures = []
    for one in measure(arguments, _say):
        _say(text(one))  # they come minutes apart
        measures.append(one)
    report = as_record(settings(arguments), measures)
    if arguments.format == "json":
        print(json.dumps(report, indent=1))
    else:
        print(render(table(report, measures), arguments.format, screen_width()), end="")
    if arguments.json is not None:
        _write(arguments.json, json.dumps(report, indent=1) + "\n")
    return int(arguments.check and any(one.held is False for one in measures))


def check(arguments: argparse.Namespace) -> None:
    """Bring the topics, overrides and lists into order, in place.

    Raises:
        ConfigError: a topic, precision or width that there is none of, a key that is not the quantized network's
            alone, or a file that cannot be written.
    """
    arguments.overrides = [word for word in arguments.topics if "=" in word]
    wanted = [word for word in arguments.topics if "=" not in word]
    wanted = wanted or [name for name in TOPICS if name not in LONG]
    for word in arguments.overrides:
        key = word.partition("=")[0]
        if key.partition(".")[0] not in METHOD or key == "quantizer":
            raise ConfigError(
                f"{word}: what may stand here is {_MAY_STAND}; --quantizer and --bits choose the method."
            )
    arguments.topics = [name for name in TOPICS if name in wanted or "all" in wanted]
    arguments.quantizer = _names(arguments.quantizer)
    arguments.precision = _names(arguments.precision)
    lists = {"topic": wanted, "--precision": arguments.precision, "--quantizer": arguments.quantizer}
    known = {"topic": (*TOPICS, "all"), "--precision": PRECISIONS}
    for key, given in lists.items():
        if not given:
            raise ConfigError(f"{key}: name at least one.")
        for name in given:
            if key in known and name not in known[key]:  # qexp train says which quantizers there are
                raise ConfigError(f"{key} {name}: choose from {', '.join(known[key])}.")
    parse_bits(arguments.bits, "--bits")
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        raise ConfigError(f"--json {arguments.json}: there is no folder {arguments.json.parent}.")


def measure(arguments: argparse.Namespace, say: Callable[[str], None]) -> Iterator[Measure]:
    """Yield the measures of the topics asked for, in the order of `TOPICS`; `say` hears what begins."""
    training = [name for name in arguments.topics if name in TRAINING]
    if training:
        yield from _training(arguments, training, say)
    if "ptq" in arguments.topics:
        say("ptq: weights and observers of ResNet50 ...")
        yield from _after_training(arguments)
    if "xnor" in arguments.topics:
        say("xnor: products on packed bits; the first time a kernel is built ...")
        yield from _packed(arguments, "xnor")
    if "kernels" in arguments.topics:
        say("kernels: the products of the QNN paper's figure ...")
        yield from _packed(arguments, "kernels")
    if "startup" in arguments.topics:
        say("startup: qexp --help ...")
        yield from programs.startup(arguments.rounds)
    if "sweep" in arguments.topics:
        say("sweep: making 20 runs, then typing the command again ...")
        yield from programs.sweep(arguments.threads)
    if "digits" in arguments.topics:
        say("digits: the default run ...")
        yield from programs.digits(arguments.threads)


def _training(arguments: argparse.Namespace, topics: list[str], say: Callable[[str], None]) -> Iterator[Measure]:
    from qexp.benchmarks import training
    from qexp.lit import cpu
    from qexp.lit.evaluate import tensor_float32
    from qexp.lit.trainer import silence

    cpu.prepare(arguments.threads)
    found = list(contests(arguments, say))
    work = {"step": training.step, "data": training.data, "memory": training.memory}
    for topic in topics:
        for contest in found:
            with silence(), tensor_float32(False):  # as a run of `trainer.precision=float32`
                measures = work[topic](contest)
            yield from measures


def _after_training(arguments: argparse.Namespace) -> Iterator[Measure]:
    from qexp.benchmarks import calibration
    from qexp.lit import cpu

    cpu.prepare(arguments.threads)
    yield from calibration.measures(arguments.rounds, _device(arguments))


def _packed(arguments: argparse.Namespace, topic: str) -> Iterator[Measure]:
    from qexp.benchmarks import xnor
    from qexp.lit import cpu

    cpu.prepare(arguments.threads)
    work = {"xnor": xnor.measures, "kernels": xnor.kernels}
    yield from work[topic](arguments.rounds, gpu=_device(arguments).type == "cuda")


def _device(arguments: argparse.Namespace) -> torch.device:
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: no CUDA device here; use cpu or auto.")
    cuda = arguments.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if cuda else "cpu")


def contests(arguments: argparse.Namespace, say: Callable[[str], None]) -> Iterator[Contest]:
    """Yield each quantizer in each precision, against the float network of the same recipe."""
    from qexp.benchmarks.training import Contest
    from qexp.build import build
    from qexp.commands.network import build_network, refuse_text

    weight, activation = parse_bits(arguments.bits, "--bits")
    shared = [f"model={arguments.model}", f"batch_size={arguments.batch_size}", f"bits={arguments.bits}"]
    shared += [f"trainer.device={arguments.device}", "experiment.name=bench"]
    float_config = composed(*shared, "quantizer=none")
    refuse_text(float_config, "qexp bench measures")
    source: ImageSource = build(float_config.dataset)
    for name in arguments.quantizer:
        config = composed(*shared, f"quantizer={name}", *arguments.overrides)
        for precision in arguments.precision:
            yield Contest(
                " ".join([name, *arguments.overrides, f"W{weight}A{activation}"]),
                config,
                float_config,
                source,
                build_network,
                precision,
                arguments.rounds,
                say,
            )


def composed(*overrides: str) -> Config:
    """Return the configuration that `qexp train` makes of `overrides`.

    Raises:
        ConfigError: what `qexp train` says of a wrong word.
    """
    from qexp.jobs.composition import compose

    return parse(compose("train", overrides))


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what was asked for, without where to write it."""
    elsewhere = ("format", "json", "check")
    return {key: value for key, value in vars(arguments).items() if key not in elsewhere}


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _whole(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number above 0")
    return number


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _write(path: Path, content: str) -> None:
    try:
        write_output(path, content)
    except OSError as error:
        raise ConfigError(f"--json {path}: cannot be written ({error.strerror})") from error

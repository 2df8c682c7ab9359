"""What `qexp --help` and `qexp <command> --help` print, read from the folder's names without Hydra."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from qexp.paths import config_dir

HYDRA_COMMANDS = {
    "train": "train a network, or a sweep of them; what is done is skipped, what was stopped goes on",
    "ptq": "put quantizers on a trained float network: calibrated, never trained",
    "eval": "measure a finished run, or a float checkpoint",
    "explain": "print the plan, layer by layer, before any time is spent",
}
COMMANDS = {
    **HYDRA_COMMANDS,
    "list": "methods, models, data sets and experiments, each with its source",
    "status": "which runs are done, running, failed or interrupted; which jobs a sweep would start",
    "table": "runs as a table: mean, n, 95% interval; beside what a paper printed",
    "plot": "how every alpha moved, learning curves",
    "cost": "what inference would cost on an accelerator, by bits and bandwidth",
    "scan": "how the loss depends on each clip level of a trained network",
    "bench": "how fast training, calibration, products on bits and start-up are here",
}

_LINES = {
    "train": (
        ("qexp train quantizer=pact bits=4", "one run on the embedded digits, 4-bit weights and activations"),
        ("qexp train model=resnet20 dataset.root=DIR", "ResNet20 on CIFAR-10 (DIR holds the data)"),
        ("qexp train -m quantizer=pact,dorefa bits=2,4 seed=0,1,2", "a sweep of 12 runs; typed again, it goes on"),
        ("qexp train bits=w4a8 first_last=8", "4-bit weights, 8-bit activations, 8-bit ends"),
        ("qexp train \"layers.'layer1.*'.bits=2\"", "one part of the network apart, by pattern"),
    ),
    "ptq": (
        ("qexp ptq quantizer=pwlq bits=w4a8 model.weights=FILE", "a checkpoint, or the folder of a float run"),
        ("qexp ptq -m quantizer=none,uniform,pwlq bits=4,6,8 model.weights=FILE", "methods beside each other"),
        ("qexp ptq calibration.bias_correction=channel model.weights=FILE", "with bias correction of the weights"),
        ("qexp ptq observer=percentile observer.gamma=0.001 model.weights=FILE", "another range of activations"),
        ("qexp ptq -m seed=0,1,2 model.weights=FILE", "three draws of the calibration images"),
        (
            "qexp ptq experiment=pwlq/table2 model=resnet50 model.weights=FILE",
            "one network's part of a paper's table",
        ),
    ),
    "eval": (
        ("qexp eval outputs/train/RUN", "a finished run, on the test split"),
        ("qexp eval RUN eval.split=validation", "on the part that was carved from the training data"),
        ("qexp eval RUN dataset.root=DIR", "where the data have moved"),
        ("qexp eval RUN engine=xnor", "few bits on packed words, by xor and popcount; proves that it is the same"),
        ("qexp eval RUN engine=xnor engine.save=FILE", "and keep the network with one bit for a binary weight"),
        ("qexp eval quantizer=none model=resnet20_v1 model.weights=FILE", "a float checkpoint"),
    ),
    "explain": (
        ("qexp explain quantizer=pact bits=4 model=resnet18", "what each layer becomes"),
        ("qexp explain outputs/train/RUN", "of a run that is there"),
        ("qexp explain bits=w4a8 first_last=8 explain.format=json", "the same, for a program"),
        ("qexp explain \"layers.'layer4.*'.bits=2\"", "with a part set apart"),
    ),
}

_KEYS = {
    "epochs, batch_size, seed": "the run's length, images per step, the random numbers",
    "bits, bits.weight, bits.first": "widths: 1 to 8, or 32 for no rounding; bits=w4a8 sets two",
    "first_last": "bits of both ends: a width, or same; default: as the method's paper",
    "layers.'<glob>'.bits": "also .quantizer and .scope; the last pattern that matches wins",
    "quantizer.activation.scope": "one alpha per layer, channel, element or network (pact)",
    "alpha_regularization.lambda_alpha": "the penalty on alpha; 0 for none, or weight_decay",
    "optimizer.lr, optimizer.weight_decay": "the learning rate's peak; L2 on the weights",
    "trainer.device, trainer.precision": "auto, cpu, cuda; float32, tf32, bfloat16",
    "dataset.root, dataset.validation": "where the data lie; the share kept to validate",
    "model.weights": "start from a float checkpoint or a run's folder",
    "hydra/launcher": "where a sweep's jobs run: basic, joblib, submitit_local, submitit_slurm, ray",
    "output_dir, experiment.name": "runs go to <output_dir>/<experiment.name>/<run>",
}

_OWN_KEYS = {
    "eval": {
        "eval.run": "the run's folder, also without its key: its saved configuration and checkpoint",
        "eval.split": "test, or validation",
        "engine": "torch, or xnor: on packed bits",
        "engine.fallback": "true: what cannot run on bits stays fake-quantized",
        "engine.save, engine.load": "a packed checkpoint to write, to take the weights from",
    },
    "ptq": {
        "calibration.samples": "training images that activations are observed on",
        "seed": "draws them",
        "calibration.fold": "batch norms: auto, strict (refuse what cannot be folded), none",
        "calibration.equalize": "true: rescale the channels between two layers (null: as the method)",
        "calibration.absorb": "true: with it, hand high biases on to the next layer (null: as the method)",
        "calibration.bias_correction": "none, channel, analytic, empirical (null: as the method)",
        "quantizer.weight.scope": "ranges per layer, or per channel",
    },
    "explain": {
        "explain.run": "a run's folder, also without its key: the plan of its saved configuration",
        "explain.format": "text, or json",
        "explain.fold": "true: as qexp ptq has the network, its batch norms folded where they can be",
    },
}

_OPTIONS = {
    "-m, --multirun": "one job for each combination of comma-separated values",
    "--dry-run": "list what would run, and how far each run is",
    "--cfg job": "print the composed configuration and stop",
    "--config-dir DIR": "look for configurations in DIR too (a method of your own)",
    "--plugin NAME": "a Python package of your own, whose classes configurations may name",
    "-sc install=SHELL": 'completion; for bash or zsh: eval "$(qexp -sc install=bash)"',
}
_NOT_OF = {
    "train": ("observer", "engine"),
    "explain": ("observer", "engine"),
    "eval": ("observer",),
    "ptq": (
        *(
            "engine",
            "alpha_regularization",
            "optimizer",
            "schedule",
            "recipe",
            "rounding",
            "discretisation",
            "task",
            "logger",
            "budget",
        ),
        *("epochs, batch_size, seed", "quantizer.activation.scope", "alpha_regularization.lambda_alpha"),
        *("optimizer.lr, optimizer.weight_decay", "trainer.device, trainer.precision"),
    ),
}
"""Groups and keys that say nothing to a command."""
_RUNNING = ("train", "ptq")
_RUNNING_ALONE = ("--dry-run",)
_GROUP_ORDER = ("model", "dataset", "quantizer", "bits", "alpha_regularization", "optimizer", "schedule")


def program_help() -> str:
    """Return the commands with a line each."""
    lines = [f"  {name:9}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        (
            "qexp: experiments in neural-network quantization, from a trained run to the paper's table.",
            "",
            "usage: qexp <command> [key=value ...]      qexp <command> --help      qexp --version",
            "",
            *lines,
            "",
            "Start with: qexp train quantizer=pact bits=4        (about a minute, no download)",
        )
    )


def command_help(command: str, arguments: Sequence[str] = ()) -> str:
    """Return what `command` does, lines to type, the groups with their options, and the most used keys.

    Options of the folder behind `--config-dir` in `arguments` are listed with qexp's own.
    """
    width = max(len(line) for line, _ in _LINES[command])
    run = "" if command in _RUNNING else " [RUN]"
    lines = [
        f"qexp {command}: {HYDRA_COMMANDS[command]}.",
        "",
        f"usage: qexp {command}{run} [options] [group=option ...] [key=value ...]",
        "",
        *(f"  {line:{width}}  {text}" for line, text in _LINES[command]),
        "",
        "Groups (group=option):",
    ]
    for group, options in _groups(arguments):
        if group in _NOT_OF[command]:
            continue
        if group == "experiment":
            maker = "ptq" if command == "ptq" else "train"
            options = [name for name in options if name == "none" or _maker(name, arguments) == maker]
        text = ", ".join(options)
        lines += textwrap.wrap(f"  {group:21}{text}", 110, subsequent_indent=" " * 23, break_on_hyphens=False)
    lines += ["", "Keys used most (all of them: --cfg job):"]
    keys = {key: text for key, text in _KEYS.items() if key not in _NOT_OF[command]}
    lines += [f"  {key:38}{text}" for key, text in {**_OWN_KEYS.get(command, {}), **keys}.items()]
    shown = {key: text for key, text in _OPTIONS.items() if command in _RUNNING or key not in _RUNNING_ALONE}
    lines += ["", "Options:", *(f"  {option:21}{text}" for option, text in shown.items())]
    return "\n".join(lines)


def _groups(arguments: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    folders = [config_dir(), *_extra_dir(arguments)]
    found: dict[str, set[str]] = {"bits": {"1", "2", "3", "4", "5", "6", "7", "8", "32", "w<n>a<m>"}}
    for folder in folders:
        for file in folder.glob("*/**/*.yaml"):
            group, *rest = file.relative_to(folder).with_suffix("").parts
            if group != "hydra":
                found.setdefault(group, set()).add("/".join(rest))
    order = [*_GROUP_ORDER, *sorted(set(found) - set(_GROUP_ORDER))]
    for group in order:
        if group in found:
            yield group, sorted(found[group], key=_natural)


def _maker(experiment: str, arguments: Sequence[str]) -> str:
    """Return the command that makes an experiment's runs, from its file's text: reading YAML takes a library."""
    for folder in [*_extra_dir(arguments), config_dir()]:
        file = folder / "experiment" / f"{experiment}.yaml"
        if file.is_file():
            return (
                "ptq"
                if re.search(r"^  command: *ptq\b", file.read_text(encoding="utf-8"), re.MULTILINE)
                else "train"
            )
    return "train"


def _natural(text: str) -> tuple[object, ...]:
    """Sort resnet9 before resnet20."""
    digits = "".join(character if character.isdigit() else " " for character in text).split()
    return (text.rstrip("0123456789"), *map(int, digits))


def _extra_dir(arguments: Sequence[str]) -> Iterator[Path]:
    for option, value in zip(arguments, [*arguments[1:], ""], strict=False):
        name, _, joined = option.partition("=")
        if name in ("--config-dir", "-cd"):
            yield Path(joined or value)

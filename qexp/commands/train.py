"""`qexp train`: one run, from its identity to its record."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from pathlib import Path
from typing import Any

from qexp.build import build
from qexp.commands import distributed, progressive
from qexp.commands.devices import devices_of, occupied
from qexp.commands.planning import Planned, accuracy_line, digests_of, name_run, run_of, teacher_weights
from qexp.commands.recording import recording_failure, run_log
from qexp.config import Config
from qexp.errors import Interrupted, QexpError

log = logging.getLogger(__name__)


def plan(config: Config) -> Planned:
    """Name the run of `config`; reads the data's digest, writes nothing.

    Raises:
        ConfigError, DataError: the configuration or the data do not allow a run.
    """
    source = build(config.dataset)
    build(config.schedule, epochs=config.epochs)  # a mistake in it ends a sweep before its first job
    digests = digests_of(config, source)
    compiled = _compiled(config, source)
    config = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, compile=compiled))
    return name_run(config, source, digests, compiled=compiled)


def _compiled(config: Config, source: Any) -> bool:
    """Decide `trainer.compile` before the run has a name: it is part of the identity."""
    if config.trainer.compile is False:
        return False
    import torch

    from qexp.lit import compiling
    from qexp.lit.evaluate import device_of

    def pays() -> bool:
        steps = _epoch_steps(json.dumps(config.dataset, sort_keys=True), config.batch_size) * config.epochs
        if steps <= compiling.STEPS_THAT_PAY:
            return False
        with torch.device("meta"):  # shapes without numbers: only its layers' kinds matter
            node = {key: value for key, value in config.model.items() if key != "weights"}
            network = build(node, input_shape=source.shape, num_classes=source.num_classes)
        return compiling.pays(network, steps)

    return compiling.decide(config.trainer.compile, device_of(config), pays)


@functools.lru_cache(maxsize=64)
def _epoch_steps(dataset: str, batch_size: int) -> int:
    """Steps of one epoch; cached, because the jobs of a sweep mostly share their data."""
    return len(build(json.loads(dataset)).train_batches(batch_size, 0, "cpu"))


def run(config: Config, *, dry_run: bool = False) -> dict[str, Any]:
    """Train, evaluate and record one run, or skip it when its result is there; `progressive` stages come before.

    Returns, of the run (with `dry_run` of the first that is not done):
        `run_id`, `path`, `status` (done or skipped), `metrics`, `primary_metric`.

    Raises:
        InUseError: another process, here or on another machine, trains it now.
        QexpError: a mistake or a failed training; the run's folder says why.
        Interrupted: a signal; the same command goes on from the checkpoint.
    """
    if dry_run:
        stage, last = progressive.upcoming(config)
        if not last:
            print("first, as the runs after it start from its weights:")
        return plan(stage).preview()
    record: dict[str, Any] = {}
    for number, stage in enumerate(progressive.stages(config), 1):
        if config.progressive and distributed.rank() == 0:
            widths = f"w{stage.bits.weight}a{stage.bits.activation}"
            print(f"stage {number} of {len(config.progressive) + 1}: {widths}", flush=True)
        record = _run(stage)
    return record


def _run(config: Config) -> dict[str, Any]:
    planned = plan(config)
    if (done := planned.begin(first=distributed.rank() == 0)) is not None:
        return done
    status = "done"
    if distributed.wants_launch(config):
        _launch(planned)
    elif distributed.rank() > 0:
        _help(planned)
    elif not _own(planned):
        status = "skipped"
    return planned.record(status, planned.run.read_result())


def _own(planned: Planned) -> bool:
    """Run in this process, which alone locks and writes the folder; False when another has done it meanwhile."""
    from qexp.lit.environment import describe

    network, teacher = _network(planned), _teacher(planned)
    with planned.run.lock():
        if planned.run.read_result() is not None:
            return False
        planned.run.prepare(planned.config.plain, planned.identity, describe())
        with recording_failure(planned.run), run_log(planned.run):
            _warn_of_silence(network)
            _train(planned, network, teacher)
    return True


def _help(planned: Planned) -> None:
    """Train as one of the further processes of a job: nothing is written here."""
    from qexp.lit.fit import fit

    fit(_network(planned), planned.source, planned.config, planned.run, _teacher(planned))


def _launch(planned: Planned) -> None:
    """Run in several processes; the folder gets the reason of the one that failed first."""
    planned.run.refuse_locked()
    try:
        with occupied(devices_of(planned.config)):
            if planned.run.read_result() is None:  # another process may have finished it while this one waited
                distributed.launch(planned.config)
    except Interrupted:
        raise
    except QexpError as error:
        planned.run.refuse_locked()  # another one's processes were faster
        if planned.run.path.exists():
            planned.run.write_failure(str(error), error.exit_code)
        raise


def _network(planned: Planned) -> Any:
    """Build the network before the folder exists: a mistake in it or in the data leaves nothing behind."""
    from qexp.commands.network import build_network
    from qexp.lit.fit import check
    from qexp.lit.start import seed_everything

    planned.source.check()
    seed_everything(planned.config.seed)
    network = build_network(planned.config, planned.source)
    check(network, planned.config, planned.run)
    return network


def _warn_of_silence(network: Any) -> None:
    """Name the layers whose weights all begin at the level 0: they pass nothing on and cannot learn."""
    from qexp.quantizers.base import named_quantizers

    found = [quantizer for _, quantizer in named_quantizers(network) if quantizer.real]
    silent = [quantizer.site.name for quantizer in found if quantizer.silent(quantizer.real[0].detach())]
    if silent:
        names = f"{', '.join(silent[:3])}{' ...' if len(silent) > 3 else ''}"
        log.warning(
            f"{len(silent)} of {len(found)} layers begin with every quantized weight at 0 ({names}): nothing"
            " passes them, and they learn nothing. Start from trained weights, take more bits, or a grid that"
            " follows the weights (quantizer=qnn_linear: quantizer.weight.reach=1.25)."
        )


def _teacher(planned: Planned) -> Any:
    """Return the float network whose answers are learned, or None; built before the folder exists, too."""
    from qexp.commands.network import build_float

    config = planned.config
    if not config.task.get("distillation"):
        return None
    weights = str(teacher_weights(config))  # there: `digests_of` has asked
    model = {**config.model, "weights": weights}
    run = run_of(weights)
    normalization: Any = None if run is None else run.config.get("normalization")
    alone = dataclasses.replace(config, model=model, normalization=normalization)
    return build_float(alone, planned.source, of_float=True).eval().requires_grad_(False)


def _train(planned: Planned, network: Any, teacher: Any) -> dict[str, Any]:
    from qexp.lit.evaluate import evaluate
    from qexp.lit.fit import fit

    config, run_folder = planned.config, planned.run
    run_folder.clear_failure()
    resumed = run_folder.checkpoint.exists()
    print(f"{'going on with' if resumed else 'training'} {run_folder.path}", flush=True)
    metrics = fit(network, planned.source, config, run_folder, teacher)
    seconds, compiled = metrics.pop("train_seconds"), bool(metrics.pop("compiled"))
    metrics |= evaluate(network, planned.source, config, "test")
    figure = _figures(planned, metrics)
    result = planned.result(metrics)
    result |= {"train_seconds": round(seconds, 3), "epochs": config.epochs, "compiled": compiled}
    result["budget"] |= {"epochs": config.epochs, "train_seconds": round(seconds, 3)}
    run_folder.write_result(result)
    _say_result(planned, result, figure)
    return result


def _figures(planned: Planned, metrics: dict[str, float]) -> Path | None:
    """Draw how every alpha moved, and put the figure and the final numbers where TensorBoard shows them."""
    from qexp.lit.summary import write_summary
    from qexp.report.plots import alpha_figure

    figure = None
    has_alphas = any(name.startswith(("alpha/", "step/")) for name in metrics)
    if has_alphas:
        figure = alpha_figure(planned.run.path)
    epochs = planned.config.epochs
    step = max((row[1] for row in planned.run.metrics.rows()), default=0)
    final = {name: value for name, value in metrics.items() if name.startswith("test_")}
    planned.run.metrics.append(epochs, step, final)
    targets = [str(node.get("_target_")) for node in planned.config.logger.values()]
    path = planned.run.figures / "alpha.png"
    if figure is not None:
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=150)
    if "qexp.lit.loggers.tensorboard" in targets:
        write_summary(planned.run.events, planned.config, metrics, step, figure)
    return path if figure is not None else None


def _say_result(planned: Planned, result: dict[str, Any], figure: Path | None) -> None:
    epochs = planned.config.epochs
    print(accuracy_line(result["metrics"], planned.primary_metric, f"{epochs} epoch{'s' * (epochs != 1)}"))
    print(f"run           {planned.run.path}")
    if figure is not None:
        print(f"figure        {figure}")
    if planned.run.events.exists():
        print(f"see also      tensorboard --logdir {planned.run.path.parent}", flush=True)

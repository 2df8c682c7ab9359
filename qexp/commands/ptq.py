"""`qexp ptq`: a trained float network, quantized without training, from its calibration to its record."""

from __future__ import annotations

import csv
import hashlib
import io
import time
from collections.abc import Sequence
from typing import Any

from qexp.build import build
from qexp.commands.planning import Planned, accuracy_line, digests_of, name_run, refuse_other_normalization
from qexp.commands.recording import recording_failure, run_log
from qexp.config import PLAIN_ROUNDING, Config
from qexp.errors import ConfigError, DataError
from qexp.files import atomic_write

LAYERS = "layers.csv"
"""What was fitted in each layer: the mean squared error of its weights, and ranges and breakpoints by name, each
as its mean, least and greatest over the channels."""


def plan(config: Config) -> Planned:
    """Name the run of `config`; reads the digests of data, weights and calibration samples, writes nothing.

    Raises:
        ConfigError, DataError, CheckpointError: no weights, nothing to calibrate on, or a budget, which belongs to
            a training.
    """
    if config.budget.name != "full":
        raise ConfigError(
            f"budget={config.budget.name}: qexp ptq trains nothing that a budget could shorten; to see a path run"
            " in seconds take weights trained on the digits, with dataset=digits and their dataset.shape."
        )
    if not config.model.get("weights"):
        raise ConfigError(
            "model.weights: qexp ptq starts from a trained network, a random one is never quantized; give a"
            " checkpoint or a run's folder."
        )
    refuse_other_normalization(config)
    if config.trainer.precision != "float32":
        raise ConfigError(
            f"trainer.precision={config.trainer.precision}: qexp ptq computes in float32; leave it out."
        )
    if config.trainer.devices > 1:
        raise ConfigError(
            f"trainer.devices={config.trainer.devices}: qexp ptq runs in one process; leave it at 1."
        )
    _refuse_training(config)
    if config.calibration and config.calibration.absorb and not config.equalize:
        raise ConfigError(
            "calibration.absorb=true: biases go between equalized layers; add calibration.equalize=true."
        )
    source = build(config.dataset)
    digests = digests_of(config, source)
    if config.quantized:
        digests["calibration"] = _samples_digest(config, source)
    return name_run(config, source, digests)


def _refuse_training(config: Config) -> None:
    """Refuse what only training acts on: it would give the run another name and change nothing."""
    given = {
        "progressive": bool(config.progressive),
        "gradient_bits": config.gradient_bits is not None,
        "rounding": config.rounding["_target_"] != PLAIN_ROUNDING,
        "discretisation": config.discretisation is not None,
    }
    if asked := [key for key, is_given in given.items() if is_given]:
        raise ConfigError(f"{', '.join(asked)}: of training, and qexp ptq has none; leave it out.")


def _samples_digest(config: Config, source: Any) -> str:
    """Return the digest of which training samples are drawn; what they hold is in that of the data."""
    rows = _calibration_batches(config, source, "cpu").plan.rows
    return hashlib.sha256(rows.numpy().astype("<i8").tobytes()).hexdigest()


def _calibration_batches(config: Config, source: Any, device: Any, *, channels_last: bool = False) -> Any:
    settings = config.calibration
    assert settings is not None  # qexp ptq's configuration has them
    batches = source.training_samples(
        settings.samples, settings.batch_size, device, channels_last=channels_last, seed=config.seed
    )
    if (found := len(batches.plan.rows)) < settings.samples:
        raise DataError(
            f"calibration.samples={settings.samples}: the training split has {found}; take at most as many."
        )
    return batches


def run(config: Config, *, dry_run: bool = False) -> dict[str, Any]:
    """Quantize, evaluate and record one network, or skip it when its result is there.

    Returns:
        `run_id`, `path`, `status` (done or skipped), `metrics`, `primary_metric`.

    Raises:
        InUseError: another process makes this run now.
        QexpError: a mistake; the run's folder says why.
    """
    from qexp.commands.network import calibrated_network, refuse_text
    from qexp.lit.environment import describe

    refuse_text(config, "qexp ptq quantizes")
    planned = plan(config)
    if dry_run:
        return planned.preview()
    if (done := planned.begin()) is not None:
        return done
    network = calibrated_network(config, planned.source)
    with planned.run.lock():
        result = planned.run.read_result()
        if result is not None:
            return planned.record("skipped", result)
        planned.run.prepare(config.plain, planned.identity, describe())
        with recording_failure(planned.run), run_log(planned.run):
            planned.run.clear_failure()
            _quantize(planned, network)
    return planned.record("done", planned.run.read_result())


def _quantize(planned: Planned, network: Any) -> None:
    from qexp.lit.checkpoint import save_network
    from qexp.lit.evaluate import evaluate, float32, move

    config = planned.config
    print(f"quantizing {planned.run.path}", flush=True)
    began = time.monotonic()
    device, channels_last = move(network.model, planned.source, config)
    batches = _calibration_batches(config, planned.source, device, channels_last=channels_last)
    with float32(device):
        found = network.fit(
            batches, lambda bits, site: build(config.observer or {}, bits=bits, site=site), config.seed
        )
    seconds = time.monotonic() - began
    atomic_write(planned.run.path / LAYERS, _table(found))
    quantized = network.quantized()
    metrics = {**_weight_metrics(found), **evaluate(quantized, planned.source, config, "test")}
    save_network(planned.run.checkpoint, quantized)
    planned.run.write_result(
        {
            **planned.result(metrics),
            "calibration_seconds": round(seconds, 3),
            "folded": [list(pair) for pair in network.folding.folded],
            "kept_batch_norms": [list(pair) for pair in network.folding.kept],
            "equalized": [list(pair) for pair in network.equalized.pairs] if network.equalized else [],
            "absorbed": list(network.equalized.absorbed) if network.equalized else [],
            "unclipped": list(network.equalized.unclipped) if network.equalized else [],
            "uncorrected": list(network.uncorrected),
        }
    )
    _say(planned, network, metrics, seconds)


def _weight_metrics(found: Sequence[Any]) -> dict[str, float]:
    """Return the mean squared error over all quantized weights together, and the bits that one takes in memory."""
    weights = [each for each in found if each.error is not None]
    count = sum(each.count for each in weights)
    if not count:
        return {}
    return {
        "weight_mse": sum(each.error * each.count for each in weights) / count,
        "weight_bits": sum(each.stored_bits * each.count for each in weights) / count,
    }


def _table(found: Sequence[Any]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("layer", "kind", "bits", "name", "mean", "least", "greatest"))
    for each in found:
        if each.error is not None:
            writer.writerow((each.layer, each.kind, each.bits, "mse", f"{each.error:.9g}", "", ""))
        for name, value in each.values.items():
            numbers = (float(value.double().mean()), float(value.min()), float(value.max()))
            writer.writerow((each.layer, each.kind, each.bits, name, *(f"{number:.9g}" for number in numbers)))
    return stream.getvalue()


def _say(planned: Planned, network: Any, metrics: dict[str, float], seconds: float) -> None:
    from qexp.models.weights import listed

    print(accuracy_line(metrics, planned.primary_metric, f"calibrated in {seconds:.1f} s"))
    if network.equalized is not None:
        pairs = len(network.equalized.pairs)
        none = "; each needs a layer that alone reads another's output, without a norm that was not folded"
        print(f"equalized     {pairs} pair{'s' * (pairs != 1)} of layers{none * (not pairs)}")
    if network.folding.kept:
        names = listed([name for name, _ in network.folding.kept])
        print(f"not folded    {names} (float, per channel; result.json says why)")
    if network.uncorrected:
        print(f"not corrected {listed(network.uncorrected)}")
    print(f"run           {planned.run.path}")
    print(f"layers        {planned.run.path / LAYERS}", flush=True)

"""`qexp eval`: measures a run's network, or one composed here, in float32."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from qexp.build import build
from qexp.commands.planning import refuse_other_normalization
from qexp.config import Config
from qexp.errors import CheckpointError, ConfigError
from qexp.report.numbers import is_share
from qexp.runs import RunDirectory

SAME = 1e-9
"""Accuracies of the same network on the same samples differ by whole samples or not at all."""

ROUNDING, SHOWN = 1e-6, 1e-4
"""Other numbers are rounded otherwise by other threads or devices: relative, or by the last digit shown."""


def run(config: Config) -> dict[str, Any]:
    """Print loss and accuracy of `eval.run` (or of the network composed here) on `eval.split`.

    A run's test accuracy is compared with its result.json; where packed bits give another one, that of the float
    layers is, which made the record. With `engine.load` neither a run's checkpoint nor `model.weights` is needed:
    the packed file holds the whole network.

    Returns:
        `path`, `status` (done; failed where the run's record has another number, with a `message`), `metrics`,
        `primary_metric`, `matches` (True, False, or None without a record).

    Raises:
        ConfigError: nothing to evaluate: no run, no weights, no packed file.
        CheckpointError: the run's checkpoint is missing, damaged or of another network.
    """
    from qexp.commands.network import build_network
    from qexp.lit.evaluate import evaluate
    from qexp.lit.start import seed_everything

    weights, packed = config.model.get("weights"), config.engine.load
    if config.eval.run is None and not weights and packed is None:
        raise ConfigError(
            "eval: name what to evaluate: eval.run=<run folder>, model.weights=<checkpoint>, or with engine=xnor"
            " engine.load=<packed checkpoint>."
        )
    if config.eval.run is None and weights:
        refuse_other_normalization(config)
    source = build(config.dataset)
    seed_everything(config.seed)
    network = build_network(config, source)
    folder = None if config.eval.run is None else RunDirectory(config.eval.run)
    if folder is not None and packed is None:
        load_run(network, folder)
    if config.engine.name == "xnor":
        from qexp.commands.packed import evaluate_packed

        metrics = evaluate_packed(network, source, config)
    else:
        metrics = evaluate(network, source, config, config.eval.split)
    place = str(folder.path if folder is not None else Path(str(packed or weights)))
    primary = f"{'test' if config.eval.split == 'test' else 'val'}_{source.primary_metric}"
    width = max(map(len, metrics)) + 1
    for name, value in metrics.items():
        print(f"{name.replace('_', ' '):{width}} {value:.4f}")
    matches, message = _compare(folder, metrics, primary)
    if matches is False and config.engine.name == "xnor" and packed is None:
        # Float layers made the record. Their sums may round to another side of a threshold than integers do, as
        # the proof counts; that they still give the record is what is left to see.
        floats = evaluate(network, source, config, config.eval.split)
        matches, message = _compare(folder, floats, primary)
        message = f"by float layers {floats[primary]:.4f}, {message}"
    if message:
        print(message)
    return {
        "run_id": folder.path.name if folder is not None else "",
        "path": place,
        "status": "failed" if matches is False else "done",
        "metrics": metrics,
        "primary_metric": primary,
        "matches": matches,
        "message": message if matches is False else "",
    }


def load_run(network: Any, folder: RunDirectory) -> None:
    """Load a run's last checkpoint into its network.

    Raises:
        CheckpointError: missing, damaged, or of another network; the message lists what does not fit.
    """
    from qexp.lit.checkpoint import network_state, read_checkpoint

    state = network_state(read_checkpoint(folder.checkpoint))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise CheckpointError(
            f"{folder.checkpoint}: made for another network than its config.yaml describes: {' '.join(lines)}"
        ) from error


def _compare(folder: RunDirectory | None, metrics: dict[str, float], primary: str) -> tuple[bool | None, str]:
    """Return whether the run's record has this number, and that in words; None without such a record."""
    result = None if folder is None else folder.read_result()
    recorded = ((result or {}).get("metrics") or {}).get(primary)
    if folder is None or recorded is None or not primary.startswith("test_"):
        return None, ""
    matches = _same(recorded, metrics[primary], primary)
    verdict = "the same as in" if matches else f"NOT the {recorded:.4f} of"
    return matches, f"{verdict} {folder.path / 'result.json'}"


def _same(recorded: float, measured: float, metric: str) -> bool:
    if is_share(metric):
        return abs(recorded - measured) <= SAME
    return math.isclose(recorded, measured, rel_tol=ROUNDING, abs_tol=SHOWN)

"""The last words in TensorBoard: the final numbers, the alpha figure, and the HParams tab."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from qexp.config import Config

_LEFT_OUT = ("output_dir", "logger", "experiment")


def write_summary(
    directory: Path, config: Config, metrics: Mapping[str, float], step: int, figure: Any | None
) -> None:
    """Write into the run's own event folder, so that no run shows twice.

    Args:
        directory: the run's TensorBoard folder.
        metrics: all final metrics; `test_*` and `val_*` are also those of the HParams tab.
        step: the last optimizer step.
        figure: matplotlib's, or None.
    """
    final = {name: value for name, value in metrics.items() if name.startswith(("test_", "val_"))}
    _wait_for_a_later_name(directory)
    writer = SummaryWriter(log_dir=str(directory))
    try:
        for name, value in final.items():
            writer.add_scalar(name, value, step)
        if figure is not None:
            writer.add_figure("alpha", figure, step, close=False)
        file_writer = writer._get_file_writer()  # add_hparams would open a folder of its own below this one
        for summary in hparams(flatten(config.plain), dict.fromkeys(final, 0.0)):
            file_writer.add_summary(summary)
    finally:
        writer.close()


def _wait_for_a_later_name(directory: Path) -> None:
    """Return, after a second at most, when a new event file sorts behind those in `directory`.

    Its name begins with the second and ends with a count, and TensorBoard reads in the order of names as text:
    within a second the file with the count 10 comes before the one with 9, whose start then purges what was read.
    """
    seconds = [int(path.name.split(".")[3]) for path in directory.glob("events.out.tfevents.*")]
    while seconds and int(time.time()) == max(seconds):
        time.sleep(0.02)


def flatten(plain: Mapping[str, Any], prefix: str = "") -> dict[str, bool | str | float]:
    """Return nested settings by dotted name; lists and None become text, `_target_` its last part.

    >>> flatten({"bits": {"weight": 4}, "optimizer": {"_target_": "qexp.lit.optimizers.sgd", "betas": [0.9]}})
    {'bits.weight': 4, 'optimizer': 'sgd', 'optimizer.betas': '[0.9]'}
    """
    found: dict[str, bool | str | float] = {}
    for key, value in plain.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if not prefix and key in _LEFT_OUT:
            continue
        if key == "_target_":
            found[prefix] = str(value).rpartition(".")[2]
        elif isinstance(value, Mapping):
            found.update(flatten(value, name))
        else:
            found[name] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return found

"""`qexp scan`: how the loss of a trained network depends on each clip level, the others as they were learned."""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qexp.build import add_plugin, build
from qexp.commands.options import Parser
from qexp.config import Config, parse
from qexp.errors import ConfigError
from qexp.files import atomic_write
from qexp.report.scans import FILE
from qexp.runs import RunDirectory
from qexp.saved import places_of, run_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from qexp.lit.scan import ClipLevel, Point

ALPHAS, MULTIPLES = (0.3, 20.0), (0.1, 10.0)
"""Ranges where none is given: that of the paper's figure, and that of multiples of the learned value."""

_DESCRIPTION = """\
Show how the loss of a trained network depends on each clip level, as figure 3 of the PACT paper does.

A site is a place where activations are clipped and rounded (PACT: each former ReLU); its learned clip level is
called alpha. One site's alpha after the other is set to a row of values while all others stay as the run learned
them, and the mean cross entropy of training samples (in nats) is measured in three ways:
  float      nothing is rounded, neither weights nor activations; alpha still clips
  quantized  as the run trained and as it is evaluated
  penalized  quantized, plus the run's own penalty (lambda_alpha / 2) * sum of alpha^2
Where the dots (the learned alphas) sit at the minimum of the third, training has found the best clip levels.

The run needs a checkpoint, not an end. Its folder gets alpha_scan.csv and figures/alpha_scan.png; nothing else in
it changes. The test split is not touched. Of a method that learns steps instead, the steps are scanned; where a
site has many alphas (scope channel or element), they are scaled together and their mean is the value.
"""

_EXAMPLES = """\
examples:
  qexp scan outputs/train/resnet20-cifar10-pact-w4a4-s0-1a2b3c4d
  qexp scan RUN --points 40 --low 0.5 --high 8      a closer look
  qexp scan RUN --relative --low 0.25 --high 4      from a quarter of each learned alpha to four times it
  qexp scan RUN dataset.root=FOLDER                 where the data have moved
  qexp scan RUN --samples 500                       quicker, and rougher

Cost: 2 * (points + 1) passes of the samples for each site, about half of each pass computed anew.
"""


def parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    options = Parser(
        prog="qexp scan",
        usage="qexp scan RUN [key=value ...] [options]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    options.add_argument(
        "places",
        nargs="*",
        default=[],
        metavar="key=value",
        help="where things are now: dataset.root, trainer.device ...",
    )
    options.add_argument("--points", type=int, default=25, metavar="N", help="values of each alpha (25)")
    options.add_argument("--low", type=float, metavar="X", help="the smallest (0.3; with --relative 0.1)")
    options.add_argument("--high", type=float, metavar="X", help="the largest (20; with --relative 10)")
    options.add_argument(
        "--relative", action="store_true", help="the range in multiples of each learned value; steps always are"
    )
    options.add_argument(
        "--samples", type=int, default=2000, metavar="N", help="training samples (2000, or all if fewer)"
    )
    options.add_argument(
        "--plugin", action="append", default=[], metavar="NAME", help="a Python package of your own that it needs"
    )
    return options


@dataclass(frozen=True)
class Wanted:
    """What values to try: `points` of them between `low` and `high`, in multiples of the learned one or not."""

    points: int
    low: float | None
    high: float | None
    relative: bool

    def range(self, relative: bool) -> tuple[float, float]:
        """Return both ends; the default ones where none were given.

        Raises:
            ConfigError: no range of numbers above 0.
        """
        usual = MULTIPLES if relative else ALPHAS
        low = usual[0] if self.low is None else self.low
        high = usual[1] if self.high is None else self.high
        if not 0 < low < high < math.inf:
            raise ConfigError(
                f"--low {low:g} --high {high:g}: a range of values above 0, the first below the second."
            )
        return low, high


def main(argv: Sequence[str]) -> int:
    """Measure, write both files, print the table.

    Raises:
        QexpError: no such run, no checkpoint, nothing learned in it, a range without meaning, no data.
    """
    arguments = parser().parse_intermixed_args(list(argv))
    wanted = Wanted(arguments.points, arguments.low, arguments.high, arguments.relative)
    for option, value, least in (("points", wanted.points, 2), ("samples", arguments.samples, 1)):
        if value < least:
            raise ConfigError(f"--{option} {value}: {least} or more.")
    wanted.range(wanted.relative)
    for name in arguments.plugin:
        add_plugin(name, [Path.cwd()])
    config = parse(run_config(arguments.run, "RUN", places_of(arguments.places)))
    refuse_unwritable(arguments.run)
    # torch takes longer to import than the mistakes above take to be found.
    points, samples = measure(config, RunDirectory(arguments.run), wanted, arguments.samples)
    report(arguments.run, points, samples)
    return 0


def refuse_unwritable(folder: Path) -> None:
    """Raise ConfigError where the run's folder takes no files, before anything is measured for them."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(f"{folder / FILE}: cannot be written ({error.strerror})") from error


def measure(config: Config, run: RunDirectory, wanted: Wanted, count: int) -> tuple[list[Point], int]:
    """Return the measured points of a run's network, and on how many samples they stand.

    Raises:
        ConfigError: the network learns no clip level.
        CheckpointError: there is no checkpoint, or not one of this network.
        DataError: the data are not there.
    """

    from qexp.commands.eval import load_run
    from qexp.commands.network import build_network, refuse_text
    from qexp.lit.evaluate import move
    from qexp.lit.scan import clip_levels, grid, scan

    refuse_text(config, "qexp scan looks at")
    source = build(config.dataset)
    source.require_training_labels("the loss over the training samples")
    network = build_network(config, source)
    levels = clip_levels(network)
    if not levels:
        raise ConfigError(
            f"{run.path}: quantizer={config.names['quantizer']} learns no clip level, so there is none to scan;"
            " runs of quantizer=pact do."
        )
    load_run(network, run)
    grids = {}
    for level in levels:
        relative = wanted.relative or level.quantity == "step"
        grids[level] = grid(level, *wanted.range(relative), wanted.points, relative=relative)
    device, channels_last = move(network, source, config)
    batches = source.training_samples(count, None, device, channels_last=channels_last)
    passes = 2 * sum(map(len, grids.values())) * len(batches)
    print(f"{len(levels)} sites, {wanted.points} values each, {batches.samples} training samples", flush=True)
    with bar(passes) as advance:
        return scan(network, batches, grids, config.lambda_alpha, device, advance), batches.samples


@contextmanager
def bar(passes: int) -> Iterator[Callable[[], None]]:
    """Show progress on a terminal's stderr; yields what to call after each pass."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("passes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=passes)
        yield lambda: progress.advance(task)


def report(folder: Path, points: Sequence[Point], samples: int) -> None:
    """Write `alpha_scan.csv` and its figure into the run's folder and print the table.

    Raises:
        ConfigError: the folder cannot be written.
    """
    from qexp.commands.plot import save
    from qexp.report.scan_plot import scan_figure
    from qexp.report.scans import read_scan, scan_table, scan_text
    from qexp.report.tables import screen_width, to_terminal

    rows = [_row(point, samples) for point in points]
    try:
        atomic_write(folder / FILE, scan_text(rows))
    except OSError as error:
        raise ConfigError(f"{folder / FILE}: cannot be written ({error.strerror})") from error
    figure = RunDirectory(folder).figures / "alpha_scan.png"
    save(scan_figure(folder), figure, option="")
    table = scan_table(read_scan(folder), f"Loss against each clip level: {folder}")
    print(to_terminal(table, screen_width()), end="")
    print(f"wrote {folder / FILE} and {figure}")


def _row(point: Point, samples: int) -> Mapping[str, object]:
    level: ClipLevel = point.level
    return {
        "site": level.site,
        "quantity": level.quantity,
        "learned": level.value,
        "mode": point.mode,
        "value": point.value,
        "loss": point.loss,
        "samples": samples,
    }

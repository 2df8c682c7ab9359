"""Before a sweep starts: every job is planned, so that what cannot run is known before any time is spent."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict, read_write
from rich.console import Console
from rich.progress import track

from qexp.commands.planning import Planned
from qexp.config import Config, parse
from qexp.errors import ConfigError, QexpError
from qexp.jobs.composition import FAILURE, QexpLoader, decode_overrides
from qexp.jobs.job import MAKERS, Job, Record, by_reason, plain_config, record_of


@dataclass
class Preflight:
    """What is known of a sweep before it starts.

    Attributes:
        jobs: the overrides of each job to launch.
        refused: a record of each job that cannot run, with the reason.
        done: a record of each job whose run has its result; no worker is started, and no scheduler asked, for it.
        same: the words of jobs that mean one run; the first of them is launched.
        order: the words of every job, as a record of it has them.
    """

    jobs: list[list[str]] = field(default_factory=list)
    refused: list[Record] = field(default_factory=list)
    done: list[Record] = field(default_factory=list)
    same: list[list[str]] = field(default_factory=list)
    order: list[str] = field(default_factory=list)

    def in_order(self, records: Sequence[Record]) -> list[Record]:
        """Return records of this sweep's jobs in its order, whenever each was made."""
        place = {typed: number for number, typed in enumerate(self.order)}
        return sorted(records, key=lambda record: place.get(record.overrides, len(place)))


def look(
    job: Job, loader: QexpLoader, master: DictConfig, jobs: Sequence[Sequence[str]], *, here: bool = True
) -> Preflight:
    """Plan every job of a sweep; only a command that makes runs has something to find out.

    A bug in one job's planning is left to that job, which fails alone.

    Args:
        job: the command's.
        loader: composes the jobs; each is composed a second time when it runs, from the loader's memory.
        master: the composed configuration that all jobs share.
        jobs: the overrides of each.
        here: whether the jobs run on this machine, or on one with other devices and compilers.
    """
    found = Preflight()
    words: dict[str, list[str]] = {}
    # A hundred jobs take a minute: on a terminal, where it stands.
    for overrides in track(
        list(map(list, jobs)),
        "looking at the jobs",
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ):
        typed = decode_overrides(overrides)
        found.order.append(typed)
        composed = loader.load_sweep_config(master, overrides)
        try:
            planned = _planned(job, composed, here=here)
            run = typed if planned is None else planned.run_id
            new = run not in words
            done = planned.done() if planned and planned.exact and new and not job.dry_run else None
        except QexpError as error:
            found.refused.append(Record(typed, "failed", error.exit_code, message=str(error)))
            continue
        except Exception:
            run, new, done = typed, True, None
        if done is not None:
            found.done.append(record_of(typed, done))
        elif new:
            found.jobs.append(overrides)
        words.setdefault(run, []).append(typed)
    found.same = [typed for typed in words.values() if len(typed) > 1]
    return found


def say(found: Preflight, *, dry_run: bool) -> None:
    """Print what cannot run, each reason once, and which jobs are one run; `dry_run`: none is started."""
    for reason, records in by_reason(found.refused).items():
        names = records[0].overrides if len(records) == 1 else f"{len(records)} jobs ({records[0].overrides}, ...)"
        print(f"cannot run {names}: {reason}", file=sys.stderr, flush=True)
    if found.refused and found.jobs and not dry_run:
        left = len(found.jobs)
        print(f"starting the other {left} job{'s' * (left != 1)}", file=sys.stderr, flush=True)
    for typed in found.same:
        print(f"one run, made once: {'; '.join(typed)}", flush=True)
    if found.done:
        print(f"done already: {len(found.done)} of {len(found.done) + len(found.jobs)} runs", flush=True)


def _planned(job: Job, composed: DictConfig, *, here: bool) -> Planned | None:
    """Return the run that a job would make or skip, None for a command that makes none."""
    if FAILURE in composed:
        raise ConfigError(str(composed[FAILURE]))
    if job.command not in MAKERS:
        return None
    HydraConfig.instance().set_config(copy.deepcopy(composed))  # makes what it gets read-only
    config = copy.deepcopy(composed)
    with read_write(config), open_dict(config):
        del config["hydra"]
    return planned_run(parse(plain_config(job, config)), here=here)


def planned_run(config: Config, *, here: bool = True) -> Planned | None:
    """Return the run that `config` means, which must be buildable unless it is done.

    None where it has no name yet: with `progressive` the weights that it starts from are not there. Where it runs
    on another machine, whether its step is compiled is found out there.

    Raises:
        QexpError: the data are missing, or the method does not support what is asked of it.
    """
    from qexp.commands import progressive, ptq, train

    exact = here or config.trainer.compile is False
    if not exact:
        config = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, compile=False))
    config, last = progressive.upcoming(config)
    planned = dataclasses.replace((train if config.calibration is None else ptq).plan(config), exact=exact)
    if planned.run.read_result() is None:
        from qexp.commands.network import check_network

        check_network(planned.config, planned.source)
    return planned if last else None

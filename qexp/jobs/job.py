"""One job of a command: from the composed configuration to a record of how it ended. Jobs never end each other."""

from __future__ import annotations

import dataclasses
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qexp.build import check_targets
from qexp.config import Config, parse
from qexp.errors import ConfigError, Interrupted, QexpError, did_you_mean
from qexp.interrupts import hand_back, raising_on_sigterm
from qexp.jobs.composition import FAILURE, NAMED, decode_layers, decode_overrides, loader
from qexp.jobs.security import check_interpolations
from qexp.jobs.sweeps import Sweep
from qexp.locks import InUseError
from qexp.saved import check_place, run_config

MAKERS = ("train", "ptq")
"""The commands that make runs."""

_interrupted_by: list[int] = []
"""The signal that stopped a job of this process; a sweep's later jobs in it are not started."""


@dataclass(frozen=True)
class Job:
    """What every job of one command line has in common; `sweep` where it runs in another process than that."""

    command: str
    dry_run: bool = False
    config_dir: Path | None = None
    sweep: Sweep | None = None


@dataclass(frozen=True)
class Record:
    """How one job ended: done, skipped, failed, interrupted, missing (not started), or what is planned.

    `running`: another process has this run. `started`: the last word of a worker that has not ended, or died.
    """

    overrides: str
    status: str
    exit_code: int = 0
    run_id: str = ""
    message: str = ""
    metric: float | None = None
    metric_name: str = ""
    path: str = ""


def run_job(job: Job, composed: DictConfig) -> Record:
    """Run one job and return its record; a mistake, a bug or a signal is recorded, never raised."""
    hydra = HydraConfig.get()
    typed: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    overrides = decode_overrides(typed)
    sweep = hydra.mode is RunMode.MULTIRUN
    if job.sweep is None:
        return _run_job(job, composed, overrides, sweep=sweep)
    number = int(hydra.job.num)
    job.sweep.note(number, dataclasses.asdict(Record(overrides, "started")))
    record = _run_job(job, composed, overrides, sweep=sweep)
    job.sweep.note(number, dataclasses.asdict(record))
    return record


def _run_job(job: Job, composed: DictConfig, overrides: str, *, sweep: bool) -> Record:
    if _interrupted_by or (job.sweep and job.sweep.stopped_by()):
        return Record(overrides, "missing", message="not started: the sweep was interrupted")
    if sweep and not job.dry_run:
        print(f"\n[{int(HydraConfig.get().job.num) + 1}] {overrides or job.command}", flush=True)
    if job.sweep:
        job.sweep.stand_fast()
    try:
        with raising_on_sigterm():
            if job.sweep:
                job.sweep.enter(job.config_dir)
            if FAILURE in composed:
                raise ConfigError(str(composed[FAILURE]))
            return record_of(overrides, _execute(job, parse(plain_config(job, composed))))
    except Interrupted as stop:
        return _interrupted(job, overrides, stop, sweep=sweep)
    except KeyboardInterrupt:
        return _interrupted(job, overrides, Interrupted(signal.SIGINT), sweep=sweep)
    except InUseError as error:
        if sweep:
            return Record(
                overrides, "running", run_id=error.folder.name, message=str(error), path=str(error.folder)
            )
        return _failed(job, overrides, error)
    except QexpError as error:
        return _failed(job, overrides, error)
    except Exception as error:
        traceback.print_exc()
        return Record(overrides, "failed", 1, message=f"{type(error).__name__}: {error}".splitlines()[0])


def _failed(job: Job, overrides: str, error: QexpError) -> Record:
    print(f"qexp {job.command}: {error}", file=sys.stderr)
    return Record(overrides, "failed", error.exit_code, message=str(error))


def _interrupted(job: Job, overrides: str, stop: Interrupted, *, sweep: bool) -> Record:
    hand_back(stop)
    _interrupted_by.append(stop.signal)
    if not sweep:  # a sweep's summary says it
        print(f"qexp {job.command}: {stop}", file=sys.stderr)
    return Record(overrides, "interrupted", stop.exit_code, message=str(stop))


def _execute(job: Job, config: Config) -> Any:
    if job.command == "train":
        from qexp.commands import train

        return train.run(config, dry_run=job.dry_run)
    if job.command == "ptq":
        from qexp.commands import ptq

        return ptq.run(config, dry_run=job.dry_run)
    if job.dry_run:
        raise ConfigError(f"--dry-run: qexp {job.command} changes nothing, leave it out.")
    if job.command == "eval":
        from qexp.commands import eval as evaluation

        return evaluation.run(config)
    from qexp.commands import explain

    return explain.run(config)


def record_of(overrides: str, outcome: Any) -> Record:
    """Return the record of a command that came to its end; `outcome` is what it returned."""
    result = outcome if isinstance(outcome, dict) else {}
    name, status = str(result.get("primary_metric", "")), str(result.get("status", "done"))
    return Record(
        overrides,
        status,
        int(status == "failed"),
        run_id=str(result.get("run_id", "")),
        metric=result.get("metrics", {}).get(name),
        metric_name=name,
        message=str(result.get("message", "")),
        path=str(result.get("path", "")),
    )


def plain_config(job: Job, composed: DictConfig) -> dict[str, Any]:
    """Return the composed configuration as plain containers, resolved, with layers by their patterns.

    Raises:
        ConfigError: a `_target_` or an interpolation that is refused, a reference to nothing.
    """
    check_interpolations(OmegaConf.to_container(composed, resolve=False))
    try:
        plain: Any = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'configuration'}: {str(error).splitlines()[0]}") from error
    plain["layers"] = _name_methods(job, decode_layers(plain.get("layers") or {}))
    if run := (plain.get(job.command) or {}).get("run"):
        typed: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
        plain = of_run(Path(str(run)), job.command, plain, typed)
    else:
        choices = HydraConfig.get().runtime.choices
        refuse_other_command(job.command, str(choices["experiment"]), plain["experiment"].get("command"))
        plain["names"] = {key: str(choices[key]) for key in NAMED if key in choices}
        if plain["experiment"].get("name") is None and choices["experiment"] != "none":
            plain["experiment"]["name"] = str(choices["experiment"])
    for key in ("command", "grids", "table"):  # of the sweep, not of one of its jobs
        plain["experiment"].pop(key, None)
    check_targets(plain)
    return dict(plain)


def refuse_other_command(command: str, experiment: str, wanted: object) -> None:
    """Refuse an experiment whose runs another command makes.

    Args:
        command: the one that was typed.
        experiment: the option chosen; `none` for no experiment.
        wanted: its `experiment.command`; None for train.

    Raises:
        ConfigError: it belongs to `qexp ptq` and another command was typed, or the other way round.
    """
    if experiment == "none":
        return
    if wanted not in (None, *MAKERS):
        raise ConfigError(f"experiment.command={wanted}: null, or one of {', '.join(MAKERS)}.")
    maker = str(wanted or MAKERS[0])
    if "ptq" in (command, maker) and command != maker:  # eval and explain read networks as train makes them
        line = f"qexp {maker} experiment={experiment}"
        raise ConfigError(f"experiment={experiment}: its runs are not made by qexp {command}; type `{line}`.")


def of_run(folder: Path, command: str, plain: Mapping[str, Any], typed: Sequence[str]) -> dict[str, Any]:
    """Return the configuration that the run in `folder` was made with, with the places that were typed now.

    Args:
        command: eval or explain, whose own keys come from `plain`, the configuration composed now.
        typed: the overrides of the command line.

    Raises:
        ConfigError: there is no run, or something was typed that the run has decided.
    """
    places = {}
    for override in typed:
        key = override.partition("=")[0].lstrip("+")
        top, _, name = key.partition(".")
        if top not in (command, "hydra", "engine"):
            check_place(key, decode_overrides([override]))
            places[key] = plain[top][name]
    own = {key: plain[key] for key in (command, "engine") if key in plain}
    return {**run_config(folder, f"{command}.run", places), **own}


def _name_methods(job: Job, layers: dict[str, Any]) -> dict[str, Any]:
    """Replace each layer's `quantizer: name` by what configs/quantizer/name.yaml holds, with its name."""
    for pattern, settings in layers.items():
        name = settings.get("quantizer") if isinstance(settings, dict) else None
        if isinstance(name, str):
            repository = loader(job.config_dir).repository
            found = repository.load_config(f"quantizer/{name}")
            if found is None:
                options = repository.get_group_options("quantizer")
                raise ConfigError(
                    f"layers.'{pattern}'.quantizer={name}: unknown quantizer.{did_you_mean(name, options)}"
                )
            settings["quantizer"] = {"name": name, **OmegaConf.to_container(found.config, resolve=True)}  # type: ignore[dict-item]
    return layers


def by_reason(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the failed jobs by why: one reason often serves many. Of a user's mistake all lines are told."""
    reasons: dict[str, list[Record]] = {}
    for record in records:
        if record.message and record.status == "failed":
            lines = record.message.splitlines()
            told = lines if record.exit_code == ConfigError.exit_code else lines[:1]
            reasons.setdefault("\n  ".join(told), []).append(record)
    return reasons


def exit_code(records: Sequence[Record], *, sweep: bool) -> int:
    """Return the program's exit code: a signal's first, then a failure's (in a sweep always 1)."""
    for record in records:
        if record.status == "interrupted":
            return record.exit_code
    failed = [record for record in records if record.exit_code]
    return (1 if sweep else failed[0].exit_code) if failed else 0

"""Runs one command under Hydra: composing, the gate, exit codes, single runs and sweeps."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from qexp import build
from qexp.commands.options import Parser
from qexp.errors import ConfigError, Interrupted, QexpError
from qexp.files import is_there
from qexp.interrupts import asking_workers, raising_on_sigterm
from qexp.jobs.composition import QexpLoader, decode_layers, encode_override, loader
from qexp.jobs.grids import expand, left_out, sweep
from qexp.jobs.job import Job, Record, exit_code, of_run, refuse_other_command, run_job
from qexp.jobs.launchers import KEEP, Launcher, quoted
from qexp.jobs.preflight import Preflight, look, say
from qexp.jobs.summary import lost, print_summary, settled
from qexp.jobs.sweeps import Sweep
from qexp.paths import from_home
from qexp.saved import PLACES, check_place


def parser(command: str) -> argparse.ArgumentParser:
    """Return the parser of a command's options; everything else on its line is `key=value`."""
    options = Parser(prog=f"qexp {command}", add_help=False, allow_abbrev=False)
    options.add_argument("overrides", nargs="*", metavar="key=value")
    options.add_argument("--multirun", "-m", action="store_true")
    options.add_argument("--config-dir", "-cd", type=Path)
    options.add_argument("--plugin", action="append", default=[])
    options.add_argument("--dry-run", action="store_true")
    options.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    options.add_argument("--resolve", action="store_true")
    options.add_argument("--package", "-p")
    topics = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]
    options.add_argument("--info", "-i", nargs="?", const="all", choices=topics)
    options.add_argument("--shell-completion", "-sc", action="store_true")
    return options


def main(command: str, argv: Sequence[str]) -> int:
    """Run `command` (train, ptq, eval or explain) with its command line and return the exit code.

    A user's mistake ends in one line on stderr and 2, a bug or a failed job of a sweep in 1, Ctrl-C in 130.
    """
    version.setbase("1.3")
    try:
        arguments = parser(command).parse_intermixed_args(list(argv))
        for name in arguments.plugin:
            build.add_plugin(name, [Path.cwd(), *filter(None, [arguments.config_dir])])
        with raising_on_sigterm():
            return _run(command, arguments)
    except QexpError as error:
        print(f"qexp {command}: {error}", file=sys.stderr)
        return error.exit_code
    except Interrupted as stop:
        return stop.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        GlobalHydra.instance().clear()


def _run(command: str, arguments: argparse.Namespace) -> int:
    config_loader = loader(arguments.config_dir)
    hydra = Hydra(task_name=f"qexp {command}", config_loader=config_loader)
    GlobalHydra.instance().initialize(hydra)
    overrides = [encode_override(text) for text in _with_run(command, arguments.overrides)]
    job = Job(command, dry_run=arguments.dry_run, config_dir=arguments.config_dir)
    if arguments.cfg:
        _check_cfg(arguments, named=_names_run(command, overrides))
    elif arguments.resolve or arguments.package:
        raise ConfigError("--resolve and --package say how --cfg prints; add --cfg job, or leave them out.")
    try:
        if arguments.shell_completion:
            hydra.shell_completion(config_name=command, overrides=overrides)
        elif arguments.cfg == "job" and not arguments.package:
            _print_config(hydra, command, overrides, resolve=arguments.resolve)
        elif arguments.cfg:
            return _show(hydra, command, overrides, arguments)
        elif arguments.info:
            hydra.show_info(arguments.info, command, overrides)
        else:
            return _launch(hydra, overrides, job, multirun=arguments.multirun)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(config_loader.describe(error, command, overrides)) from error
    return 0


def _with_run(command: str, typed: Sequence[str]) -> list[str]:
    """Return what was typed with `qexp eval FOLDER` (and explain) as `eval.run='FOLDER'`, places as `_place`."""
    if command not in ("eval", "explain"):
        return list(typed)
    words = [text if _is_setting(text) else f"{command}.run={quoted(text)}" for text in typed]
    return [_place(command, word) for word in words] if _names_run(command, words) else words


def _names_run(command: str, words: Sequence[str]) -> bool:
    return any(word.startswith(f"{command}.run=") for word in words)


def _place(command: str, word: str) -> str:
    """Return a place so that Hydra takes it, whatever the data set that it composes; the run's own may be another.

    Raises:
        ConfigError: what the run has decided, also where the composed data set does not know it; a deletion, as
            nothing is left out of a run.
    """
    key = word.partition("=")[0]
    if word and re.split(r"[./]", key.lstrip("+"))[0] not in (command, "engine", "hydra"):
        check_place(key.lstrip("+"), word)
    return f"++{word}" if key in PLACES else word


def _is_setting(text: str) -> bool:
    return not text or text.startswith("~") or ("=" in text and not (is_there(text) and Path(text).is_dir()))


def _launch(hydra: Hydra, overrides: list[str], job: Job, *, multirun: bool) -> int:
    composed = hydra.compose_config(
        job.command, overrides, RunMode.MULTIRUN, validate_sweep_overrides=False, with_log_configuration=False
    )
    experiment = str(composed.hydra.runtime.choices.get("experiment", "none"))
    refuse_other_command(job.command, experiment, OmegaConf.select(composed, "experiment.command"))
    mode = RunMode.MULTIRUN if multirun else composed.hydra.mode or RunMode.RUN
    overrides = [*overrides, f"hydra.mode={mode.name}"]
    if mode is RunMode.RUN:
        record = hydra.run(job.command, functools.partial(run_job, job), overrides).return_value
        return exit_code([record], sweep=False)
    return _sweep(hydra, overrides, job, composed)


def _sweep(hydra: Hydra, overrides: list[str], job: Job, composed: DictConfig) -> int:
    node: Any = OmegaConf.to_container(composed.hydra.launcher, resolve=True)
    launcher = Launcher(str(composed.hydra.runtime.choices["hydra/launcher"]), node)
    launcher.check()
    at_once = launcher.at_once(composed.hydra.sweeper.get("max_batch_size"))
    # Hydra's sweeper writes files of its own; runs have their folders, so those go where they disappear.
    with launcher.folder(Path(from_home(str(composed.output_dir)))) as folder:
        words = [f"hydra.sweep.dir={quoted(str(folder))}", *overrides, *launcher.overrides(folder, at_once)]
        config = hydra.compose_config(job.command, words, RunMode.MULTIRUN, with_log_configuration=False)
        found = _look(hydra, config, job, here=not launcher.other_machines)
        if not found.jobs:
            return _finish(found, [])
        if not launcher.elsewhere:
            return _finish(found, _start(hydra, config, job, found))
        line = " ".join(["qexp", *sys.argv[1:]])
        shared = Sweep(folder, Path.cwd(), build.plugins(), line, deaf=launcher.name == "joblib")
        with launcher.environment(at_once):
            job = dataclasses.replace(job, sweep=shared)
            records, code = _start_elsewhere(hydra, config, job, found, launcher.name, shared)
        if launcher.keeps_logs and any(record.status == "failed" for record in records):
            (folder / KEEP).touch()
            print(f"what the jobs printed: {folder / 'jobs'}")
        by_records = _finish(found, records)
        return by_records if code is None else code


def _look(hydra: Hydra, config: DictConfig, job: Job, *, here: bool) -> Preflight:
    """Expand the sweep and look at all its jobs before the first one starts."""
    configs = hydra.config_loader
    assert isinstance(configs, QexpLoader)  # as made in `_run`
    settings, grids = config.hydra.sweeper, config.experiment.get("grids")
    typed = list(config.hydra.overrides.task)
    jobs = expand(list(grids or []), settings.params or {}, typed, configs)
    for line in left_out(jobs, typed, configs):
        print(line, flush=True)
    found = look(job, configs, config, jobs, here=here)
    say(found, dry_run=job.dry_run)
    return found


def _finish(found: Preflight, launched: Sequence[Record]) -> int:
    records = found.in_order([*found.refused, *found.done, *launched])
    print_summary(records)
    return exit_code(records, sweep=True)


def _start(hydra: Hydra, config: DictConfig, job: Job, found: Preflight) -> list[Record]:
    """Launch the jobs that are left to do and return what came of them."""
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config)),
        task_function=functools.partial(run_job, job),
        config=config,
    )

    def launch(batch: list[list[str]], number: int) -> Sequence[Any]:
        return [done.return_value for done in launcher.launch(batch, initial_job_idx=number)]

    return list(map(settled, sweep(found.jobs, launch, config.hydra.sweeper.max_batch_size)))


def _start_elsewhere(
    hydra: Hydra, config: DictConfig, job: Job, found: Preflight, launcher: str, shared: Sweep
) -> tuple[list[Record], int | None]:
    """Return the records, and the exit code when they alone do not decide it."""
    try:
        with asking_workers(shared.stop):
            records = _start(hydra, config, job, found)
    except (QexpError, HydraException, OmegaConfBaseException, YAMLError):
        raise
    except Interrupted as stop:  # a second signal: what still ends is told to by what stays in the folder
        (shared.folder / KEEP).touch()
        return [lost(Record(**noted), stop) for noted in shared.noted()], stop.exit_code
    except Exception as error:  # a launcher's own, when one of its workers has died
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"qexp {job.command}: hydra/launcher={launcher} gave up: {text}", file=sys.stderr)
        print("Jobs that are not in the table were not started; type the command again.", file=sys.stderr)
        return [lost(Record(**noted)) for noted in shared.noted()], 1
    number = shared.stopped_by()
    return records, None if number is None else Interrupted(number).exit_code


def _check_cfg(arguments: argparse.Namespace, *, named: bool) -> None:
    """Refuse to print many configurations as one, and of a run that is `named` what the defaults are."""
    if arguments.multirun:
        raise ConfigError(
            f"--cfg {arguments.cfg}: prints the configuration of one job; leave -m out, give each key one value."
        )
    if named and (arguments.cfg != "job" or arguments.package):
        raise ConfigError("--cfg job, without --package, prints a run's configuration; leave the rest out.")


def _show(hydra: Hydra, command: str, overrides: list[str], arguments: argparse.Namespace) -> int:
    """Print what --cfg and --package ask for; of a package that there is none of Hydra says so, and exits."""
    try:
        hydra.show_cfg(command, overrides, arguments.cfg, arguments.package, arguments.resolve)
    except SystemExit:
        return ConfigError.exit_code
    return 0


def _print_config(hydra: Hydra, command: str, overrides: list[str], *, resolve: bool) -> None:
    composed = hydra.compose_config(command, overrides, RunMode.RUN)
    typed = list(composed.hydra.overrides.task)
    with open_dict(composed):
        del composed["hydra"]
    plain: Any = OmegaConf.to_container(composed, resolve=resolve)
    plain["layers"] = decode_layers(plain["layers"])
    if run := (plain.get(command) or {}).get("run"):
        plain = of_run(Path(str(run)), command, plain, typed)
    print(OmegaConf.to_yaml(OmegaConf.create(plain)), end="")

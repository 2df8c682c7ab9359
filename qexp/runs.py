"""A run's folder and its record: what was asked, what happened, and how far it came."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from qexp import locks
from qexp.errors import ConfigError
from qexp.files import MetricsFile, atomic_write, holds, is_there, remove_parts
from qexp.identity import digest

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Of the record; raised when a reader of the old one would misread the new one."""

Status = Literal["done", "running", "failed", "interrupted", "missing"]


class RunDirectory:
    """One run's folder: `outputs/<experiment>/<run_id>/`.

    Nothing is created before `lock` or `prepare`; reading works on any folder.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def checkpoint(self) -> Path:
        """The last checkpoint, from which the run resumes."""
        return self.path / "last.ckpt"

    @property
    def metrics(self) -> MetricsFile:
        """The numbers of every epoch."""
        return MetricsFile(self.path / "metrics.csv")

    @property
    def events(self) -> Path:
        """TensorBoard's folder."""
        return self.path / "tensorboard"

    @property
    def figures(self) -> Path:
        """The folder of PNG figures."""
        return self.path / "figures"

    @property
    def log(self) -> Path:
        """The text that the run printed for its record."""
        return self.path / "run.log"

    def prepare(self, config: Mapping[str, Any], identity: Mapping[str, Any], environment: Any) -> None:
        """Create the folder and write what was asked, before any time is spent.

        Args:
            config: resolved, plain containers.
            identity: what decides the result.
            environment: of `qexp.lit.environment.describe()`; that of a run that goes on stands in resumed.json.

        Raises:
            ConfigError: the folder cannot be written, or belongs to another configuration.
        """
        try:
            self._make()
            self._refuse_another(identity)
            atomic_write(self.path / "identity.json", json.dumps(identity, indent=2, sort_keys=True) + "\n")
            atomic_write(self.path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
            self._write_environment(environment)
        except OSError as error:
            raise self._not_writable(error) from error

    def _write_environment(self, environment: Any) -> None:
        """Write where the run was started, which stays, and in resumed.json where it went on."""
        first = _read_json(self.path / "environment.json")
        if not (isinstance(first, dict) and self.checkpoint.exists()):
            atomic_write(self.path / "environment.json", json.dumps(environment, indent=2) + "\n")
            return
        later = _read_json(self.path / "resumed.json")
        every = [*(later if isinstance(later, list) else []), environment]
        atomic_write(self.path / "resumed.json", json.dumps(every, indent=2) + "\n")
        before, now = _arithmetic(first), _arithmetic(environment)
        if changed := [f"{name} {now[name]} (was {before[name]})" for name in before if before[name] != now[name]]:
            log.warning("%s goes on with %s: not bit for bit as it began.", self.path, ", ".join(changed))

    def _make(self) -> None:
        if self.path.is_symlink() and not self.path.exists():
            self.path.unlink()  # another experiment's run, which was taken away
        self.path.mkdir(parents=True, exist_ok=True)

    def _refuse_another(self, identity: Mapping[str, Any]) -> None:
        found = _read_json(self.path / "identity.json")
        wanted = json.loads(json.dumps(identity))
        if isinstance(found, dict) and found != wanted:
            raise ConfigError(
                f"{self.path} holds a run of another configuration (its identity.json differs); choose another"
                " experiment.name or output_dir, or move that folder away."
            )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder, which is created where there is none, for this process; other machines see it too.

        Raises:
            InUseError: another process holds it; the message names it.
            ConfigError: the folder cannot be written.
        """
        with contextlib.ExitStack() as held:
            try:
                self._make()
                held.enter_context(locks.hold(self.path))
                remove_parts(self.path)
            except OSError as error:
                raise self._not_writable(error) from error
            yield

    def _not_writable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"output_dir: cannot write {self.path} ({error.strerror}); make room, or name a folder you may write"
            " with output_dir=<folder>."
        )

    def locked(self) -> bool:
        """Return whether a process holds the folder now."""
        return locks.held(self.path)

    def refuse_locked(self) -> None:
        """Raise InUseError when a process holds the folder now."""
        if self.locked():
            raise locks.InUseError(self.path, locks.owner(self.path))

    def status(self) -> Status:
        """Return how far the run came; `interrupted` also when its process was killed without a word."""
        if self.read_result() is not None:
            return "done"
        if self.locked():
            return "running"
        failure = self.read_failure()
        if failure is not None:
            return "interrupted" if failure.get("status") == "interrupted" else "failed"
        return "interrupted" if is_there(self.path / "config.yaml") else "missing"

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`, the last thing of a run: its presence means that the run is done."""
        atomic_write(self.path / "result.json", json.dumps(_without_nan(dict(result)), indent=2) + "\n")
        self.clear_failure()

    def read_result(self) -> dict[str, Any] | None:
        """Return the result, or None when there is none that can be read."""
        found = _read_json(self.path / "result.json")
        return found if isinstance(found, dict) else None

    def write_failure(self, text: str, exit_code: int, status: Status = "failed") -> None:
        """Say why the run ended early; a folder that cannot be written is no second failure."""
        record = {"format_version": FORMAT_VERSION, "status": status, "message": text, "exit_code": exit_code}
        with contextlib.suppress(OSError):
            atomic_write(self.path / "failure.json", json.dumps(record, indent=2) + "\n")

    def read_failure(self) -> dict[str, Any] | None:
        """Return the failure's record, or None."""
        found = _read_json(self.path / "failure.json")
        return found if isinstance(found, dict) else None

    def add_warning(self, text: str) -> None:
        """Keep a warning for the record, once, also when the run is resumed and warns again."""
        found = self.read_warnings()
        if text not in found:
            atomic_write(self.path / "warnings.json", json.dumps([*found, text], indent=2) + "\n")

    def read_warnings(self) -> list[str]:
        """Return what the run warned of so far."""
        found = _read_json(self.path / "warnings.json")
        return [str(text) for text in found] if isinstance(found, list) else []

    def clear_failure(self) -> None:
        """Forget an earlier failure: the run goes on, or is done."""
        (self.path / "failure.json").unlink(missing_ok=True)


@dataclass(frozen=True)
class Run:
    """A run as its folder tells it.

    Attributes:
        problem: what in the folder could not be read.
        identity: what decides its result, of `qexp.identity`; empty where the folder does not tell.
    """

    path: Path
    status: Status
    config: dict[str, Any]
    result: dict[str, Any] | None
    failure: str | None
    environment: dict[str, Any]
    problem: str | None = None
    identity: dict[str, Any] = field(default_factory=dict)


def run_beside(file: Path) -> Run | None:
    """Return the run whose last checkpoint `file` is; None for a checkpoint of elsewhere."""
    run = RunDirectory(file.parent)
    return read_run(run.path) if file == run.checkpoint else None


def read_run(path: Path) -> Run:
    """Read one run folder; damage goes into `problem`, never into an exception."""
    directory = RunDirectory(path)
    status = directory.status()  # before the result, which may come between the two
    problems = []
    config: Any = {}
    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        problems.append(f"config.yaml: {' '.join(str(error).split())[:120]}")
    if not isinstance(config, dict):
        problems.append("config.yaml: not a mapping")
        config = {}
    if wrong := [key for key in ("seed", "epochs") if not isinstance(config.get(key), int | None)]:
        problems.append(f"config.yaml: {wrong[0]} is no whole number")
        config = {}
    for name in ("result.json", "failure.json", "environment.json"):
        if is_there(path / name) and not isinstance(_read_json(path / name), dict):
            problems.append(f"{name}: not readable as a JSON object")
    result = directory.read_result()
    content = _read_json(path / "identity.json")
    identity = content if isinstance(content, dict) else {}
    digests = identity.get("digests")
    if result is not None and isinstance(digests, dict):  # which the results of earlier versions do not have
        started = {f"{name}_digest": digests[name] for name in ("weights", "teacher") if name in digests}
        result = started | result
    if result is not None and (wrong_result := _unusable(result)):
        problems.append(f"result.json: {wrong_result}")
        result = None
    failure = directory.read_failure()
    environment = _read_json(path / "environment.json")
    return Run(
        path=path,
        status=status,
        config=config,
        result=result,
        failure=str(failure.get("message", "")) if failure else None,
        environment=environment if isinstance(environment, dict) else {},
        problem="; ".join(problems) or None,
        identity=identity,
    )


def _unusable(result: Mapping[str, Any]) -> str:
    """Return why a result cannot be read as one; empty where it can."""
    if isinstance(version := result.get("format_version", 1), int) and version > FORMAT_VERSION:
        return f"of format {version}, which a newer qexp wrote"
    metrics = result.get("metrics", {})
    if not isinstance(metrics, dict) or not all(
        isinstance(value, float | int | None) for value in metrics.values()
    ):
        return "its metrics are no numbers by name"
    return ""


RECORDS = "records"
"""A folder of this name holds runs that are kept with the tables made from them; it counts where it is named."""

RESULTS = "results"
"""Likewise, a folder of this name straight below the one that is looked through."""

_MARKS = frozenset({"config.yaml", "result.json", "failure.json"})
"""Files that only a run's folder holds."""


def find_runs(root: Path) -> list[Run]:
    """Return every run below `root` (or `root` itself), sorted by path; a missing root has none.

    A link to a run is one that another experiment made; links to folders of runs are followed, once each.
    """
    return [read_run(folder) for folder in sorted(folder for folder, is_run in _folders(Path(root)) if is_run)]


def _folders(root: Path, seen: set[str] | None = None) -> Iterator[tuple[Path, bool]]:
    """Yield `root` and every folder below it, and whether it is a run's; records are left out.

    Links to folders elsewhere are followed, but for those to folders in `seen`.
    """
    hidden = {".hydra", RECORDS}
    apart = None if seen is not None else root / RESULTS
    seen, here = set() if seen is None else seen, Path(os.path.realpath(root))
    seen.add(str(here))
    for place, below, files in os.walk(root, onerror=_note):
        folder = Path(place)
        yield folder, bool(_MARKS.intersection(files))
        # A run's own folders hold no runs, and are many.
        below[:] = [] if "identity.json" in files else [name for name in below if name not in hidden]
        below[:] = [name for name in below if folder / name != apart]
        for link in (folder / name for name in below if holds((folder / name).is_symlink)):
            if any(is_there(link / mark) for mark in _MARKS):
                yield link, True
                continue
            there = Path(os.path.realpath(link))
            elsewhere = not there.is_relative_to(here) and not here.is_relative_to(there)
            if elsewhere and str(there) not in seen:
                yield from _folders(link, seen)


def _note(error: OSError) -> None:
    """Say that a folder is left out; one that is gone meanwhile needs no word."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        _note_once(f"{error.filename}: left out, it cannot be read ({error.strerror})")


@functools.cache
def _note_once(line: str) -> None:
    log.warning(line)


def made_elsewhere(root: Path, folder: Path) -> Path | None:
    """Return another folder below `root` that holds the run whose own folder would be `folder`, if there is one.

    Names hold the run's identity, so the same name is the same run: experiments share it instead of repeating it.

    Raises:
        ConfigError: the folder may not be entered.
    """
    try:
        if folder.exists() or not root.is_dir():
            return None
    except OSError as error:
        raise RunDirectory(folder)._not_writable(error) from error
    for found, _ in _folders(root):
        is_it = found.name == folder.name and not holds(found.is_symlink)
        if is_it and RunDirectory(found).status() != "missing":
            return found
    return None


def made_by(checkpoint: str, seed: int) -> str | None:
    """Return the digest of how a checkpoint was trained, seeds aside; None unless it is that of a run of `seed`.

    Runs of several seeds, each from the float network of its own seed, are runs of one recipe.

    Args:
        checkpoint: a run's folder, or a file.
    """
    path = Path(checkpoint).expanduser()
    run = RunDirectory(path if path.is_dir() else path.parent)
    content = _read_json(run.path / "identity.json")
    if not isinstance(content, dict) or not isinstance(content.get("digests"), dict):
        return None
    if content.get("seed") != seed or path not in (run.path, run.checkpoint):
        return None
    result = run.read_result() or {}
    digests = {name: result.get(f"{name}_recipe", known) for name, known in content["digests"].items()}
    return digest({**content, "seed": None, "digests": digests})


def link_run(folder: Path, found: Path) -> None:
    """Make `folder` a relative link to the run in `found`.

    Raises:
        ConfigError: the link cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.is_symlink():  # what it pointed at is gone
            folder.unlink(missing_ok=True)
        # Of the places themselves: `..` in a link is read from where the folder is, not from a link to it.
        target = os.path.relpath(os.path.realpath(found), os.path.realpath(folder.parent))
        folder.symlink_to(target, target_is_directory=True)
    except OSError as error:
        if os.path.realpath(folder) == os.path.realpath(found):
            return  # the same command on another machine, or in another window, was faster
        raise RunDirectory(folder)._not_writable(error) from error


def _arithmetic(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run's last digits hang on, of the record of its environment."""
    packages = environment.get("packages")
    torch = packages.get("torch") if isinstance(packages, dict) else None
    return {"torch": torch, "threads": environment.get("threads"), "gpu": environment.get("gpu")}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _without_nan(value: Any) -> Any:
    """JSON knows no NaN and no infinity: null, so that every reader can read the record."""
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and value - value != 0.0:
        return None
    return value

"""The launchers that carry a sweep to other processes and machines: what each needs before Hydra calls it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qexp.errors import ConfigError

EXTRA = "launchers"
"""The extra of the package that brings all of them."""

KEEP = "keep"
"""A file of this name in a sweep's folder keeps the folder."""

_ONE_MACHINE = ("basic", "joblib")


@dataclass(frozen=True)
class Launcher:
    """A launcher as it was chosen and composed.

    Args:
        name: the option of `hydra/launcher`.
        node: what it was given, resolved, plain containers.
    """

    name: str
    node: Mapping[str, Any]

    @property
    def elsewhere(self) -> bool:
        """Whether its jobs run in other processes than this one."""
        return self.name != "basic"

    @property
    def other_machines(self) -> bool:
        """Whether its jobs may run where there are other devices and compilers."""
        return self.name == "submitit_slurm" or (self.name == "ray" and bool(os.environ.get("RAY_ADDRESS")))

    @property
    def keeps_logs(self) -> bool:
        """Whether what its jobs print goes into files instead of this terminal."""
        return self.name.startswith("submitit")

    def check(self) -> None:
        """Refuse what would fail only when the jobs start.

        Raises:
            ConfigError: it is not installed, or there is no Slurm.
        """
        module = str(self.node["_target_"]).rpartition(".")[0].rpartition(".")[0]
        if self.elsewhere and not _is_installed(module):
            raise ConfigError(f"hydra/launcher={self.name}: needs the extra: pip install 'qexp[{EXTRA}]'")
        if self.name == "submitit_slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
            raise ConfigError(
                "hydra/launcher=submitit_slurm: there is no Slurm here (sbatch and srun are not on PATH);"
                " submitit_local runs the same jobs on this machine."
            )

    def at_once(self, batch: int | None) -> int | None:
        """Return how many jobs may be handed to it at once: submitit_local starts all that it is given.

        Args:
            batch: what was configured.
        """
        return batch or cores() if self.name == "submitit_local" else batch

    def overrides(self, folder: Path, at_once: int | None) -> list[str]:
        """Return the settings that only this process knows, as overrides; `folder` is the sweep's."""
        words = [] if at_once is None else [f"hydra.sweeper.max_batch_size={at_once}"]
        if self.keeps_logs:
            words.append(f"hydra.launcher.submitit_folder={quoted(str(folder / 'jobs' / '%j'))}")
        return words

    @contextlib.contextmanager
    def environment(self, at_once: int | None) -> Iterator[None]:
        """Within, the jobs inherit what makes them share this machine: each takes its part of the threads.

        joblib and Ray see to it by themselves, Slurm's jobs learn their part where they run.
        """
        settings = {}
        if self.name == "submitit_local":
            settings["OMP_NUM_THREADS"] = str(max(1, cores() // (at_once or 1)))
        if self.name == "ray":
            settings["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is reported to anybody, unless the user wants it
        added = {key: value for key, value in settings.items() if key not in os.environ}
        os.environ.update(added)
        try:
            with self._ray() if self.name == "ray" else contextlib.nullcontext():
                yield
        finally:
            for key in added:
                os.environ.pop(key, None)

    @contextlib.contextmanager
    def _ray(self) -> Iterator[None]:
        """Start Ray, or connect to it, before Hydra's launcher would: it takes the signals, which are ours then.

        Raises:
            ConfigError: it does not start, or does not answer.
        """
        import ray

        settings = dict(self.node["ray"]["init"])
        if address := os.environ.get("RAY_ADDRESS"):
            _reach_ray(address)
        else:  # without it Ray joins the cluster that a file in /tmp names, which anybody may write
            settings["address"] = "local"
        try:
            ray.init(**settings)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"hydra/launcher=ray: Ray does not start: {reason}") from error
        try:
            yield
        finally:
            ray.shutdown()

    @contextlib.contextmanager
    def folder(self, output_dir: Path) -> Iterator[Path]:
        """Yield a new folder that the jobs see too; it is removed unless it holds a file called KEEP.

        Raises:
            ConfigError: `output_dir` cannot be written.
        """
        base = None if self.name in _ONE_MACHINE else output_dir
        try:
            if base is not None:
                base.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=".sweep-" if base else "qexp-sweep-", dir=base)).absolute()
        except OSError as error:
            raise ConfigError(
                f"output_dir: cannot write {output_dir} ({error.strerror}); name a folder you may write."
            ) from error
        try:
            yield folder
        finally:
            if not (folder / KEEP).exists():
                shutil.rmtree(folder, ignore_errors=True)
            if base is not None:
                with contextlib.suppress(OSError):
                    base.rmdir()  # where nothing else came into it


def _reach_ray(address: str) -> None:
    """Knock at a cluster's door: Ray itself would try for minutes. Raises ConfigError when nobody answers."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise ConfigError(
                f"RAY_ADDRESS={address}: no Ray answers there ({error.strerror or error}); without RAY_ADDRESS"
                " one is started on this machine."
            ) from error


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quoted(text: str) -> str:
    """Quote for Hydra's grammar, in which a path may hold what means something."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False

"""What the jobs of a sweep share with the command that started them, on whichever machine they run: one folder.

In it is how every job came out, for when a launcher gives up on all because one worker died, and the wish to stop.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qexp.build import add_plugin
from qexp.errors import ConfigError
from qexp.files import atomic_write
from qexp.interrupts import STOP_VARIABLE, asked_to_stop


@dataclass(frozen=True)
class Sweep:
    """A sweep whose jobs run in other processes.

    Args:
        folder: seen by all of them.
        cwd: where the command was typed; relative paths start there.
        plugins: the packages that the user named.
        line: what was typed.
        deaf: whether a worker ignores SIGTERM between jobs. Sent to a whole group of processes, it may end one of
            joblib's with the queue's lock in its hand, on which the others would wait for ever.
        owner: the process in which it was typed.
    """

    folder: Path
    cwd: Path
    plugins: tuple[str, ...]
    line: str
    deaf: bool = False
    owner: int = field(default_factory=os.getpid)

    @property
    def stop(self) -> Path:
        """The file whose presence asks the jobs to end."""
        return self.folder / "stop"

    def enter(self, config_dir: Path | None) -> None:
        """Make a worker's process like the one in which the command was typed.

        Raises:
            ConfigError: this machine does not see the folders of the other one.
        """
        try:
            os.chdir(self.cwd)
        except OSError as error:
            raise ConfigError(
                f"{self.cwd}: this worker does not see the folder in which the command was typed; workers on other"
                " machines need a file system in common."
            ) from error
        for name in self.plugins:
            add_plugin(name, [self.cwd, *filter(None, [config_dir])])
        os.environ["QEXP_COMMAND"] = self.line
        os.environ[STOP_VARIABLE] = str(self.stop)
        if cores := os.environ.get("SLURM_CPUS_PER_TASK"):  # what this job has of a machine that it shares
            os.environ.setdefault("OMP_NUM_THREADS", cores)

    def stand_fast(self) -> None:
        """Let a worker that `deaf` is about ignore SIGTERM from now on; a job's own handler comes on top of it."""
        if self.deaf and os.getpid() != self.owner and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def stopped_by(self) -> int | None:
        """Return the signal by which the sweep was stopped, or None."""
        return asked_to_stop(str(self.stop))

    def note(self, number: int, record: Mapping[str, Any]) -> None:
        """Keep how job `number` stands; the newest word counts."""
        atomic_write(self.folder / f"job{number:06}.json", json.dumps(dict(record)) + "\n")

    def noted(self) -> list[dict[str, Any]]:
        """Return the last word of every job that was started, in the sweep's order."""
        return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(self.folder.glob("job*.json"))]

"""A run before anything is spent on it: its data, its name and its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexp.config import Config
from qexp.errors import ConfigError
from qexp.files import file_digest
from qexp.identity import config_digest, identity, run_id
from qexp.runs import FORMAT_VERSION, Run, RunDirectory, link_run, made_by, made_elsewhere, run_beside


@dataclass(frozen=True)
class Planned:
    """A run before anything is spent on it: its data, its name and its folder."""

    config: Config
    source: Any
    identity: dict[str, Any]
    run: RunDirectory
    link: Path | None = None
    """This experiment's own folder, where another experiment has begun or made the run."""
    exact: bool = True
    """Whether the run has this name wherever it is made."""

    @property
    def primary_metric(self) -> str:
        """The number that the run is known by."""
        return f"test_{self.source.primary_metric}"

    @property
    def run_id(self) -> str:
        """The run's name, and its folder's."""
        return self.run.path.name

    def record(self, status: str, result: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what a sweep's summary shows of this job."""
        return {
            "run_id": self.run_id,
            "path": str(self.run.path),
            "status": status,
            "metrics": (result or {}).get("metrics") or {},
            "primary_metric": self.primary_metric,
        }

    def result(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Return what `result.json` holds of every finished run, whatever made it."""
        return {
            "format_version": FORMAT_VERSION,
            "run_id": self.run_id,
            "status": "done",
            "metrics": metrics,
            "primary_metric": self.primary_metric,
            "higher_is_better": self.source.higher_is_better,
            **{name: metrics[name] for name in ("test_accuracy",) if name in metrics},
            "seed": self.config.seed,
            "config_digest": config_digest(self.config),
            "data_digest": self.identity["digests"]["data"],
            **self._origins(),
            "budget": {"name": self.config.budget.name},
            "warnings": self.run.read_warnings(),
        }

    def _origins(self) -> dict[str, str]:
        """Return the digests of where the network started and who taught it, and recipes of runs of its seed."""
        found = {}
        paths = {"weights": self.config.model.get("weights"), "teacher": teacher_weights(self.config)}
        for name, path in paths.items():
            if (digest := self.identity["digests"].get(name)) is not None:
                found[f"{name}_digest"] = digest
                if (recipe := made_by(str(path), self.config.seed)) is not None:
                    found[f"{name}_recipe"] = recipe
        return found

    def preview(self) -> dict[str, Any]:
        """Print and return what running it would do (skip, resume, start; running: another process does it now).

        Nothing is written (`--dry-run`).
        """
        will = {"done": "skip", "running": "running"}.get(self.run.status())
        if will is None:
            will = "resume" if self.run.checkpoint.exists() else "start"
        print(f"{will:7} {self.run.path}")
        return self.record(will, self.run.read_result())

    def done(self, *, first: bool = True) -> dict[str, Any] | None:
        """Link the run into its experiment's folder; return its record if it has its result.

        Args:
            first: whether this is the process that writes.
        """
        if self.link is not None and first:
            link_run(self.link, self.run.path)
        result = self.run.read_result()
        return None if result is None else self.record("skipped", result)

    def begin(self, *, first: bool = True) -> dict[str, Any] | None:
        """Return what `done` does, and say it."""
        done = self.done(first=first)
        if done is None:
            return None
        value = done["metrics"].get(self.primary_metric)
        shown = f"{value:.4f}" if isinstance(value, (int, float)) else "not known"
        print(f"done already: {self.run.path}  {self.primary_metric.replace('_', ' ')} {shown}")
        return done


def accuracy_line(metrics: Mapping[str, float], primary: str, how: str) -> str:
    """Return what a finished run says first: its primary metric, and in brackets how it was come by."""
    top5 = metrics.get("test_accuracy_top5")
    also = "" if top5 is None else f", top-5 {top5:.4f}"
    return f"{primary.replace('_', ' ')} {metrics[primary]:.4f}{also}  ({how})"


def name_run(config: Config, source: Any, digests: Mapping[str, str], *, compiled: bool | None = None) -> Planned:
    """Return the run that `config` means, in its folder or in that of the experiment that has begun it already."""
    content = identity(config, digests, compiled=compiled)
    folder = Path(config.output_dir) / config.experiment.name / run_id(config, content)
    if (found := made_elsewhere(Path(config.output_dir), folder)) is not None:
        return Planned(config, source, content, RunDirectory(found), link=folder)
    return Planned(config, source, content, RunDirectory(folder))


def digests_of(config: Config, source: Any) -> dict[str, str]:
    """Return the digests of the data and, where some are loaded, of the weights."""
    digests = {"data": source.digest()}
    if config.model.get("weights") is not None:
        digests["weights"] = _checkpoint_digest(str(config.model["weights"]))
    if config.task.get("distillation"):
        if (teacher := teacher_weights(config)) is None:
            raise ConfigError(
                "task.distillation: a trained float network is needed; set model.weights, or task.teacher, to its"
                " checkpoint or run."
            )
        digests["teacher"] = _checkpoint_digest(teacher)
    return digests


def _checkpoint_digest(path: str) -> str:
    from qexp.models.weights import checkpoint_file  # with torch, which a sweep of finished runs does not need

    return file_digest(checkpoint_file(path))


def teacher_weights(config: Config) -> str | None:
    """Return where the weights of distillation's float network are."""
    found = config.task.get("teacher") or config.model.get("weights")
    return None if found is None else str(found)


def run_of(weights: str) -> Run | None:
    """Return the run that trained `weights`; None for a checkpoint of elsewhere."""
    from qexp.models.weights import checkpoint_file

    return run_beside(checkpoint_file(weights))


def refuse_other_normalization(config: Config) -> None:
    """Raise ConfigError where a run's weights, used as they are, were trained with another `normalization`."""
    weights = str(config.model["weights"])
    run = run_of(weights)
    if run is None or not run.config:
        return
    asked, trained = (value or "null" for value in (config.normalization, run.config.get("normalization")))
    if asked != trained:
        raise ConfigError(
            f"normalization={asked}: {weights} was trained with normalization={trained}, which makes it another"
            f" network; type normalization={trained}."
        )

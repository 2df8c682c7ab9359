"""Thin wrappers of Lightning's loggers, reached through `logger.<name>._target_`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment

from qexp.errors import ConfigError
from qexp.files import atomic_write


def tensorboard(*, directory: Path, name: str, purge_step: int = 0) -> Logger:
    """TensorBoard events in `directory`/tensorboard.

    Args:
        purge_step: TensorBoard drops earlier events from this step on: a resumed run writes them again.
    """
    return TensorBoardLogger(
        save_dir=directory, name="tensorboard", version="", default_hp_metric=False, purge_step=purge_step
    )


def csv(*, directory: Path, name: str, purge_step: int = 0) -> Logger:
    """Lightning's own wide CSV in `directory`/csv, beside metrics.csv, which qexp always writes.

    Args:
        purge_step: a resumed run writes into `csv/from_<step>`: Lightning empties the folder that it begins in.
    """
    from pytorch_lightning.loggers import CSVLogger

    return CSVLogger(save_dir=directory, name="csv", version=f"from_{purge_step}" if purge_step > 0 else "")


def wandb(
    *, directory: Path, name: str, purge_step: int = 0, project: str = "qexp", offline: bool = False
) -> Logger:
    """Weights & Biases; needs its package."""
    logger: Any = _imported("WandbLogger", "wandb")
    return logger(save_dir=directory, name=name, project=project, offline=offline, id=name, resume="allow")


def mlflow(
    *, directory: Path, name: str, purge_step: int = 0, uri: str | None = None, project: str = "qexp"
) -> Logger:
    """MLflow; needs its package. Without `uri` it writes into `directory`/mlruns.

    Args:
        purge_step: a resumed run goes on with the record whose id `directory`/mlflow_run.txt holds; an epoch that
            it does again stands there twice.
    """
    kind: Any = _imported("MLFlowLogger", "mlflow")
    if uri is None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer ones ask whether a folder is meant
    note = Path(directory) / "mlflow_run.txt"

    class Noting(kind):
        @property
        @rank_zero_experiment
        def experiment(self) -> Any:
            known = self._run_id
            client = super().experiment
            if known is None:
                atomic_write(note, self._run_id)
            return client

    logger: Logger = Noting(
        experiment_name=project,
        run_name=name,
        tracking_uri=uri,
        save_dir=str(Path(directory) / "mlruns"),
        run_id=note.read_text() if purge_step > 0 and note.is_file() else None,
    )
    return logger


def _imported(kind: str, package: str) -> Any:
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"logger.{package}: the package is not installed; `pip install {package}` first.")
    import pytorch_lightning.loggers as loggers

    return getattr(loggers, kind)

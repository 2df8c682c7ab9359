"""What a run's folder keeps of how it went: the reason of an early end, and what was said meanwhile."""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Iterator
from pathlib import Path

from qexp.errors import Interrupted, OutputError, QexpError
from qexp.runs import RunDirectory

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


@contextlib.contextmanager
def recording_failure(folder: RunDirectory) -> Iterator[None]:
    """Leave the reason of an early end in the folder, and turn a full disk into one line."""
    try:
        yield
    except Interrupted as stop:
        folder.write_failure(str(stop), stop.exit_code, "interrupted")
        raise
    except KeyboardInterrupt:
        folder.write_failure("interrupted outside the training loop", 130, "interrupted")
        raise
    except QexpError as error:
        folder.write_failure(str(error), error.exit_code)
        raise
    except OSError as error:
        if error.errno not in _DISK or not _is_of(folder, error):
            folder.write_failure(f"{type(error).__name__}: {error}", 1)
            raise
        problem = OutputError(
            f"{error.filename or folder.path}: cannot be written ({error.strerror}); make room or choose another"
            " output_dir, then type the command again: it goes on from the last checkpoint."
        )
        folder.write_failure(str(problem), problem.exit_code)
        raise problem from error
    except Exception as error:
        folder.write_failure(f"{type(error).__name__}: {error}", 1)
        raise


def _is_of(folder: RunDirectory, error: OSError) -> bool:
    """Say whether the file that could not be written is the run's; one without a name is: data files are read."""
    if not isinstance(error.filename, str):
        return error.errno not in (errno.EACCES, errno.EPERM)
    return Path(error.filename).resolve().is_relative_to(folder.path.resolve())


class _QuietFile(logging.FileHandler):
    """A log whose lines may be lost: a full disk is told by what the run cannot do without."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Print no traceback for each line."""


@contextlib.contextmanager
def run_log(folder: RunDirectory) -> Iterator[None]:
    """Keep what qexp says while a run lasts in run.log; warnings go to the screen as well."""
    logger = logging.getLogger("qexp")
    screen = logging.StreamHandler()
    screen.setLevel(logging.WARNING)
    file = _QuietFile(folder.log, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handlers = (screen, file)
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # what is left in the buffer of a full disk
            file.close()
        logger.setLevel(level)
        logger.propagate = propagate

"""What the processes of a job are told; tests/commands/test_processes.py runs some."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import pytest

from qexp.commands import distributed

from ..composing import configured


@pytest.mark.parametrize("swept", [None, "qexp train -m seed=0,1 trainer.devices=2"])
def test_the_command_is_what_the_user_typed_and_not_a_workers_own(
    swept: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Told(distributed.Worker):
        def __init__(self, plain: Mapping[str, Any], environment: Mapping[str, str]) -> None:
            told.append(environment["QEXP_COMMAND"])

        def end(self) -> None:
            """Nothing was started."""

    monkeypatch.setattr(distributed, "Worker", Told)
    monkeypatch.setattr(distributed, "_wait", lambda workers: None)
    monkeypatch.setattr(sys, "argv", ["qexp", "train", "trainer.devices=2"])
    if swept is None:
        monkeypatch.delenv("QEXP_COMMAND", raising=False)
    else:
        monkeypatch.setenv("QEXP_COMMAND", swept)
    distributed.launch(configured("trainer.devices=2"))
    assert told == [swept or "qexp train trainer.devices=2"] * 2

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from qexp.errors import Interrupted


def test_a_signal_inside_of_a_library_stays_what_it_is() -> None:
    def stop() -> None:
        raise Interrupted(15)

    OmegaConf.register_new_resolver("stop", stop, use_cache=False)
    try:
        with pytest.raises(Interrupted, match="SIGTERM") as found:
            _ = OmegaConf.create({"key": "${stop:}"}).key
    finally:
        OmegaConf.clear_resolver("stop")
    assert found.value.exit_code == 143

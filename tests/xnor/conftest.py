from __future__ import annotations

import shutil

import pytest

from qexp.xnor import extension


@pytest.fixture(scope="session")
def compiler() -> bool:
    """Whether the C++ compiler that builds the kernel is here; then a kernel that does not build is a failure."""
    return shutil.which(extension._compiler()[0]) is not None

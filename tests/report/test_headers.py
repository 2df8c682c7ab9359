from __future__ import annotations

from pathlib import Path

import pytest

from qexp.report.headers import Header, read_header


@pytest.mark.parametrize(
    ("text", "idea", "source"),
    [
        ("# quantizer=x\n# An idea (arXiv 1234.56789, eq. 1).\na: 1\n", "An idea", "arXiv 1234.56789, eq. 1"),
        (
            "# @package _global_\n# An idea; https://example.org/a, 12 MB\n",
            "An idea, 12 MB",
            "https://example.org/a",
        ),
        ("# First one. Second one.\n", "First one", ""),
        ("# Arrays in one .npz file\n", "Arrays in one .npz file", ""),
        ("# After He et al. 2016 (arXiv 1512.03385). More.\n", "After He et al. 2016", "arXiv 1512.03385"),
        ("a: 1\n# no header\n", "", ""),
    ],
)
def test_header(tmp_path: Path, text: str, idea: str, source: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    assert read_header(file, "x") == Header("x", idea, source)

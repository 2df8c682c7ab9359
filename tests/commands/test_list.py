from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qexp.commands import catalog
from qexp.errors import ConfigError
from qexp.paths import config_dir


def test_every_method_has_an_idea_and_a_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert catalog.main(["methods"]) == 0
    out = capsys.readouterr().out
    assert "PACT: " in out
    assert "1805.06085" in out


@pytest.mark.parametrize("group", sorted(catalog.GROUPS))
def test_every_option_says_what_it_is(group: str) -> None:
    rows = catalog.catalog(group, [config_dir()]).rows
    assert all(len(row["idea"]) > 10 for row in rows)


def test_published_tables(capsys: pytest.CaptureFixture[str]) -> None:
    catalog.main(["published"])
    assert "pact/table1" in capsys.readouterr().out


def test_ones_own_folder_adds_and_replaces(tmp_path: Path) -> None:
    (tmp_path / "quantizer").mkdir()
    (tmp_path / "quantizer/mine.yaml").write_text("# quantizer=mine\n# My method (arXiv 0000.00000).\n")
    (tmp_path / "quantizer/pact.yaml").write_text("# My own PACT.\n")
    rows = {row["name"]: row for row in catalog.catalog("methods", [config_dir(), tmp_path]).rows}
    assert rows["mine"]["source"] == "arXiv 0000.00000"
    assert rows["pact"]["idea"] == "My own PACT"
    assert "dorefa" in rows


def test_an_unknown_group_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no group 'method'.*'methods'"):
        catalog.main(["method"])
    with pytest.raises(ConfigError, match="--config-dir nowhere"):
        catalog.main(["--config-dir", "nowhere"])


def test_no_reporting_command_imports_torch() -> None:
    script = (
        "import sys; import qexp.commands.catalog, qexp.commands.plot, qexp.commands.status, qexp.commands.table;"
        "import qexp.report.plots; assert not {'torch', 'hydra', 'pytorch_lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)

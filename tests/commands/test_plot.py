from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from qexp.commands import plot
from qexp.errors import ConfigError


def make_run(root: Path, seed: int = 0, rows: str = "1,9,alpha/a,2.0\n1,9,train_loss,0.5\n") -> Path:
    path = root / f"mlp-digits-pact-w4a4-s{seed}-0000000{seed}"
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(
        yaml.safe_dump({"epochs": 1, "seed": seed, "bits": {"weight": 4, "activation": 4}})
    )
    (path / "metrics.csv").write_text("epoch,step,name,value\n" + rows)
    return path


def test_alpha_goes_into_the_runs_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    assert plot.main(["alpha", str(run)]) == 0
    assert (run / "figures/alpha.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"wrote {run}/figures/alpha.png\n"


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_the_form_follows_the_files_name(tmp_path: Path, suffix: str, start: bytes) -> None:
    make_run(tmp_path, 0)
    make_run(tmp_path, 1)
    output = tmp_path / f"new/curves{suffix}"
    assert plot.main(["curves", str(tmp_path), "--output", str(output)]) == 0
    content = output.read_bytes()
    assert content.startswith(start)
    if suffix == ".svg":
        assert b"seed 1" in content  # text stays text


def test_mistakes(tmp_path: Path) -> None:
    one, other = make_run(tmp_path, 0), make_run(tmp_path, 1, rows="")
    with pytest.raises(ConfigError, match=r"the suffix has to be one of \.png"):
        plot.main(["alpha", str(one), "--output", "a.gif"])
    with pytest.raises(ConfigError, match="holds 2 runs, name one of them"):
        plot.main(["alpha", str(tmp_path)])
    with pytest.raises(ConfigError, match="no such folder"):
        plot.main(["alpha", str(tmp_path / "nothing")])
    with pytest.raises(ConfigError, match=r"no alpha in its metrics\.csv"):
        plot.main(["alpha", str(other)])
    with pytest.raises(ConfigError, match="no loss and no accuracy"):
        plot.main(["curves", str(other)])
    with pytest.raises(ConfigError, match=r"'pact/fg8' is not a published .* Did you mean 'pact/fig8'"):
        plot.main(["pact/fg8"])
    with pytest.raises(ConfigError, match=r"^--only vgg: no row contains this; the rows are CIFAR10 ResNet20;"):
        plot.main(["pact/table1", "--only", "vgg", "--output", str(tmp_path / "figures")])
    assert not (tmp_path / "figures").exists()
    assert not (other / "figures").exists()


def test_curves_of_a_figure_show_every_network_also_without_a_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figure 4's panels a to e print no number; their runs are drawn all the same, each network by itself."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("resnet20", "svhn")):
        run = make_run(Path("outputs/pact/fig4"), seed)
        plain = yaml.safe_load((run / "config.yaml").read_text())
        plain["names"] = {"model": name, "dataset": "cifar10", "quantizer": "pact"}
        (run / "config.yaml").write_text(yaml.safe_dump(plain))
    assert plot.main(["pact/fig4"]) == 0
    made = sorted(path.name for path in Path("outputs/pact/fig4/figures").iterdir())
    assert made == ["cells.png", "curves-resnet20.png", "curves-svhn.png"]
    assert plot.main(["pact/fig4", "--runs", "outputs/pact/fig4", "--output", "named"]) == 0
    assert [path.name for path in Path("named").iterdir()] == ["cells.png"], "of any runs those of a cell alone"
    assert plot.main(["pact/fig4", "--only", "resnet18", "--output", "some"]) == 0
    assert [path.name for path in Path("some").iterdir()] == ["cells.png"], "of some rows their own runs"


def test_what_is_damaged_is_said_and_drawn_as_far_as_it_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, 0)
    make_run(tmp_path, 1, rows="1,9,train_loss,0.5\n\x00garbage\n2,much\n2,18,train_loss,0.4\n3,27,train_lo")
    (make_run(tmp_path, 2) / "config.yaml").write_text("{ broken")
    (make_run(tmp_path, 3) / "result.json").write_text("{")
    (make_run(tmp_path, 4) / "metrics.csv").write_text("garbage\n")
    output = tmp_path / "curves.svg"
    assert plot.main(["curves", str(tmp_path), "--output", str(output)]) == 0
    text = capsys.readouterr().err
    said = {line.split(":")[0][-1]: line for line in text.splitlines()}
    assert sorted(said) == ["1", "2", "3", "4"]
    assert said["1"].endswith(": damaged: metrics.csv: 2 lines cannot be read")
    assert "damaged: config.yaml" in said["2"]
    assert "damaged: result.json" in said["3"]
    assert said["4"].endswith("metrics.csv: 1 line cannot be read")
    named = [seed for seed in range(5) if f"seed {seed}" in output.read_text()]
    assert named == [0, 1, 3], "of a run without a curve, no name either"


def test_a_papers_figure_says_which_runs_are_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (make_run(tmp_path / "runs") / "config.yaml").write_text("{ broken")
    assert plot.main(["pact/table1", "--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "made")]) == 0
    assert "damaged: config.yaml" in capsys.readouterr().err

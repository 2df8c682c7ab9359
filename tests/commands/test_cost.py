from __future__ import annotations

import csv
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qexp import cli
from qexp.build import build
from qexp.commands import cost, explain, plot, ptq, table
from qexp.commands.network import build_float
from qexp.config import parse
from qexp.errors import ConfigError
from qexp.hardware.energy import ACCESS_BYTES, DRAM_PJ
from qexp.published import load_artefact

from ..composing import compose, configured


def records(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def cost_of(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, str]]:
    assert cost.main([*words, "--format", "csv"]) == 0
    return records(capsys.readouterr().out)


@pytest.mark.parametrize("model", ["resnet18", "alexnet", "mobilenet_v2", "resnet20", "mlp"])
def test_layers_are_those_of_explain(model: str) -> None:
    layers, uncounted = cost.layer_list(configured(f"model={model}", "quantizer=none", command="explain"))
    config = configured(f"model={model}", "quantizer=pact", "bits=4", "first_last=8", command="explain")
    report: dict[str, Any] = explain.run(config)
    assert [layer.name for layer in layers] == [row["name"] for row in report["layers"]]
    assert [(layer.macs, layer.weights) for layer in layers] == [
        (row["macs"], row["parameters"]) for row in report["layers"]
    ]
    # The ends of the model are the ends of the list.
    assert [row["weight_bits"] for row in report["layers"]] == [8, *[4] * (len(layers) - 2), 8]
    assert uncounted == []


def test_comma_lists_are_the_tables_lines(capsys: pytest.CaptureFixture[str]) -> None:
    lines = cost_of(capsys, "model=resnet20,mlp", "bits=2,w4a8,16", "bandwidth=1,inf", "batch=1,8")
    assert len(lines) == 2 * 3 * 2 * 2
    assert [line["bits"] for line in lines[:3]] == ["w2a2", "w4a8", "w16a16"]
    assert [line["first_last"] for line in lines[:3]] == ["w8a8", "w8a8", "w16a16"]
    assert {line["bandwidth_gb_s"] for line in lines} == {"1.0", "inf"}
    for line in lines:
        assert float(line["images_per_s"]) > 0
        if line["bits"] == "w16a16":
            assert float(line["speed_up"]) == 1
        if line["bandwidth_gb_s"] == "inf":
            assert (line["bound_by"], float(line["waiting_share"])) == ("compute", 0)


def test_ends_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    lines = cost_of(capsys, "model=resnet20", "bits=2", "first_last=paper,8,same,w4a8", "bandwidth=inf")
    assert [line["first_last"] for line in lines] == ["w8a8", "w8a8", "w2a2", "w4a8"]
    rates = [float(line["images_per_s"]) for line in lines]
    assert rates[0] == rates[1] < rates[2]


def test_cores_by_area(capsys: pytest.CaptureFixture[str]) -> None:
    lines = cost_of(capsys, "model=resnet20", "bits=2", "cores=paper,area", "bandwidth=inf")
    assert [line["cores"] for line in lines] == ["32", "57"]


def test_what_is_the_same_in_every_line_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    cost.main(["model=resnet20", "bits=8"])
    out = capsys.readouterr().out
    assert "figure 6: resnet20" in out and "batch 1, 16 MB on the chip, cores by paper" in out
    assert "The paper's constants" in out and "Fitted to" in out and "Ours" in out


def test_the_fit_beside_the_figure(capsys: pytest.CaptureFixture[str]) -> None:
    lines = cost_of(capsys, "--fit")
    assert len(lines) == 12
    errors = ("error", "without_point", "without_bits", "without_bandwidth")
    assert max(abs(float(line[key])) for line in lines for key in errors) < 0.1
    assert all(
        float(line["modelled"]) / float(line["published"]) - 1 == pytest.approx(float(line["error"]), abs=1e-4)
        for line in lines
    )


@pytest.mark.parametrize(("suffix", "mark"), [(".md", "|---|"), (".csv", "model,"), (".tex", "\\toprule")])
def test_the_form_follows_the_files_name(
    suffix: str, mark: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / f"new/cost{suffix}"
    assert cost.main(["--output", str(output), "model=mlp", "bits=2"]) == 0
    assert mark in output.read_text()
    assert capsys.readouterr().out == f"wrote {output}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bits=9"], "bits=9: a width here is 1 to 8, or 16"),
        (["bits=32"], "bits=32: a width here is 1 to 8, or 16"),
        (["bits=4,"], "bits=: a width here"),
        (["bits=w4"], "bits=w4: a width here"),
        (["bandwidth=0"], "bandwidth=0: GB/s above 0, or inf"),
        (["bandwidth=64,-1"], "bandwidth=-1: GB/s above 0, or inf"),
        (["bandwidth=nan"], "bandwidth=nan: GB/s above 0, or inf"),
        (["bandwidth=fast"], "bandwidth=fast: GB/s above 0, or inf"),
        (["batch=0"], "batch=0: a whole number of images, at least 1"),
        (["batch=1.5"], "batch=1.5: a whole number"),
        (["memory=0"], "memory=0: MB on the chip, above 0"),
        (["cores=all"], "cores=all: choose paper or area"),
        (["first_last=none"], "first_last=none: paper (8 where the others have fewer), same, or a width"),
        (["model="], "model=: name a model"),
        (["bit=4"], "unknown key 'bit'. Did you mean 'bits'?"),
        (["quantizer=pact"], "unknown key 'quantizer'. Known:"),
        (["resnet50"], "cannot read 'resnet50': write key=value"),
        (["bits=4", "bits=2"], "bits is given twice; for several values: bits=4,2"),
        (["--fit", "bits=4"], "--fit compares resnet50 as the paper's figure has it; leave out bits=4"),
        (["--energy", "--fit"], "argument --fit: not allowed with argument --energy"),
        (["--pwlq", "--energy"], "argument --energy: not allowed with argument --pwlq"),
        (["--fit", "--pwlq", "model=mlp"], "argument --pwlq: not allowed with argument --fit"),
        (["--frmat", "csv"], "unrecognized arguments: --frmat"),
        (["--format", "pdf"], "invalid choice: 'pdf'"),
    ],
)
def test_mistakes_end_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cost", *words]) == 2
    seen = capsys.readouterr()
    assert message in seen.err and seen.err.count("\n") == 1 and seen.out == ""


def test_images_that_do_not_fit_the_model() -> None:
    with pytest.raises(ConfigError, match="alexnet: it takes images with 3 channels"):
        cost.main(["model=alexnet", "dataset=mnist"])


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qexp", "cost", *words], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_model_that_is_not_there() -> None:
    done = run("model=resnet5")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "unknown model 'resnet5'. Did you mean 'resnet" in done.stderr


@pytest.mark.slow
def test_as_a_person_types_it() -> None:
    done = run("model=resnet18", "bits=2,16", "bandwidth=32", "--format", "csv")
    assert done.returncode == 0, done.stderr
    narrow, wide = records(done.stdout)
    # 1.814 GMAC of 4.096 TMAC/s leave at most 2258 images/s at 16 bits.
    assert float(wide["images_per_s"]) < 2258
    assert float(narrow["speed_up"]) == pytest.approx(
        float(narrow["images_per_s"]) / float(wide["images_per_s"]), rel=1e-3
    )


@pytest.mark.parametrize(
    ("words", "network"),
    [
        ([], "mlp on digits"),
        (["quantizer=pact", "bits=2"], "mlp on digits, quantizer=pact, bits=2"),
        (["recipe=pact/cifar10_resnet20"], "resnet20 on cifar10, recipe=pact/cifar10_resnet20"),
        (["bits=2", "model=resnet20", "model.depth=8"], "resnet20 on cifar10, bits=2, model.depth=8"),
    ],
)
def test_the_energy_table_names_its_network(
    words: list[str], network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cost.main(["--energy", *words]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{network}: memory and energy for one sample"


def test_weights_that_no_quantizer_reaches_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model=lstm", "model.units=8", "dataset=descriptions", "quantizer=uniform", "bits=8"]
    assert cost.main(["--energy", *words, "first_last=same"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    embedding, layers = 500 * 8, 2 * 4 * 8 * 8 + 500 * 8  # of 500 words; an LSTM's four gates, and the decoder
    stored, whole = 4 * embedding + layers, 4 * (embedding + layers)
    assert f"embedding (Embedding), {4 * embedding:,} bytes; with it the weights take {stored:,} bytes" in said
    assert f"{whole / stored:.4g} times smaller" in said
    assert cost.main(["--energy"]) == 0
    assert "in no line" not in capsys.readouterr().out


def test_weights_are_read_as_they_are_stored(capsys: pytest.CaptureFixture[str]) -> None:
    """PWLQ's multiplier takes 4 bits, and its memory holds 5 of each weight."""
    assert cost.main(["--energy", "quantizer=pwlq", "bits=4", "--format", "csv"]) == 0
    lines = records(capsys.readouterr().out)
    assert len(lines) > 2
    for line in lines:
        spent = (float(line["weights_least_uj"]), float(line["weights_most_uj"]))
        accesses = int(line["weight_bytes"]) / ACCESS_BYTES
        assert spent == pytest.approx([accesses * each / 1e6 for each in DRAM_PJ], rel=1e-3)


def test_inputs_are_read_as_they_are_stored(capsys: pytest.CaptureFixture[str]) -> None:
    """PWLQ's activations take a bit more in memory, which says which piece of the range they lie in."""
    read = []
    for method in ("uniform", "pwlq_activation"):
        assert cost.main(["--energy", f"quantizer={method}", "bits=4", "first_last=same", "--format", "csv"]) == 0
        read.append([float(line["inputs_uj"]) for line in records(capsys.readouterr().out)][1:-1])
    assert read[1] == pytest.approx([5 / 4 * each for each in read[0]])


@pytest.mark.parametrize(
    ("words", "bits"),
    [
        (["quantizer=none"], 32),
        (["quantizer=pwlq", "bits=4", "calibration.bias_correction=analytic"], 5),
        (["quantizer=omse", "bits=2", "quantizer.weight.dual_above=0.0", "calibration.equalize=true"], 4),
    ],
)
def test_a_run_that_was_quantized_after_training_is_counted_as_it_is_stored(
    words: list[str], bits: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its batch norms are folded, and what a weight takes may be known since it was fitted."""
    network = ["model=resnet20_v1", "model.depth=8", "model.width=4", "dataset=digits"]
    config = configured(*network, "quantizer=none")
    torch.save(build_float(config, build(config.dataset)).state_dict(), tmp_path / "float.pth")
    words = [*network, *words, "calibration.samples=8", f"model.weights={tmp_path / 'float.pth'}"]
    plain = compose(*words, f"output_dir={tmp_path}", "trainer.threads=1", command="ptq")
    plain["names"] = {"model": "resnet8", "dataset": "digits", "quantizer": words[4].partition("=")[2]}
    record = ptq.run(parse(plain))
    capsys.readouterr()
    assert cost.main(["--energy", record["path"], "dataset.eval_batch_size=7", "--format", "csv"]) == 0
    *layers, _ = records(capsys.readouterr().out)
    assert len(layers) == 8
    assert [round(32 / float(line["times"])) for line in layers] == [bits] * 8
    for word in ("bits=2", "another"):
        with pytest.raises(ConfigError, match=word):
            cost.main(["--energy", record["path"], word])


def test_the_hardware_table_of_pwlq(capsys: pytest.CaptureFixture[str]) -> None:
    lines = cost_of(capsys, "--pwlq")
    assert len(lines) == 9
    assert {line["published"] for line in lines if line["what"] == "energy"} == {"1.0", "0.73", "0.78"}
    for line in lines:
        assert abs(float(line["error"])) < 0.02
    other = cost_of(capsys, "--pwlq", "model=resnet20", "bandwidth=2")
    assert [line["what"] for line in other] == ["energy"] * 3 + ["speed-up at 2 GB/s"] * 3
    assert {line["published"] for line in other} == {""}
    cells = load_artefact("pwlq/s_table6_speedup").cells
    assert table.main([cells[0].paper + "/s_table6_speedup", "--format", "csv"]) == 0
    assert records(capsys.readouterr().out) == lines


@pytest.mark.parametrize("words", [["bits=4"], ["model=resnet18,resnet50"], ["bandwidth=inf"], ["bandwidth=0"]])
def test_what_the_hardware_table_of_pwlq_does_not_have(words: list[str]) -> None:
    with pytest.raises(ConfigError):
        cost.main(["--pwlq", *words])


@pytest.mark.parametrize(
    ("name", "only", "key", "values"),
    [
        ("pwlq/s_table6_energy", "pwlq", "scheme", ["4-bit PWLQ"] * 3),
        ("pwlq/s_table6_energy", "energy", "what", ["energy"] * 3),
        ("pact/fig6", "16 bits", "bits", ["16"] * 3),
        ("pact/fig6", "32 GB/s", "bits", ["16", "8", "4", "2"]),
    ],
)
def test_rows_of_a_system_model_are_picked_by_their_labels(
    capsys: pytest.CaptureFixture[str], name: str, only: str, key: str, values: list[str]
) -> None:
    assert table.main([name, "--only", only, "--format", "csv"]) == 0
    assert [line[key] for line in records(capsys.readouterr().out)] == values


@pytest.mark.parametrize("command", [table.main, plot.main])
def test_a_row_that_a_system_model_does_not_have_is_refused(command: Callable[[list[str]], int]) -> None:
    with pytest.raises(ConfigError, match=r"--only 3 bits: no row .* are 16 bits, inf GB/s; 8 bits"):
        command(["pact/fig6", "--only", "3 bits"])


@pytest.mark.parametrize(
    ("name", "only", "picked"), [("pwlq/s_table6_energy", "PWLQ", 3), ("pact/fig6", "16 bits, 32 GB/s", 1)]
)
def test_a_system_models_figure_shows_the_picked_rows(name: str, only: str, picked: int) -> None:
    ((_, figure),) = plot._figures(load_artefact(name), [], only)
    assert [len(line.get_xdata()) for line in figure.axes[0].get_lines()] == [picked, picked]

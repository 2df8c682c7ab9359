"""`qexp ptq` from its command line's configuration to its record, on the digits."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from qexp import hydra_app
from qexp.commands import eval as evaluation
from qexp.commands import ptq, status, table, train
from qexp.config import Config, parse
from qexp.data.digits import Digits
from qexp.errors import CheckpointError, ConfigError, DataError
from qexp.jobs.preflight import planned_run
from qexp.lit.checkpoint import read_checkpoint
from qexp.models.torchvision_models import classifier
from qexp.report.across import across_table
from qexp.report.measured import measured_table
from qexp.runs import find_runs

from ..composing import compose, configured

NETWORK = ("model=resnet20_v1", "model.depth=8", "model.width=4", "dataset=digits")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A small residual network with batch norms, trained on the digits; its run's folder."""
    place = tmp_path_factory.mktemp("float")
    words = ("quantizer=none", "epochs=6", f"output_dir={place}", "trainer.threads=1", "trainer.progress=false")
    return Path(train.run(parse(compose(*NETWORK, *words, "trainer.compile=false")))["path"])


@pytest.fixture
def config(trained, tmp_path):
    def make(*overrides: str) -> Config:
        given = dict(override.split("=", 1) for override in (*NETWORK, *overrides))
        names = [f"{key}={given[key]}" for key in ("quantizer",) if key in given]
        words = (*NETWORK, f"model.weights={trained}", f"output_dir={tmp_path}", "trainer.threads=1",
                 "calibration.samples=64", *overrides)  # fmt: skip
        plain = compose(*words, command="ptq")
        plain["names"] = configured(*names).names if names else {"quantizer": "uniform"}
        plain["names"] |= {"model": "resnet8", "dataset": "digits"}
        return parse(plain)

    return make


def rows_of(record: dict) -> list[dict[str, str]]:
    with (Path(record["path"]) / ptq.LAYERS).open() as stream:
        return list(csv.DictReader(stream))


def test_from_a_float_run_to_a_record(config, trained, capsys):
    record = ptq.run(config("quantizer=pwlq", "bits=w4a8", "calibration.bias_correction=channel"))
    folder = Path(record["path"])
    result = json.loads((folder / "result.json").read_text())
    assert record["status"] == "done" and result["metrics"] == record["metrics"]
    assert len(result["folded"]) == 7 and result["kept_batch_norms"] == []
    baseline = json.loads((trained / "result.json").read_text())["test_accuracy"]
    assert baseline - 0.1 < result["test_accuracy"] <= 1
    assert "test accuracy" in capsys.readouterr().out
    rows = rows_of(record)
    weights = {row["layer"] for row in rows if row["name"] == "mse"}
    assert len(weights) == 8 and "fc" in weights
    kept = {row["name"] for row in rows if row["layer"] == "layer1.0.conv1"}
    assert kept == {"mse", "p1", "m", "shift", "factor", "low", "high"}
    again = ptq.run(config("quantizer=pwlq", "bits=w4a8", "calibration.bias_correction=channel"))
    assert again["status"] == "skipped" and again["metrics"] == record["metrics"]


@pytest.mark.parametrize(
    "words",
    [
        ["quantizer=uniform", "bits=4", "calibration.bias_correction=channel"],
        ["quantizer=pwlq_both", "bits=w3a4", "calibration.bias_correction=channel"],
        ["quantizer=pwlq_activation", "bits=w8a3"],
        ["quantizer=adaround", "bits=3", "quantizer.weight.iterations=20"],
        ["quantizer=dfq", "bits=6"],
        ["quantizer=omse", "bits=4", "calibration.bias_correction=empirical", "calibration.equalize=true"],
        ["quantizer=aciq", "bits=4", "observer=aciq"],
    ],
)
def test_eval_loads_it_and_gives_the_same(config, words):
    made = config(*words)
    record = ptq.run(made)
    plain = {**made.plain, "eval": {"run": record["path"], "split": "test"}}
    plain["model"] = {**plain["model"], "weights": None}
    assert evaluation.run(parse(plain))["matches"] is True


def test_the_float_network_is_a_run_too_and_folding_changes_nothing(config, trained):
    record = ptq.run(config("quantizer=none"))
    assert record["metrics"]["test_accuracy"] == json.loads((trained / "result.json").read_text())["test_accuracy"]
    assert "weight_mse" not in record["metrics"] and len(rows_of(record)) == 0


def test_two_methods_in_a_table_beside_their_float_network(config, tmp_path):
    made = {
        name: ptq.run(config(f"quantizer={name}", "bits=3"))["metrics"]["test_accuracy"]
        for name in ("none", "uniform", "pwlq")
    }
    (alone, *rest) = measured_table(find_runs(tmp_path)).records
    assert (alone["quantizer"], alone["difference"]) == ("none", None)
    for record in rest:
        assert record["difference"] == pytest.approx(made[record["quantizer"]] - made["none"], abs=1e-12)
    assert len(rest) == 2


def test_what_stores_the_same_bits_shares_a_column(config, tmp_path):
    widths = {"uniform": "bits=w4a8", "pwlq": "bits=w3a8"}
    for name, bits in widths.items():
        assert ptq.run(config(f"quantizer={name}", bits))["metrics"]["weight_bits"] == 4
    more = ["quantizer.weight.breakpoints=3", "quantizer.weight.search=gauss"]
    assert ptq.run(config("quantizer=pwlq", "bits=w3a8", *more))["metrics"]["weight_bits"] == 5
    table = across_table(find_runs(tmp_path), "weight_mse", "stored_bits")
    assert [column.header for column in table.columns][-2:] == ["4", "5"]
    assert len(table.rows) == 3 and {row["quantizer"] for row in table.rows} == {"uniform", "pwlq"}


def test_more_bits_breakpoints_and_correction_bring_the_weights_closer(config):
    def error(*words: str) -> float:
        return ptq.run(config(*words))["metrics"]["weight_mse"]

    uniform = error("quantizer=uniform", "bits=w4a8")
    assert error("quantizer=uniform", "bits=w6a8") < uniform / 4
    one = error("quantizer=pwlq", "bits=w4a8")
    two = error("quantizer=pwlq", "bits=w4a8", "quantizer.weight.breakpoints=2", "quantizer.weight.search=gauss")
    assert two < one < uniform
    assert error("quantizer=uniform", "bits=w4a8", "quantizer.weight.range=mse") < uniform
    assert error("quantizer=uniform", "bits=w4a8", "quantizer.weight.scope=layer") > uniform


def test_a_method_brings_its_preparation_and_what_is_typed_wins(config):
    made = config("quantizer=dfq", "bits=8")
    assert made.equalize and made.bias_correction == "analytic"
    result = json.loads(Path(ptq.run(made)["path"], "result.json").read_text())
    assert len(result["equalized"]) == 3, "one pair in each block"
    assert made.absorb and set(result["absorbed"]) <= {first for first, _ in result["equalized"]}
    assert "conv1" in result["uncorrected"], "nothing is known of the image"
    plain = config("quantizer=dfq", "bits=8", "calibration.equalize=false", "calibration.bias_correction=none")
    assert not plain.equalize and plain.bias_correction == "none"
    assert ptq.plan(plain).run_id != ptq.plan(made).run_id
    typed = config("quantizer=dfq", "bits=8", "calibration.bias_correction=analytic", "calibration.equalize=true")
    assert ptq.plan(typed).run_id == ptq.plan(made).run_id


def test_the_seed_draws_the_calibration_images(config):
    first, same, other = (ptq.plan(config("bits=4", f"seed={seed}")).identity for seed in (0, 0, 1))
    assert first == same
    assert first["digests"]["calibration"] != other["digests"]["calibration"]
    assert ptq.plan(config("bits=4", "calibration.samples=65")).identity["digests"] != first["digests"]


def test_what_training_alone_uses_does_not_name_the_run(config):
    name = ptq.plan(config("bits=4")).run_id
    assert ptq.plan(config("bits=4", "epochs=7", "optimizer.lr=0.3", "batch_size=99")).run_id == name
    assert ptq.plan(config("bits=4", "observer=minmax")).run_id != name
    assert ptq.plan(config("bits=4", "calibration.fold=none")).run_id != name


def test_dry_run_writes_nothing(config, tmp_path):
    assert ptq.run(config("bits=4"), dry_run=True)["status"] == "start"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "kind", "text"),
    [
        (["model.weights=null"], ConfigError, "a random one is never quantized"),
        (["model.weights=nowhere.pt"], CheckpointError, "there is no such file"),
        (["calibration.samples=0"], ConfigError, "calibration.samples=0"),
        (["calibration.samples=99999"], DataError, r"the training split has \d+; take at most as many"),
        (["calibration.fold=maybe"], ConfigError, "calibration.fold=maybe"),
        (["budget=smoke"], ConfigError, "budget=smoke: qexp ptq trains nothing that a budget could shorten"),
        (["quantizer=pact"], ConfigError, "it replaces ReLUs"),
        (["quantizer=pwlq", "quantizer.weight.breakpoints=2"], ConfigError, "is for one breakpoint"),
        (["quantizer=pwlq", "bits=1"], ConfigError, "bits=1 is not supported"),
        (["trainer.devices=2"], ConfigError, "qexp ptq runs in one process"),
    ],
)  # fmt: skip
def test_mistakes(config, words, kind, text):
    with pytest.raises(kind, match=text):
        ptq.run(config(*words))


def test_weights_that_are_no_numbers_are_refused(config, trained, tmp_path):
    content = read_checkpoint(trained / "last.ckpt")
    state = {name.removeprefix("network."): value for name, value in content["state_dict"].items()}
    state["fc.weight"][0, 0] = torch.nan
    torch.save(state, tmp_path / "nan.pt")
    with pytest.raises(CheckpointError, match=r"no finite numbers in fc\.weight"):
        ptq.run(config("bits=4", f"model.weights={tmp_path / 'nan.pt'}"))


def test_weights_of_a_run_keep_its_normalization(tmp_path):
    words = (*NETWORK, f"output_dir={tmp_path}", "trainer.threads=1", "quantizer=none")
    made = train.run(parse(compose(*words, "normalization=shift", "epochs=1", "trainer.compile=false")))
    words = (*words, f"model.weights={made['path']}")
    for command, run in (("ptq", ptq.run), ("eval", evaluation.run)):
        with pytest.raises(ConfigError, match=r"^normalization=null: .*; type normalization=shift\.$"):
            run(parse(compose(*words, command=command)))
        found = run(parse(compose(*words, "normalization=shift", command=command)))
        assert found["metrics"]["test_accuracy"] == pytest.approx(made["metrics"]["test_accuracy"], abs=1e-9)


def test_a_sweep_looks_before_it_starts(config):
    planned = planned_run(config("bits=4"))
    assert planned is not None and planned.run_id == ptq.plan(config("bits=4")).run_id
    with pytest.raises(ConfigError, match="bits=1 is not supported"):
        planned_run(config("quantizer=pwlq", "bits=1"))


@pytest.mark.slow
def test_a_published_table_from_its_command_to_its_verdict(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = classifier(input_shape=(3, 32, 32), num_classes=10, architecture="mobilenet_v2")
    torch.save(network.state_dict(), "network.pt")
    words = ["experiment=pwlq/table4_loss", "model=mobilenet_v2", "model.weights=network.pt"]
    digits = ["dataset=digits", "dataset.shape=[3,32,32]", "calibration.samples=8", "trainer.threads=1"]
    assert hydra_app.main("ptq", [*words, *digits]) == 0
    runs = find_runs(tmp_path / "outputs" / "pwlq" / "table4_loss")
    found = {run.config["names"]["quantizer"]: run.result["test_accuracy"] for run in runs}
    assert set(found) == {"none", "pwlq"}
    capfd.readouterr()
    assert table.main(["pwlq/table4_loss", "--output", "table.csv"]) == 0
    rows = {row["row"]: row for row in csv.DictReader((tmp_path / "table.csv").read_text().splitlines())}
    mine = rows["MobileNet-v2 PWLQ"]
    assert float(mine["measured"]) == pytest.approx(found["none"] - found["pwlq"], abs=1e-12)
    assert mine["verdict"] == "none: another data set"
    assert mine["remarks"] == "dataset=digits, paper imagenet; calibration.samples=8, paper 512"
    assert status.main(["outputs"]) == 0
    assert capfd.readouterr().out.count("calibrated") == 2


def test_biases_are_absorbed_between_equalized_layers_alone(config):
    with pytest.raises(ConfigError, match=r"calibration\.absorb=true: .*calibration\.equalize=true"):
        ptq.run(config("quantizer=uniform", "bits=8", "calibration.absorb=true"))
    plain, absorbed = (
        ptq.plan(config("quantizer=uniform", "bits=8", "calibration.equalize=true", *more)).identity
        for more in ((), ("calibration.absorb=true",))
    )
    assert plain != absorbed and "absorb" not in plain["calibration"]


@pytest.mark.parametrize("words", ["progressive=[32]", "gradient_bits=4", "rounding=asr", "discretisation=ewgs"])
def test_what_only_training_does_is_refused(config, words):
    with pytest.raises(ConfigError, match=rf"{words.partition('=')[0]}: of training"):
        ptq.plan(config(words))


def test_calibration_needs_no_labels(trained, tmp_path):
    splits = Digits().splits
    given = {f"x_{name}": splits[name].images for name in ("train", "test")}
    given["y_test"] = splits["test"].labels
    found = {}
    for name, labels in (("with", {"y_train": splits["train"].labels}), ("without", {})):
        np.savez(tmp_path / f"{name}.npz", **given, **labels)
        words = (*NETWORK[:-1], "dataset=npz", f"dataset.file={tmp_path}/{name}.npz", f"output_dir={tmp_path}",
                 "trainer.threads=1")  # fmt: skip
        more = ("quantizer=pwlq", "bits=w4a8", f"model.weights={trained}", "calibration.samples=64")
        found[name] = ptq.run(parse(compose(*words, *more, command="ptq")))
    with pytest.raises(DataError, match=r"/without\.npz: no y_train in it; training needs labels"):
        train.run(parse(compose(*words, "quantizer=none")))
    assert found["with"]["metrics"] == found["without"]["metrics"]


def test_equalization_says_how_much_it_found(config, capsys):
    ptq.run(config("calibration.equalize=true"))
    assert "equalized     3 pairs of layers" in capsys.readouterr().out
    ptq.run(config("calibration.equalize=true", "calibration.fold=none"))
    assert "equalized     0 pairs of layers; each needs a layer that" in capsys.readouterr().out

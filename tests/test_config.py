from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qexp.bits import BITS, parse_bits
from qexp.build import locate
from qexp.config import parse
from qexp.errors import ConfigError
from qexp.paths import config_dir

from .composing import compose, parsed


def test_the_defaults_are_a_valid_configuration() -> None:
    config = parsed()
    assert (config.bits.weight, config.bits.activation) == (4, 4)
    assert config.quantized
    assert config.experiment.name == "train"


@given(st.sampled_from(BITS), st.sampled_from(BITS))
def test_every_pair_of_widths_is_written_one_way(weight: int, activation: int) -> None:
    assert parse_bits(f"w{weight}a{activation}") == (weight, activation)
    assert parse_bits(weight) == parse_bits(str(weight)) == (weight, weight)


@pytest.mark.parametrize("value", ["0", "9", "16", "w4", "a4", "w4a9", "4.0", "", "w4a4a4", True, None, -4])
def test_other_widths_are_refused_with_the_rule(value: object) -> None:
    with pytest.raises(ConfigError, match="a width is 1 to 8, or 32"):
        parse_bits(value)


def test_all_mistakes_are_reported_at_once() -> None:
    plain = compose()
    plain["epochs"] = 0
    plain["seed"] = -1
    plain["sed"] = 3
    plain["trainer"]["device"] = "tpu"
    plain["trainer"]["devise"] = "cpu"
    with pytest.raises(ConfigError) as caught:
        parse(plain)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    assert "unknown key 'sed'. Did you mean 'seed'?" in lines
    assert "unknown key 'trainer.devise'. Did you mean 'trainer.device'?" in " ".join(lines)
    assert "trainer.device=tpu: one of auto, cpu, cuda." in lines


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 1.5),
        ("epochs", True),
        ("batch_size", 0),
        ("seed", "zero"),
        ("first_last", 9),
        ("output_dir", ""),
        ("layers", {"conv": {"bits": 9}}),
        ("layers", {"conv": {"bitz": 4}}),
        ("layers", {"conv": {"scope": "row"}}),
        ("layers", {"conv": 4}),
        ("alpha_regularization", {"lambda_alpha": -0.1}),
        ("alpha_regularization", {"lambda_alpha": float("nan")}),
        ("experiment", {"name": "../elsewhere"}),
        ("experiment", {"name": "/tmp"}),
        ("optimizer", {"lr": 0.1}),
        ("optimizer", None),
        ("bits", {"weight": 9, "activation": 4, "first": None, "last": None}),
        ("eval", {"run": None, "split": "train"}),
    ],
)
def test_a_wrong_value_is_one_line_that_names_its_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({**compose(), key: value})
    assert len(str(caught.value).splitlines()) == 1
    assert key in str(caught.value)


def test_a_missing_group_is_named() -> None:
    plain = compose()
    del plain["trainer"]
    with pytest.raises(ConfigError, match="trainer is missing"):
        parse(plain)


def test_seed_zero_is_a_seed() -> None:
    assert parsed("seed=0").seed == 0


def test_first_and_last_layer_widths() -> None:
    assert parsed("quantizer=pact", "bits=4").first_bits == (32, 32)  # the paper's
    assert parsed("quantizer=pact", "bits=w4a2", "first_last=same").last_bits == (4, 2)
    both = parsed("quantizer=pact", "bits=4", "first_last=8", "bits.last=w2a3")
    assert (both.first_bits, both.last_bits) == ((8, 8), (2, 3))


def test_lambda_alpha_can_be_tied_to_weight_decay() -> None:
    assert parsed("alpha_regularization=weight_decay", "optimizer.weight_decay=0.03").lambda_alpha == 0.03
    assert parsed("alpha_regularization=none").lambda_alpha == 0.0


def test_layers_keep_their_order_and_patterns() -> None:
    config = parsed("layers.layer1.*.bits=w2a4", "layers.*.conv1.scope=channel", "layers.'layer1.*'.scope=network")
    assert [setting.pattern for setting in config.layers] == ["layer1.*", "*.conv1"]
    assert (config.layers[0].bits, config.layers[0].scope) == ((2, 4), "network")


def test_a_typed_choice_takes_the_place_of_what_a_recipe_set_for_another() -> None:
    recipe = "recipe=pact/cifar10_resnet20"
    assert compose(recipe)["schedule"]["milestones"] == [60, 120]
    schedule = compose(recipe, "schedule=onecycle", "schedule.rise=0.5")["schedule"]
    assert schedule == {"_target_": "qexp.lit.schedules.onecycle", "rise": 0.5, "start": 0.04, "final": 1e-4}
    both = compose(recipe, "optimizer=adam", "schedule=step")
    assert both["optimizer"]["weight_decay"] == 2e-4, "a recipe's rate and decay stay, whatever takes the steps"
    assert "momentum" not in both["optimizer"]
    assert (both["schedule"]["every"], both["schedule"]["of"]) == (30, 90), "a schedule comes as its file has it"
    typed = compose(recipe, "schedule=cosine", "schedule.milestones=[1]")["schedule"]
    assert typed["milestones"] == [1], "a mistake in what was typed is not hidden"


def test_a_typed_choice_brings_its_own_values_where_the_recipe_has_another() -> None:
    svhn = "recipe=pact/svhn"
    assert compose(svhn)["alpha_regularization"] == {"lambda_alpha": 7e-6}
    assert compose(svhn, "alpha_regularization=none")["alpha_regularization"] == {"lambda_alpha": 0.0}
    typed = compose(svhn, "alpha_regularization=none", "alpha_regularization.lambda_alpha=0.5")
    assert typed["alpha_regularization"] == {"lambda_alpha": 0.5}
    cosine = ("recipe=qnn/cifar10", "schedule=cosine")
    assert compose(*cosine)["schedule"]["final"] == 0.0
    assert "final" not in compose(*cosine, "~schedule.final")["schedule"]
    again = compose(svhn, "schedule=multistep", "alpha_regularization=l2")
    assert again == compose(svhn), "the recipe's own choices, typed again, are as the recipe has them"


def test_an_option_of_ones_own_may_be_made_of_another(tmp_path: Path) -> None:
    (tmp_path / "schedule").mkdir()
    (tmp_path / "schedule" / "half.yaml").write_text("defaults: [/schedule/cosine]\nfinal: 0.5\n")
    half = compose("schedule=half", extra=tmp_path)["schedule"]
    assert half == {**compose("schedule=cosine")["schedule"], "final": 0.5}
    assert compose("recipe=qnn/cifar10", "schedule=half", extra=tmp_path)["schedule"] == half


@pytest.mark.parametrize("group", ["optimizer", "schedule"])
def test_an_option_lists_every_setting_that_it_takes(group: str) -> None:
    for path in (config_dir() / group).glob("*.yaml"):
        node = compose(f"{group}={path.stem}")[group]
        parameters = inspect.signature(locate(node["_target_"])).parameters
        assert set(node) - {"_target_", "_partial_"} == set(parameters) - {"groups", "epochs"}, path


def test_a_file_that_was_changed_is_read_anew(tmp_path: Path) -> None:
    """Files are parsed once; what a job changes in its configuration does not come back in the next one."""
    file = tmp_path / "optimizer" / "own.yaml"
    file.parent.mkdir()
    for lr in (0.25, 0.125):
        file.write_text(f"_target_: qexp.lit.optimizers.sgd\nlr: {lr}\nmomentum: 0.9\nweight_decay: 0\n")
        for typed in ("optimizer.momentum=0.5", "seed=1"):
            found = compose("optimizer=own", typed, extra=tmp_path)["optimizer"]
            assert (found["lr"], found["momentum"]) == (lr, 0.5 if "momentum" in typed else 0.9)


def test_the_users_home_is_where_the_shell_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parsed("output_dir='~/runs'").output_dir == str(tmp_path / "runs")

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qexp.config import parse
from qexp.errors import ConfigError
from qexp.identity import identity
from qexp.report.facts import Facts, facts
from qexp.report.groups import baseline_difference, by_ends, by_origin, group_runs, metrics_of
from qexp.report.measured import measured_table
from qexp.runs import Run, find_runs

from ..composing import compose
from .conftest import config

MakeRun = Callable[..., Path]


def found(root: Path) -> list[Facts]:
    return [facts(run) for run in find_runs(root)]


def test_seeds_never_split_a_group(make_run: MakeRun, tmp_path: Path) -> None:
    for seed in range(3):
        make_run("pact", 4, seed, 0.91 + seed / 100)
    (group,) = group_runs(found(tmp_path), "test_accuracy")
    assert (group.summary.n, group.summary.mean) == (3, pytest.approx(0.92))


def test_what_differs_splits_by_itself(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("pact", 4, 0, 0.91)
    make_run("pact", 4, 0, 0.90, **{"optimizer.lr": 0.01})
    groups = group_runs(found(tmp_path), "test_accuracy")
    assert [group.keys["optimizer.lr"] for group in groups] == ["0.01", "0.1"]


def test_named_keys_refuse_to_mix_recipes(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("pact", 4, 0, 0.91)
    make_run("pact", 4, 1, 0.90, epochs=30)
    with pytest.raises(ConfigError, match=r"epochs=(30|200).*epochs=(30|200).*--by model,bits,epochs$"):
        group_runs(found(tmp_path), "test_accuracy", ["model", "bits"])
    assert len(group_runs(found(tmp_path), "test_accuracy", ["model", "bits", "epochs"])) == 2


def test_two_methods_differ_by_name_and_not_by_what_follows(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("pact", 4)
    make_run("dorefa", 4)
    with pytest.raises(ConfigError, match=r"quantizer=\w+.*--by model,quantizer$"):
        group_runs(found(tmp_path), "test_accuracy", ["model"])


def test_an_unknown_key_names_the_nearest(make_run: MakeRun, tmp_path: Path) -> None:
    make_run()
    with pytest.raises(ConfigError, match=r"'optimiser.lr' is no setting.*'optimizer.lr'"):
        group_runs(found(tmp_path), "test_accuracy", ["optimiser.lr"])


def test_one_seed_twice_is_no_two_samples(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(result={"compiled": True})
    make_run(**{"trainer.compile": False}, result={"compiled": False})
    groups = group_runs(found(tmp_path), "test_accuracy")
    assert [group.keys["trainer.compile"] for group in groups] == ["False", "True"]
    with pytest.raises(ConfigError, match=r"two runs of seed 0.*--by model,trainer\.compile"):
        group_runs(found(tmp_path), "test_accuracy", ["model"])


def test_a_copied_run_counts_once(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(root="runs")
    make_run(root="copy")
    (group,) = group_runs(found(tmp_path), "test_accuracy")
    assert group.summary.n == 1


def test_the_float_network_comes_first_then_falling_bits(make_run: MakeRun, tmp_path: Path) -> None:
    for quantizer, bits in (("pact", 2), ("dorefa", 4), ("none", 4), ("pact", 4), ("pact", 32)):
        make_run(quantizer, bits)
    order = [(g.first.quantizer, g.first.bits) for g in group_runs(found(tmp_path), "test_accuracy")]
    assert order == [("none", "32"), ("pact", "w32a32"), ("dorefa", "w4a4"), ("pact", "w4a4"), ("pact", "w2a2")]


def test_what_else_differs_sorts_by_its_size(make_run: MakeRun, tmp_path: Path) -> None:
    for rate in (0.1, 1e-5, 20.0, 3.0):
        make_run(**{"optimizer.lr": rate})
    groups = group_runs(found(tmp_path), "test_accuracy")
    assert [group.keys["optimizer.lr"] for group in groups] == ["1e-05", "0.1", "3.0", "20.0"]


def test_bits_have_no_meaning_for_the_float_network(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("none", 4, 0)
    make_run("none", 2, 1)
    (group,) = group_runs(found(tmp_path), "test_accuracy")
    assert group.summary.n == 2


def test_degradation_is_taken_seed_by_seed(make_run: MakeRun, tmp_path: Path) -> None:
    for seed, (base, drop) in enumerate([(0.91, 0.01), (0.93, 0.02), (0.92, 0.03)]):
        make_run("none", 4, seed, base)
        make_run("pact", 2, seed, base - drop)
    make_run("pact", 2, 3, 0.5)  # a seed without a float run tells nothing of the difference
    groups = group_runs(found(tmp_path), "test_accuracy")
    difference = baseline_difference(groups[1], groups)
    assert difference is not None
    assert (difference.n, difference.mean) == (3, pytest.approx(-0.02))


@pytest.mark.parametrize("change", [{"epochs": 30}, {"optimizer.lr": 0.01}, {"trainer.precision": "bfloat16"}])
def test_a_float_run_of_another_recipe_is_no_baseline(make_run: MakeRun, tmp_path: Path, change: dict) -> None:
    make_run("none", 4, 0, 0.92, **change)
    make_run("pact", 4, 0, 0.91)
    groups = group_runs(found(tmp_path), "test_accuracy")
    assert baseline_difference(groups[1], groups) is None


def test_a_float_network_may_differ_where_that_is_said(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("none", 4, 0, 0.92, **{"model.start": "glorot"})
    make_run("pact", 4, 0, 0.91, **{"model.start": "unit"})

    def difference(*apart: str) -> Any:
        (record,) = (
            one for one in measured_table(find_runs(tmp_path), apart=apart).records if one["bits"] != "32"
        )
        return record["difference"]

    assert difference() is None
    assert difference("model.start") == pytest.approx(-0.01)
    assert difference("optimizer.lr") is None
    assert "without quantizer; model.start may be its own." in (
        measured_table(find_runs(tmp_path), apart=["model.start"]).caption
    )
    with pytest.raises(ConfigError, match=r"--float-apart: 'model\.begin' is no setting of these runs"):
        difference("model.begin")
    said = {
        "model.start": "glorot",
        "optimizer._target_": "qexp.lit.optimizers.adam",
        "optimizer.update_scale": "none",
    }
    make_run("none", 4, 0, 0.93, **said)  # a setting with the value that says what its absence says
    assert difference("model.start", "optimizer.update_scale") == pytest.approx(-0.01)
    make_run("none", 4, 0, 0.90, **{"model.start": "zeros"})
    with pytest.raises(ConfigError, match="could both be the float network of"):
        difference("model.start")
    make_run("none", 4, 0, 0.95, **{"model.start": "unit"})
    assert difference("model.start") == pytest.approx(-0.04), "the same recipe comes first"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "32"),
        ({"first_last": "same"}, "same"),
        ({"first_last": 8, "bits.last": 32}, "first 8, last 32"),
        ({"bits.first": "w8a8", "bits.last": "w8a8"}, "w8a8"),
    ],
)
def test_the_rule_for_both_ends(make_run: MakeRun, tmp_path: Path, changes: dict, text: str) -> None:
    make_run(**changes)
    assert found(tmp_path)[0].first_last == text


def test_names_come_from_the_folder_where_the_config_has_none(make_run: MakeRun, tmp_path: Path) -> None:
    path = make_run("none")
    text = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(text.replace("names:", "old_names:"))
    assert found(tmp_path)[0].subject == "resnet20 cifar10 none 32"


def started(make_run: MakeRun, quantizer: str, seed: int, digest: str, recipe: str | None = None) -> None:
    """A run that started from the checkpoint `digest`, of a run of `recipe` and the same seed, or another."""
    origin = {} if recipe is None else {"weights_recipe": recipe}
    place = {"model.weights": f"somewhere/{digest}"}
    make_run(quantizer, 4, seed, 0.9 + seed / 100, result={"weights_digest": digest, **origin}, **place)


def test_runs_from_the_float_run_of_their_own_seed_are_one_recipe(make_run: MakeRun, tmp_path: Path) -> None:
    for seed in range(3):
        started(make_run, "pact", seed, f"{seed}" * 64, "a" * 64)
        started(make_run, "dorefa", seed, f"{seed}" * 64, "a" * 64)
    groups = group_runs(by_origin(found(tmp_path)), "test_accuracy")
    assert sorted((group.first.quantizer, group.summary.n) for group in groups) == [("dorefa", 3), ("pact", 3)]
    assert {group.first.get("weights") for group in groups} == {"run aaaaaaaa"}


def test_runs_from_one_network_are_told_by_what_it_holds(make_run: MakeRun, tmp_path: Path) -> None:
    started(make_run, "pact", 0, "f" * 64, "a" * 64)  # the network's own seed
    started(make_run, "pact", 1, "f" * 64)
    started(make_run, "dorefa", 0, "f" * 64, "a" * 64)
    groups = group_runs(by_origin(found(tmp_path)), "test_accuracy")
    assert sorted((group.first.quantizer, group.summary.n) for group in groups) == [("dorefa", 1), ("pact", 2)]
    assert {group.first.get("weights") for group in groups} == {"ffffffff"}


def test_other_float_recipes_stay_apart(make_run: MakeRun, tmp_path: Path) -> None:
    started(make_run, "pact", 0, "0" * 64, "a" * 64)
    started(make_run, "pact", 1, "1" * 64, "b" * 64)
    assert len(group_runs(by_origin(found(tmp_path)), "test_accuracy")) == 2


def test_a_float_run_of_the_same_arithmetic_comes_first_and_any_other_after_it(
    make_run: MakeRun, tmp_path: Path
) -> None:
    for quantizer, bits, seed, accuracy, compiled in (
        ("none", 32, 0, 0.95, False),
        ("none", 32, 0, 0.94, True),
        ("none", 32, 1, 0.93, True),
        ("pact", 4, 0, 0.9, True),
        ("pact", 2, 1, 0.8, False),
    ):
        make_run(quantizer, bits, seed, accuracy, **{"trainer.compile": compiled})
    runs = found(tmp_path)
    floats = group_runs([run for run in runs if run.is_float], "test_accuracy")
    four, two = (group for group in group_runs(runs, "test_accuracy") if not group.first.is_float)
    assert baseline_difference(four, floats).mean == pytest.approx(-0.04)
    assert baseline_difference(two, floats).mean == pytest.approx(-0.13)


def test_a_run_made_twice_with_other_results_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    for root, accuracy in (("here", 0.9), ("there", 0.9)):
        make_run("pact", 4, 0, accuracy, root=root)
    assert group_runs(found(tmp_path), "test_accuracy")[0].summary.n == 1
    make_run("pact", 4, 0, 0.5, root="elsewhere")
    with pytest.raises(ConfigError, match="one run, made twice with other results"):
        group_runs(found(tmp_path), "test_accuracy")


def test_what_other_methods_start_from_does_not_split_a_row(make_run: MakeRun, tmp_path: Path) -> None:
    for seed in range(3):
        started(make_run, "pact", seed, f"{seed}" * 64, "a" * 64)
        # All from the float run of seed 0.
        started(make_run, "dorefa", seed, "0" * 64, "a" * 64 if seed == 0 else None)
    groups = group_runs(by_origin(found(tmp_path)), "test_accuracy")
    assert sorted((group.first.quantizer, group.summary.n) for group in groups) == [("dorefa", 3), ("pact", 3)]


LAYER = {"fc2*": {"bits": 2, "quantizer": {"name": "pact", **config("pact", 4, 0, {})["quantizer"]}}}


def test_a_layer_quantized_under_none_is_no_float_network(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("none", 4, 0, 0.9)
    make_run("none", 4, 0, 0.8, layers=LAYER)
    full, part = group_runs(found(tmp_path), "test_accuracy")
    assert (full.first.is_float, part.first.is_float) == (True, False)
    assert (full.first.bits, part.first.bits) == ("32", "w4a4")
    assert part.first.get("layers.fc2*.bits") == 2
    difference = baseline_difference(part, [full, part])
    assert difference is not None and difference.mean == pytest.approx(-0.1)


def test_a_method_without_quantizers_is_the_float_network(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("pact", 4, **{"quantizer.weight": None, "quantizer.activation": None})
    (one,) = found(tmp_path)
    assert (one.is_float, one.quantizer, one.bits) == (True, "none", "32")


@pytest.mark.parametrize(("kind", "bits"), [("weight", "w32a4"), ("activation", "w4a32")])
def test_what_a_method_leaves_in_float_has_32_bits(
    make_run: MakeRun, tmp_path: Path, kind: str, bits: str
) -> None:
    make_run("pact", 4, **{f"quantizer.{kind}": None})
    assert found(tmp_path)[0].bits == bits


def test_the_penalty_of_a_method_without_clip_levels_tells_no_runs_apart(
    make_run: MakeRun, tmp_path: Path
) -> None:
    for method, factor in (("dorefa", None), ("pact", 0.0)):
        for seed, typed in enumerate((0.0, 0.01)):
            changes = {"alpha_regularization.lambda_alpha": typed}
            own = typed if factor is not None else None
            make_run(method, 4, seed, quantization={"lambda_alpha": own}, **changes)
    groups = group_runs(found(tmp_path), "test_accuracy")
    assert sorted((group.first.quantizer, group.summary.n) for group in groups) == [
        ("dorefa", 2), ("pact", 1), ("pact", 1)
    ]  # fmt: skip


def test_ends_of_the_same_widths_have_one_word(make_run: MakeRun, tmp_path: Path) -> None:
    alike = {"bits": [[2, 2], [2, 2], [2, 2]]}
    make_run("pact", 2, 0, first_last="same", quantization=alike)
    make_run("pact", 2, 1, first_last=2, quantization=alike)
    make_run("pact", 2, 0, first_last=8, quantization={"bits": [[2, 2], [8, 8], [8, 8]]})
    groups = group_runs(by_ends(found(tmp_path)), "test_accuracy")
    assert sorted((group.first.first_last, group.summary.n) for group in groups) == [("8", 1), ("same", 2)]


def test_an_image_of_another_width_is_another_network() -> None:
    """`same`, typed, is for the image, too; the method's own rule leaves it the width that the method names."""
    runs = []
    for seed, words in enumerate([(), ("first_last=same",), ("bits.first=w1a8",)]):
        plain = compose("model=mlp", "dataset=digits", "quantizer=qnn_binary", "bits=1", f"seed={seed}", *words)
        told = identity(parse(plain), {})
        result = {"metrics": {"test_accuracy": 0.5}}
        runs.append(facts(Run(Path(f"run{seed}"), "done", plain, result, None, {}, identity=told)))
    groups = group_runs(by_ends(runs), "test_accuracy")
    apart = {group.first.first_last: [member.seed for member in group.members] for group in groups}
    assert apart == {"same": [1], "first w1a8, last same": [0, 2]}
    assert runs[0].has_ends("first w1a8, last 1") and not runs[0].has_ends("same") and runs[1].has_ends("same")


def test_by_the_seed_there_is_a_row_for_each(make_run: MakeRun, tmp_path: Path) -> None:
    for seed in range(3):
        make_run("pact", 4, seed, 0.9 + seed / 100)
    groups = group_runs(found(tmp_path), "test_accuracy", ["quantizer", "bits", "seed"])
    assert [group.keys["seed"] for group in groups] == ["0", "1", "2"]


RUN = Path("run")


def under(base: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """`plain`, with what only `base` has."""
    nodes = {key: under(base[key], node) for key, node in plain.items() if isinstance(base.get(key), dict)}
    return {**base, **plain, **nodes}


def test_keys_that_came_later_split_no_group_of_one_identity() -> None:
    """A setting that an identity takes for absent has to be absent for the tables, too."""
    earlier = yaml.safe_load(Path(__file__).with_name("earlier.yaml").read_text())
    words = ("model=resnet20", "dataset=cifar10", "quantizer=pact", "bits=4", "schedule=multistep")
    today = under(compose(*words), earlier)
    assert identity(parse(today), {}) == identity(parse(earlier), {})
    assert today["task"].keys() > earlier["task"].keys()
    one, other = (facts(Run(RUN, "done", plain, {}, None, {})) for plain in (earlier, today))
    assert one.recipe == other.recipe


def test_a_digits_shape_that_says_what_its_absence_says_is_no_difference() -> None:
    shown = [
        facts(Run(RUN, "done", compose(f"dataset.shape={shape}"), {}, None, {}))
        for shape in ("null", "[1,8,8]", "[3,32,32]")
    ]
    assert shown[0].recipe == shown[1].recipe != shown[2].recipe
    assert shown[0].setting("dataset.shape") is None
    assert shown[0].setting("task.loss") == "cross_entropy"


@pytest.mark.parametrize(("of", "shown"), [("versions", "versions"), ("relu_versions", "versions.relu")])
def test_other_versions_of_a_methods_maths_are_other_rows(
    make_run: MakeRun, tmp_path: Path, of: str, shown: str
) -> None:
    target = "qexp.quantizers.pact.PACT"
    for seed, version in enumerate((1, 1, 2, 3)):
        make_run("pact", 4, seed, 0.9, quantization={of: {target: version}})
    make_run("pact", 4, 4, 0.9)
    make_run("none", 32, 0, 0.9)
    groups = group_runs(found(tmp_path), "test_accuracy")
    assert sorted((group.keys[f"{shown}.{target}"], len(group.members)) for group in groups) == [
        ("2", 1),
        ("3", 1),
        ("–", 1),
        ("–", 3),
    ]
    assert len({group.first.baseline_key() for group in groups}) == 1


def test_a_damaged_number_of_samples_is_no_end_of_the_table(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("pact", 4, 0, 0.9, **{"dataset.train_samples": "x"})
    make_run("pact", 4, 1, 0.9, **{"dataset.train_samples": 5000})
    said = [facts(run).shortened for run in find_runs(tmp_path)]
    assert sorted(said) == ["", "200 epochs, 5,000 training samples"]


def test_what_is_computed_from_a_result(make_run: Callable[..., Path], tmp_path: Path) -> None:
    """The fixture's run has 200 epochs."""
    metrics = {"test_accuracy": 0.9, "alpha/a": 1.5, "alpha/b": 0.9}
    make_run("pact", 4, 0, result={"train_seconds": 400.0, "metrics": metrics})
    (run,) = find_runs(tmp_path)
    found = metrics_of(facts(run))
    assert [found[name] for name in ("epoch_seconds", "alpha_lowest", "alpha_highest")] == [2.0, 0.9, 1.5]


def test_another_version_of_shift_based_batch_norm_is_another_row_of_float_networks_too() -> None:
    ran = [
        facts(Run(RUN, "done", compose("quantizer=none"), {}, None, {}, identity=identity))
        for identity in ({}, {"versions": {"shift_norm": 1}}, {"versions": {"shift_norm": 2}})
    ]
    assert ran[0].recipe == ran[1].recipe
    assert ran[2].recipe == ran[0].recipe | {"ops.versions.shift_norm": 2}

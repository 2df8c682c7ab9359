from __future__ import annotations

import dataclasses
import random
from functools import cache
from typing import Any

import pytest

from qexp.calibration import VERSIONS
from qexp.calibration.observers import TopK
from qexp.config import Config, parse
from qexp.identity import canonical, digest, identity, run_id
from qexp.ops import VERSIONS as OPS_VERSIONS

from .composing import compose, parsed

DIGESTS = {"data": "d" * 64}


def name(config: Config, **options: Any) -> str:
    return run_id(config, identity(config, DIGESTS, **options))


@cache
def usual() -> str:
    """The name of the default run."""
    return name(parsed())


def shuffled(value: Any) -> Any:
    if isinstance(value, dict):
        keys = list(value)
        random.Random(0).shuffle(keys)
        return {key: shuffled(value[key]) for key in keys}
    return value


def test_the_order_of_keys_does_not_matter() -> None:
    plain = compose()
    assert name(parse(plain)) == name(parse(shuffled(plain)))


@pytest.mark.parametrize(
    "override",
    [
        "output_dir=elsewhere",
        "experiment.name=other",
        "dataset.root=/elsewhere",
        "dataset.download=true",
        "dataset.train_samples=null",
        "dataset.shape=[1,8,8]",
        "logger=none",
        "trainer.progress=false",
        "optimizer.lr=1e-1",
    ],
)
def test_places_loggers_and_progress_do_not_matter(override: str) -> None:
    assert name(parsed(override)) == usual()


@pytest.mark.parametrize(
    "overrides",
    [
        "seed=1",
        "epochs=41",
        "batch_size=64",
        "optimizer.lr=0.2",
        "optimizer=adam",
        "schedule=cosine",
        "bits=2",
        "bits.weight=3",
        "bits.first=8",
        "first_last=8",
        "quantizer=dorefa",
        "quantizer.activation.scope=channel",
        "quantizer.activation.alpha=8",
        "alpha_regularization.lambda_alpha=0.02",
        "alpha_regularization=none",
        "layers.'layers.0'.bits=2",
        "trainer.precision=bfloat16",
        "normalization=shift",
        "batch_norm_batches=5",
        "gradient_bits=6",
        "gradient_bits=6 gradient_form=log",
        "rounding=soft_round rounding.alpha=3",
        "discretisation=ewgs",
        "model.hidden=[32]",
        "dataset.augment=crop_flip",
        "dataset.validation=0.1",
        "dataset.train_samples=100",
        "dataset.shape=[3,8,8]",
        "task.label_smoothing=0.1",
    ],
)
def test_what_changes_the_result_changes_the_name(overrides: str) -> None:
    *before, last = overrides.split()
    assert name(parsed(*before, last)) != (name(parsed(*before)) if before else usual())


def test_gradients_behind_float_weights_that_quantized_relus_feed_rename_those_runs_alone() -> None:
    def told(*words: str) -> Any:
        return identity(parsed("gradient_bits=6", *words), DIGESTS)["quantization"]["gradient"]

    assert told("quantizer=pact", "bits=w32a4") == [6, "dorefa", "fed"]
    for words in ("quantizer=pact bits=w4a4", "quantizer=qnn_binary bits=1", "quantizer=lsq bits=w32a4"):
        assert told(*words.split()) == [6, "dorefa"]


@pytest.mark.parametrize(
    "override", ["bits=2", "first_last=8", "alpha_regularization=none", "+rounding.unused=1", "bits.first=8"]
)
def test_nothing_of_a_quantizer_matters_under_none(override: str) -> None:
    assert name(parsed("quantizer=none", override)) == name(parsed("quantizer=none"))


def test_a_layer_quantized_under_none_matters() -> None:
    plain = compose("quantizer=none")
    method = compose("quantizer=pact")["quantizer"]
    plain["layers"] = {"*": {"quantizer": {"name": "pact", **method}}}
    assert name(parse(plain)) != name(parsed("quantizer=none"))
    other = {**plain, "bits": {**plain["bits"], "weight": 2}}
    assert name(parse(plain)) != name(parse(other))


def test_the_penalty_does_not_matter_without_clip_levels() -> None:
    with_penalty = parsed("quantizer=dorefa", "alpha_regularization=l2")
    assert name(with_penalty) == name(parsed("quantizer=dorefa", "alpha_regularization=none"))


def test_the_contents_that_paths_stand_for_matter() -> None:
    config = parsed()
    assert identity(config, {"data": "a"}) != identity(config, {"data": "b"})
    loaded = parsed("model.weights=a.pth")
    moved = parsed("model.weights=b.pth")
    same = {**DIGESTS, "weights": "w"}
    assert identity(loaded, same) == identity(moved, same) != identity(config, DIGESTS)


def test_a_new_version_of_the_maths_is_a_new_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from qexp.quantizers.pact import PACT

    before = name(parsed())
    monkeypatch.setattr(PACT, "version", PACT.version + 1)
    assert name(parsed()) != before


@pytest.mark.parametrize("rounding", ["asr", "soft_round", "dsq"])
def test_the_gradient_of_clip_levels_renames_soft_rounding_where_a_level_has_one(rounding: str) -> None:
    def found(*words: str) -> dict[str, Any]:
        return dict(identity(parsed(*words, "bits=3"), DIGESTS)["quantization"])

    pact = {"qexp.quantizers.pact.PACT": 2}
    assert found("quantizer=pact", f"rounding={rounding}")["soft_versions"] == pact
    plain = compose("quantizer=dorefa", "bits=3", f"rounding={rounding}")
    plain["layers"] = {"layers.0": {"quantizer": {"name": "pact", **compose("quantizer=pact")["quantizer"]}}}
    assert identity(parse(plain), DIGESTS)["quantization"]["soft_versions"] == pact
    assert list(found("quantizer=relu", f"rounding={rounding}")["soft_versions"].values()) == [2]
    assert "soft_versions" not in found("quantizer=pact")
    for other in ("lsq", "lsq_plus", "llsq", "lglsq", "dorefa", "wrpn", "clip"):
        content = found(f"quantizer={other}", f"rounding={rounding}")
        assert "soft_versions" not in content
        assert not any(target.startswith("qexp.ops.rounding.") for target in content["versions"])


def test_what_only_some_runs_of_learned_steps_have_renames_these_alone() -> None:
    def found(*words: str) -> dict[str, Any]:
        return dict(identity(parsed("quantizer=lsq", "bits=4", *words), DIGESTS)["quantization"])

    lsq = {"qexp.quantizers.lsq.LSQ": 2}
    assert found("quantizer.weight.scope=network")["network_versions"] == lsq
    assert found("quantizer.placement=relu")["relu_versions"] == lsq
    plain = compose("quantizer=lsq", "bits=4")
    plain["layers"] = {"fc2": {"scope": "network"}}
    assert identity(parse(plain), DIGESTS)["quantization"]["network_versions"] == lsq
    assert not {"network_versions", "relu_versions"} & set(found("quantizer.weight.scope=channel"))


def test_dorefas_clip_that_a_float_network_loses_renames_float_activations_alone() -> None:
    def found(*words: str) -> dict[str, Any]:
        return dict(identity(parsed(*words), DIGESTS)["quantization"])

    changed = {"qexp.quantizers.dorefa.DoReFaActivation": 2}
    for quantizer in ("dorefa", "wrpn"):
        assert found(f"quantizer={quantizer}", "bits=w4a32")["float_activations_versions"] == changed
        assert "float_activations_versions" not in found(f"quantizer={quantizer}", "bits=4")
    assert "float_activations_versions" not in found("quantizer=pact", "bits=w4a32")


def test_compiled_steps_are_other_runs() -> None:
    assert name(parsed(), compiled=True) != name(parsed(), compiled=False)
    assert name(parsed("trainer.compile=true"), compiled=True) == name(parsed(), compiled=True)


def test_the_name_says_what_it_is() -> None:
    plain = compose("bits=w4a8")
    plain["names"] = {"model": "resnet20", "dataset": "cifar10", "quantizer": "pact"}
    config = parse(plain)
    assert name(config).startswith("resnet20-cifar10-pact-w4a8-s0-")
    assert len(name(config).rpartition("-")[2]) == 8


def test_numbers_that_are_equal_are_one_number() -> None:
    assert digest({"lr": 1.0, "b": [2.0]}) == digest({"b": (2,), "lr": 1})
    assert canonical(True) is True
    assert digest(True) != digest(1)


def test_every_setting_of_the_trainer_is_decided_on() -> None:
    """A new key of the trainer is either part of the identity or listed here as without effect."""
    without_effect = {
        "device": "cpu",
        "strategy": "ddp",
        "threads": 1,
        "checkpoint_minutes": 1,
        "checkpoint_steps": 3,
        "watchdog": "stop",
        "progress": False,
    }
    part = {
        "devices": 2,
        "precision": "bfloat16",
        "channels_last": False,
        "compile": True,
        "deterministic": True,
    }
    config = parsed()
    assert {field.name for field in dataclasses.fields(config.trainer)} == without_effect.keys() | part.keys()
    for key, value in (without_effect | part).items():
        assert getattr(config.trainer, key) != value
        trainer = dataclasses.replace(config.trainer, **{key: value})
        changed = name(dataclasses.replace(config, trainer=trainer)) != usual()
        assert changed is (key in part), key


def test_keys_that_came_later_do_not_rename_earlier_runs() -> None:
    plain = compose()
    earlier = {
        **plain,
        "dataset": {k: v for k, v in plain["dataset"].items() if k not in ("train_samples", "shape")},
    }
    assert name(parse(earlier)) == name(parse(plain))


def test_a_null_shape_stays_in_the_name_where_it_always_was() -> None:
    assert identity(parsed("dataset=npz"), DIGESTS)["dataset"]["shape"] is None


def test_new_maths_of_a_stage_names_the_runs_it_acts_on_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("quantizer=uniform", "bits=4", "model.weights=some")
    plain = parsed(*words, command="ptq")
    corrected = parsed(*words, "calibration.bias_correction=channel", command="ptq")
    before = [name(config) for config in (plain, corrected)]
    assert "versions" not in identity(plain, DIGESTS)["calibration"]
    monkeypatch.setitem(VERSIONS, "bias_correction", 2)
    assert name(plain) == before[0]
    assert name(corrected) != before[1]
    assert identity(corrected, DIGESTS)["calibration"]["versions"] == {"bias_correction": 2}
    monkeypatch.setattr(TopK, "version", 3)
    assert identity(plain, DIGESTS)["calibration"]["versions"] == {"observer": 3}


def test_new_maths_beside_the_quantizers_names_its_runs_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def names() -> list[str]:
        words = ("normalization=shift", "optimizer=shift_adamax", "gradient_bits=6", "gradient_form=log")
        return [
            *(name(parsed(word)) for word in words[:3]),
            name(parsed(*words[2:])),
            name(parsed("optimizer=adam")),
        ]

    before = names()
    assert "versions" not in identity(parsed("normalization=shift", "gradient_bits=6"), DIGESTS)
    for place, changed in enumerate(("shift_norm", "shift_adamax", "dorefa_gradient", "log_gradient")):
        with monkeypatch.context() as now:
            now.setitem(OPS_VERSIONS, changed, 2)
            moved = [was != is_now for was, is_now in zip(before, names(), strict=True)]
            assert moved == [number == place for number in range(5)]


def test_widths_that_a_method_does_not_use_are_not_in_the_name() -> None:
    names = {name(parsed("quantizer=ternary", f"bits={bits}")) for bits in ("2", "w2a8", "w2a32")}
    assert len(names) == 1
    assert "-w2a32-s0-" in names.pop()
    assert "-w2a3-s0-" in name(parsed("bits=w2a3", "layers.'layers.0'.bits=2"))


@pytest.mark.parametrize(
    ("node", "counts"), [("dataset", False), ("model", True), ("task", True), ("optimizer", True)]
)
def test_only_data_have_places_that_do_not_matter(node: str, counts: bool) -> None:
    plain = compose()
    plain[node] |= {"file": "here"}
    assert (name(parse(plain)) != name(parsed())) == counts


@pytest.mark.parametrize("argument", ["cache", "file", "root", "workers", "download"])
def test_a_networks_own_arguments_name_its_run(argument: str) -> None:
    one, other = compose(), compose()
    one["model"][argument], other["model"][argument] = 1, 2
    assert name(parse(one)) != name(parse(other))
    one["model"][argument] = other["model"][argument]
    one["model"]["weights"] = "a.pth"
    assert name(parse(one)) == name(parse(other))  # what they hold is in their digest


def test_weights_that_stay_in_float_decay_as_floats() -> None:
    recipe = ("recipe=lsq/cifar10_resnet20", "bits=2")
    decays = {
        words: compose(*recipe, *words)["optimizer"]["weight_decay"]
        for words in [
            ("quantizer=lsq",),
            ("quantizer=none",),
            ("quantizer=none", "optimizer.weight_decay=1e-3"),
            ("quantizer=none", "layers.'conv1'.bits=4"),
        ]
    }
    assert list(decays.values()) == [2.5e-5, 1e-4, 1e-3, 2.5e-5]
    assert (
        len({name(parsed("recipe=lsq/cifar10_resnet20", "quantizer=none", f"bits={bits}")) for bits in (2, 4)})
        == 1
    )


def test_a_teachers_place_does_not_matter() -> None:
    assert name(parsed("task.teacher=a.pth")) == name(parsed("task.teacher=b.pth"))


def test_breakpoints_moved_at_random_rename_these_runs_alone() -> None:
    def found(*words: str) -> dict[str, Any]:
        return dict(
            identity(parsed("quantizer=pwlq", "bits=w4a8", *words, command="ptq"), DIGESTS)["quantization"]
        )

    moved = found("quantizer.weight.perturbation=0.1")
    assert moved["perturbed_versions"] == {"qexp.quantizers.pwlq.PWLQWeight": 2}
    assert "perturbed_versions" not in found()

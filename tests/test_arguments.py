from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pytest

from qexp.arguments import check_arguments, fits
from qexp.build import build
from qexp.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, float, True),
        (1.5, int, False),
        (True, int, False),
        (True, float, False),
        (1, bool, False),
        (float("nan"), float, False),
        (float("inf"), float, False),
        ("1e-3", float, False),
        (None, float | None, True),
        ([1, 2], Sequence[int], True),
        ([1, "a"], Sequence[int], False),
        ("abc", Sequence[str], False),
        ([1, 8, 8], tuple[int, int, int], True),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        (object(), Any, True),
        (3, "an unresolved name", True),
    ],
)
def test_what_fits(value: object, hint: Any, expected: bool) -> None:
    assert fits(value, hint) is expected


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (
            {"_target_": "qexp.lit.schedules.cosine", "final": "abc"},
            "schedule.final=abc: it has to be a finite number.",
        ),
        ({"_target_": "qexp.lit.schedules.step", "every": None, "of": 2}, "schedule.every=null: it has to be"),
        ({"_target_": "qexp.models.mlp.MLP", "hidden": 3}, r"model.hidden=3: it has to be a list \(each a whole"),
        ({"_target_": "qexp.data.digits.Digits", "download": "yes"}, "dataset.download=yes: it has to be true or"),
        (
            {"_target_": "qexp.lit.schedules.onecycle", "milestones": [60], "of": 200},
            r"takes no 'milestones', 'of'\. .* for another schedule: ~schedule.milestones ~schedule.of takes",
        ),
        ({"_target_": "qexp.quantizers.pact.PACT", "alpha": "x"}, "PACT: alpha=x: it has to be a finite number."),
    ],
)
def test_a_value_of_another_type_is_named_with_its_key(node: dict[str, Any], said: str) -> None:
    extra = {"input_shape": (1, 8, 8), "num_classes": 10} if "models" in node["_target_"] else {}
    extra |= {"bits": 4, "site": None} if "quantizers" in node["_target_"] else {}
    with pytest.raises(ConfigError, match=said):
        build(node, **extra)


def test_types_that_cannot_be_resolved_are_not_checked() -> None:
    def make(value: NowhereDefined) -> None: ...  # type: ignore[name-defined] # noqa: F821

    check_arguments("x.make", make, {"value": 3})

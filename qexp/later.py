"""Settings that came after the first runs: with some values they say what their absence said before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LATER: dict[str, dict[str, tuple[object, ...]]] = {
    "": {"train_samples": (None,)},
    "qexp.lit.task.Classification": {
        "loss": ("cross_entropy",),
        "distillation": (0.0,),
        "temperature": (1.0,),
        "teacher": (None,),
        "gradient_clip": (None,),
    },
    "qexp.lit.optimizers.adam": {"update_scale": ("none",)},
    "qexp.data.digits.Digits": {"shape": (None, [1, 8, 8])},
    "qexp.quantizers.omse.OMSEWeight": {"dual_above": (None,)},
}
"""Target ("" for all) -> key -> the values that mean what its absence meant."""


def _of(target: object) -> dict[str, tuple[object, ...]]:
    return _LATER[""] | _LATER.get(str(target), {})


def without_later(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node of a configuration without the settings that say what their absence says.

    >>> without_later({"_target_": "qexp.data.digits.Digits", "shape": [1, 8, 8], "train_samples": 100})
    {'_target_': 'qexp.data.digits.Digits', 'train_samples': 100}
    """
    later = _of(node.get("_target_"))
    return {key: value for key, value in node.items() if value not in later.get(key, ())}


def meaning_of_absence(target: object, key: str, otherwise: Any) -> Any:
    """Return what a node of this target says by having no `key`; `otherwise` where every run has it.

    >>> meaning_of_absence("qexp.lit.task.Classification", "loss", "?")
    'cross_entropy'
    """
    return _of(target).get(key, (otherwise,))[0]

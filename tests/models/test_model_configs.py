from __future__ import annotations

from typing import Any

import pytest
import torch

from qexp.build import build
from qexp.config import parse
from qexp.jobs import composition
from qexp.paths import config_dir
from qexp.report.headers import read_header

NAMES = sorted(path.stem for path in (config_dir() / "model").glob("*.yaml"))
IMAGES = {"cifar10": (3, 32, 32), "svhn": (3, 40, 40), "imagenet": (3, 224, 224), "digits": (1, 8, 8)}
IMAGES |= {"mnist": (1, 28, 28), "voc_segmentation": (3, 65, 65), "voc_detection": (3, 320, 320), "ptb": (20,)}


def compose(*overrides: str) -> tuple[dict[str, Any], str]:
    """Return the checked model's node and the name of its data set."""
    config = parse(composition.compose("train", overrides))
    return dict(config.model), config.names["dataset"]


@pytest.mark.parametrize("name", NAMES)
def test_every_model_composes_brings_its_data_set_and_builds(name: str) -> None:
    node, dataset = compose(f"model={name}")
    assert node.pop("weights") is None
    with torch.device("meta"):
        model = build(node, input_shape=IMAGES[dataset], num_classes=7).eval()
        found = model(torch.zeros(1, *IMAGES[dataset], dtype=torch.long if dataset == "ptb" else None))
    if dataset == "ptb":
        assert found[0].shape == (1, 20, 7)
    elif dataset == "voc_detection":
        assert [part.shape for part in found] == [(1, 3234, 4), (1, 3234, 7)]
    else:
        assert found.shape == ((1, 7, 65, 65) if dataset == "voc_segmentation" else (1, 7))


@pytest.mark.parametrize("name", NAMES)
def test_the_top_says_the_command_the_idea_and_the_source(name: str) -> None:
    path = config_dir() / "model" / f"{name}.yaml"
    assert path.read_text(encoding="utf-8").startswith(f"# model={name}\n")
    header = read_header(path, name)
    assert header.idea and "arXiv" in header.source


def test_a_data_set_that_is_typed_wins_over_the_models() -> None:
    assert compose("model=resnet20")[1] == "cifar10"
    assert compose("model=resnet20", "dataset=mnist")[1] == "mnist"

"""Segmentation and detection through `qexp ptq`: from a VOC folder and a checkpoint to a run and its table."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
import torchvision

from qexp.cli import main
from qexp.data.voc import CLASSES
from qexp.lit import dense_metrics
from qexp.models.dense import Detection, Segmentation, default_boxes, detections

from ..data.voc_tree import make

SEGMENTATION = {
    "lraspp_mobilenet_v3": "lraspp_mobilenet_v3_large",
    "deeplabv3_mobilenet_v3": "deeplabv3_mobilenet_v3_large",
}
QUICK = ["calibration.samples=4", "calibration.batch_size=2", "trainer.threads=1"]


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(make(tmp_path_factory.mktemp("voc"), 2012), 2007)


def checkpoint(folder: Path, model: str) -> Path:
    """torchvision's own network with random weights, saved as it is."""
    torch.manual_seed(0)
    if model in SEGMENTATION:
        network = getattr(torchvision.models.segmentation, SEGMENTATION[model])(
            weights=None, weights_backbone=None, num_classes=len(CLASSES)
        )
    else:
        network = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=len(CLASSES)
        )
    torch.save(network.state_dict(), folder / f"{model}.pth")
    return folder / f"{model}.pth"


@pytest.mark.parametrize(
    ("model", "metric"),
    [
        ("lraspp_mobilenet_v3", "miou"),
        pytest.param("deeplabv3_mobilenet_v3", "miou", marks=pytest.mark.long),
        ("ssdlite320_mobilenet_v3", "map"),
    ],
)
def test_from_a_checkpoint_to_a_table(voc, tmp_path, capsys, model, metric) -> None:
    size = [] if model.startswith("ssd") else ["dataset.size=65"]
    words = [f"model={model}", f"dataset.root={voc}", *size, *QUICK, f"output_dir={tmp_path}"]
    words.append(f"model.weights={checkpoint(tmp_path, model)}")
    assert (
        main(["ptq", "-m", "quantizer=none,pwlq", "bits=w4a8", "calibration.bias_correction=channel", *words]) == 0
    )
    found = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.rglob("result.json")}
    assert len(found) == 2
    for result in found.values():
        assert result["primary_metric"] == f"test_{metric}" and "test_accuracy" not in result
        assert 0 <= result["metrics"][f"test_{metric}"] <= 1
    (path,) = [p for p in tmp_path.rglob("layers.csv") if "pwlq" in str(p)]
    weights = {row["layer"] for row in csv.DictReader(path.read_text().splitlines()) if row["kind"] == "weight"}
    graph = [m for m in _network(model).modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    assert len(weights) == len(graph), "every layer is quantized, those of the heads too"
    capsys.readouterr()
    assert main(["table", str(tmp_path)]) == 0
    assert f"test {metric} of 2 finished runs" in capsys.readouterr().out
    assert main(["eval", str(path.parent)]) == 0
    assert "the same as in" in capsys.readouterr().out


def _network(model: str):
    if model in SEGMENTATION:
        return Segmentation(input_shape=(3, 65, 65), num_classes=21, architecture=SEGMENTATION[model])
    return Detection(input_shape=(3, 320, 320), num_classes=21, architecture="ssdlite320_mobilenet_v3_large")


def test_detections_are_torchvisions(tmp_path) -> None:
    torch.manual_seed(3)
    ours = _network("ssdlite320_mobilenet_v3").eval()
    theirs = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=21
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    image = torch.rand(3, 320, 320)
    with torch.no_grad():
        (expected,) = theirs([image])
        codes, logits = ours((image[None] - 0.5) / 0.5)
        found = detections(codes[0], logits[0], default_boxes(320), 320)
    assert torch.equal(found["labels"], expected["labels"])
    torch.testing.assert_close(found["scores"], expected["scores"])
    torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=0, atol=1e-3)


def test_the_mean_intersection_over_union_by_hand() -> None:
    masks = torch.tensor([[[0, 0, 1, 255], [1, 1, 2, 2]]])
    answers = torch.tensor([[[0, 1, 1, 0], [1, 0, 2, 2]]])

    class Model(torch.nn.Module):
        def forward(self, images):
            return torch.nn.functional.one_hot(answers, 4).permute(0, 3, 1, 2).float()

    found = dense_metrics.segmentation(Model(), [(torch.zeros(1), masks)], torch.device("cpu"), 4)
    # class 0: 1 of 3, class 1: 2 of 4, class 2: 2 of 2; class 3 does not occur
    assert found["miou"] == pytest.approx((1 / 3 + 2 / 4 + 1) / 3)
    assert found["pixel_accuracy"] == pytest.approx(5 / 7)


def test_perfect_detections_score_one_and_difficult_objects_do_not_count(monkeypatch) -> None:
    boxes = torch.tensor([[10.0, 10.0, 60.0, 80.0], [0.0, 0.0, 100.0, 160.0]])
    objects = {"boxes": boxes, "labels": torch.tensor([12, 15]), "difficult": torch.tensor([False, True])}
    objects["size"] = torch.tensor([100.0, 160.0])
    found = {"boxes": boxes[:1] / objects["size"].repeat(2) * 320, "scores": torch.tensor([0.9])}
    found["labels"] = torch.tensor([12])
    monkeypatch.setattr(dense_metrics, "detections", lambda *arguments: found)

    class Model(torch.nn.Module):
        def forward(self, images):
            return torch.zeros(1, 1, 4), torch.zeros(1, 1, 21)

    batches = [(torch.zeros(1, 3, 320, 320), [objects])]
    assert dense_metrics.detection(Model(), batches, torch.device("cpu"), 320)["map"] == pytest.approx(1.0)
    found["labels"] = torch.tensor([13])
    assert dense_metrics.detection(Model(), batches, torch.device("cpu"), 320)["map"] == 0.0


def test_detections_of_difficult_objects_are_left_out_and_no_others() -> None:
    there = {
        "boxes": torch.tensor([[0.0, 0.0, 100.0, 100.0], [200.0, 200.0, 220.0, 220.0]]),
        "labels": torch.tensor([1, 1]),
        "difficult": torch.tensor([True, False]),
    }
    boxes = [
        [0.0, 0.0, 90.0, 100.0],
        [10.0, 10.0, 30.0, 30.0],
        [200.0, 200.0, 220.0, 219.0],
        [0.0, 0.0, 99.0, 100.0],
    ]
    found = {
        "boxes": torch.tensor(boxes),
        "labels": torch.tensor([1, 1, 1, 2]),  # the last is of another class: no detection of the first object
        "scores": torch.tensor([0.9, 0.8, 0.7, 0.6]),
    }
    mine, left = dense_metrics.without_difficult(found, there)
    assert mine["scores"].tolist() == [pytest.approx(0.8), pytest.approx(0.7), pytest.approx(0.6)]
    assert left["boxes"].tolist() == [[200.0, 200.0, 220.0, 220.0]] and left["labels"].tolist() == [1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["model=resnet18", "dataset=voc_segmentation"],
            "a network for classification, and data for segmentation",
        ),
        (
            ["model=lraspp_mobilenet_v3", "dataset=voc_detection"],
            "a network for segmentation, and data for detection",
        ),
        (["model=lraspp_mobilenet_v3", "trainer.precision=bfloat16"], "qexp ptq computes in float32"),
    ],
)
def test_what_does_not_fit_is_one_line(voc, tmp_path, capsys, words, message) -> None:
    weights = checkpoint(tmp_path, "lraspp_mobilenet_v3")
    command = ["ptq", *words, f"dataset.root={voc}", f"model.weights={weights}", *QUICK, f"output_dir={tmp_path}"]
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_training_is_refused_in_one_line(voc, tmp_path, capsys) -> None:
    assert main(["train", "model=lraspp_mobilenet_v3", f"dataset.root={voc}", f"output_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert "qexp train does not train on it" in error and len(error.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("config.yaml"))


def test_another_number_of_classes_is_named(voc, tmp_path, capsys) -> None:
    network = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=5
    )
    torch.save(network.state_dict(), tmp_path / "five.pth")
    words = ["model=lraspp_mobilenet_v3", f"dataset.root={voc}", f"model.weights={tmp_path / 'five.pth'}"]
    assert main(["ptq", *words, *QUICK, f"output_dir={tmp_path}"]) == 2
    assert "have another shape" in capsys.readouterr().err

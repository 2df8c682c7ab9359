"""How good segmentations and detections are: mean intersection over union, mean average precision."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from qexp.data.batches import Batches
from qexp.data.voc import VOID
from qexp.errors import ConfigError
from qexp.graph.modes import evaluating
from qexp.lit.evaluate import float32
from qexp.models.dense import KEPT, default_boxes, detections

IOU = 0.5
"""The overlap from which a detection counts as a hit, VOC's."""


@torch.no_grad()
def segmentation(network: nn.Module, batches: Batches, device: torch.device, num_classes: int) -> dict[str, float]:
    """Return `miou`, the mean over the classes that occur, and `pixel_accuracy`; void pixels count for nothing."""
    from torchmetrics.classification import MulticlassConfusionMatrix

    matrix = MulticlassConfusionMatrix(num_classes, ignore_index=VOID).to(device)
    with evaluating(network), float32(device):
        for images, masks in batches:
            matrix.update(network(images).argmax(dim=1), masks.to(device))
    counts = matrix.compute().double()
    hits, union = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
    present = union > 0
    return {
        "miou": float((hits[present] / union[present]).mean()),
        "pixel_accuracy": float(hits.sum() / counts.sum()),
    }


@torch.no_grad()
def detection(network: nn.Module, batches: Batches, device: torch.device, side: int) -> dict[str, float]:
    """Return `map` at an overlap of 0.5, by the precision at 101 recalls (VOC 2007 took 11).

    Objects marked difficult count neither as hits nor as misses, and a detection whose best overlap of all objects
    of its class is with one of them is not looked at: VOC's rule.
    """
    metric = _average_precision()
    anchors = default_boxes(side).to(device)
    with evaluating(network), float32(device):
        for images, objects in batches:
            codes, logits = network(images)
            found = [detections(*each, anchors, side) for each in zip(codes, logits, strict=True)]
            pairs = [
                without_difficult(_in_own_pixels(each, there, side), there)
                for each, there in zip(found, objects, strict=True)
            ]
            metric.update([mine for mine, _ in pairs], [there for _, there in pairs])
    return {"map": float(metric.compute()["map_50"])}


def _average_precision() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchmetrics.detection import MeanAveragePrecision

            metric = MeanAveragePrecision(
                iou_thresholds=[IOU], max_detection_thresholds=[1, 10, KEPT], backend="pycocotools"
            )
            metric.warn_on_many_detections = False  # as many as the network keeps are looked at
            return metric
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the average precision of detections needs pycocotools: pip install 'qexp[detection]'."
        ) from error


def without_difficult(
    found: dict[str, Tensor], there: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return detections and objects of one image without the difficult objects and the detections of these."""
    difficult = there["difficult"].bool()
    if difficult.any() and len(found["boxes"]):
        overlaps = torchvision.ops.box_iou(found["boxes"], there["boxes"])
        overlaps = overlaps.masked_fill(found["labels"].unsqueeze(1) != there["labels"], 0.0)
        best, place = overlaps.max(1)
        kept = ~(difficult[place] & (best >= IOU))
        found = {name: value[kept] for name, value in found.items()}
    return found, {name: there[name][~difficult] for name in ("boxes", "labels")}


def _in_own_pixels(found: dict[str, Tensor], there: dict[str, Tensor], side: int) -> dict[str, Tensor]:
    """Bring boxes from the square back to the image's own size."""
    factor = (there["size"] / side).repeat(2)
    return {**{name: value.cpu() for name, value in found.items()}, "boxes": found["boxes"].cpu() * factor}

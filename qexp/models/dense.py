"""torchvision's networks for segmentation and detection, as far as their layers go (https://pytorch.org/vision).

Modules keep torchvision's names, so that its checkpoints load as they are; nothing is ever downloaded.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms, clip_boxes_to_image

from qexp.errors import ConfigError
from qexp.models.torchvision_models import require_colour

SCORE, OVERLAP, KEPT = 0.001, 0.55, 300
"""torchvision's ssdlite320: least score, overlap that suppresses, boxes kept of a class and of an image."""

_DATA = "dataset=voc_segmentation or voc_detection"

_CENTRE, _SIZE = 10.0, 5.0
"""By what SSD's regression targets are multiplied."""


class Segmentation(nn.Module):
    """A network that tells the class of every pixel.

    Args:
        input_shape: (3, H, W).
        num_classes: of the output (N, classes, H, W), the background included.
        architecture: `lraspp_mobilenet_v3_large` or `deeplabv3_mobilenet_v3_large`.

    Raises:
        ConfigError: another architecture, or images without three channels.
    """

    task = "segmentation"
    left_out = ("aux_classifier.",)

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        num_classes: int,
        architecture: Literal["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"],
    ) -> None:
        super().__init__()
        require_colour(architecture, input_shape, _DATA)
        make = getattr(torchvision.models.segmentation, architecture)
        network = make(weights=None, weights_backbone=None, num_classes=num_classes)
        self.backbone, self.classifier = network.backbone, network.classifier
        self.takes_all = architecture.startswith("lraspp")  # features of two depths
        self.size = input_shape[1:]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes, H, W) for images (N, 3, H, W)."""
        features = self.backbone(x)
        logits = self.classifier(features if self.takes_all else features["out"])
        return F.interpolate(logits, size=self.size, mode="bilinear", align_corners=False)


class Detection(nn.Module):
    """SSDLite's layers: images to what `boxes` makes detections of; anchors and suppression are no layers.

    Args:
        input_shape: (3, S, S).
        num_classes: the background, number 0, included.
        architecture: `ssdlite320_mobilenet_v3_large`.

    Raises:
        ConfigError: another architecture, images that are no squares or have not three channels.
    """

    task = "detection"

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        num_classes: int,
        architecture: Literal["ssdlite320_mobilenet_v3_large"],
    ) -> None:
        super().__init__()
        require_colour(architecture, input_shape, _DATA)
        if input_shape[1] != input_shape[2]:
            raise ConfigError(f"model {architecture}: it takes squares, not {input_shape[1]}x{input_shape[2]}.")
        make = getattr(torchvision.models.detection, architecture)
        network = make(weights=None, weights_backbone=None, num_classes=num_classes)
        self.backbone, self.head = network.backbone, network.head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return each anchor's box as SSD codes it (N, anchors, 4) and its logits (N, anchors, classes)."""
        found = self.head(list(self.backbone(x).values()))
        return found["bbox_regression"], found["cls_logits"]


def default_boxes(side: int) -> Tensor:
    """Return ssdlite320's anchors for squares of `side` pixels: (anchors, 4) as x1 y1 x2 y2.

    Six feature maps, the first a sixteenth of the image, each next half of the one before, rounded up.
    """
    sides = [math.ceil(side / 16)]
    while len(sides) < 6:
        sides.append(math.ceil(sides[-1] / 2))
    generator = DefaultBoxGenerator([[2, 3] for _ in sides], min_ratio=0.2, max_ratio=0.95)
    maps = [torch.zeros(1, 1, each, each) for each in sides]
    (boxes,) = generator(ImageList(torch.zeros(1, 3, side, side), [(side, side)]), maps)
    return boxes


def decode(codes: Tensor, anchors: Tensor) -> Tensor:
    """Return boxes x1 y1 x2 y2 from what SSD predicts of them, relative to their anchors (Liu et al. 2016).

    Args:
        codes: (anchors, 4): centre x and y, width, height.
        anchors: (anchors, 4) as x1 y1 x2 y2.
    """
    sizes = anchors[:, 2:] - anchors[:, :2]
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2 + codes[:, :2] / _CENTRE * sizes
    # No size can overflow: torchvision holds its logarithm below that of 1000 / 16.
    half = torch.exp((codes[:, 2:] / _SIZE).clamp(max=math.log(1000 / 16))) * sizes / 2
    return torch.cat([centres - half, centres + half], dim=1)


def detections(codes: Tensor, logits: Tensor, anchors: Tensor, side: int) -> dict[str, Tensor]:
    """Return the objects of one image, best first: `boxes` (n, 4), `scores` and `labels`.

    Args:
        codes, logits: of one image, as `Detection` answers.
        anchors: as `default_boxes` gives them, on the same device.
        side: of the square, which boxes are cut to.
    """
    boxes = clip_boxes_to_image(decode(codes, anchors), (side, side))
    scores = logits.softmax(dim=1)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for label in range(1, scores.shape[1]):
        (rows,) = torch.where(scores[:, label] > SCORE)
        best = scores[rows, label].topk(min(KEPT, len(rows)))
        rows = rows[best.indices]
        found.append((boxes[rows], best.values, torch.full_like(rows, label)))
    every = [torch.cat(parts) for parts in zip(*found, strict=True)]
    kept = batched_nms(*every, OVERLAP)[:KEPT]
    return dict(zip(("boxes", "scores", "labels"), (each[kept] for each in every), strict=True))

"""What both tasks share: normalization, combined loss, accuracy and IoU, mAP, decoding, plotting.

`task` is "loc" (outputs (N, 15), labels (N, 6)) or "det" (outputs (N, 6, 2, 3), labels (N, 2, 3, 6)). Outputs are
[pc logit, x, y, w, h, class logits] along dimension 1; labels are described in `data/labels.py`. In detection every
cell is treated as a picture of its own.
"""

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torchvision.ops import box_convert, box_iou

from data.files import write_whole
from data.labels import COLUMNS, HEIGHT, ROWS, WIDTH, cells_to_picture, check_task, grid_to_lists

# ---------------------------------------------------------------------------------------------- normalization


@dataclass(frozen=True)
class Normalizer:
    """Subtracts one mean and divides by one standard deviation, both of the training pictures in [0, 1]."""

    mean: float
    std: float

    @classmethod
    def fit(cls, pictures: Tensor) -> "Normalizer":
        """Mean and (population) standard deviation over all pixels of pictures, uint8 or float32 in [0, 1]."""
        count, total, squares = 0, 0.0, 0.0
        for part in pictures.split(4096):  # a whole set in float64 would be 1.4 GB
            pixels = as_floats(part).double()
            count += pixels.numel()
            total += pixels.sum().item()
            squares += pixels.square().sum().item()
        mean = total / count
        std = math.sqrt(max(0.0, squares / count - mean**2))
        if not std > 0:
            raise ValueError(f"pictures: expected pixels that differ from each other, all are {mean:g}")
        return cls(mean, std)

    def __call__(self, pictures: Tensor) -> Tensor:
        """Pictures, uint8 or float32 in [0, 1] -> float32 of mean about 0 and standard deviation about 1."""
        return as_floats(pictures).sub(self.mean).div_(self.std)


def as_floats(pictures: Tensor) -> Tensor:
    """Pictures as float32 in [0, 1], whether they are kept as that or as 8 bit."""
    return pictures.float().div_(255) if pictures.dtype == torch.uint8 else pictures


# ---------------------------------------------------------------------------------------------- loss


class Loss(NamedTuple):
    """The combined loss and its three terms, scalars."""

    total: Tensor
    pc: Tensor
    box: Tensor
    category: Tensor


def as_pictures(outputs: Tensor, labels: Tensor, task: str) -> tuple[Tensor, Tensor]:
    """Outputs and labels with one row per picture, or per cell in detection: (M, 15) or (M, 6), and (M, 6).

    Raises ValueError where the shapes do not belong to the task or to each other.
    """
    check_task(task)
    if task == "loc":
        fits = outputs.ndim == 2 and outputs.shape[1] == 15 and tuple(labels.shape) == (len(outputs), 6)
        wanted = "outputs (N, 15) and labels (N, 6)"
    else:
        fits = tuple(outputs.shape[1:]) == (6, ROWS, COLUMNS) and tuple(labels.shape) == (len(outputs), ROWS, COLUMNS, 6)
        wanted = f"outputs (N, 6, {ROWS}, {COLUMNS}) and labels (N, {ROWS}, {COLUMNS}, 6)"
    if not fits:
        raise ValueError(f"task {task!r}: expected {wanted}, found {tuple(outputs.shape)} and {tuple(labels.shape)}")
    if task == "det":
        outputs = outputs.movedim(1, -1).reshape(-1, 6)  # (N, 6, 2, 3) -> (N*6, 6)
        labels = labels.reshape(-1, 6)  # (N, 2, 3, 6) -> (N*6, 6)
    return outputs, labels


def combined_loss(outputs: Tensor, labels: Tensor, task: str) -> Loss:
    """Binary cross-entropy on pc over all pictures (cells), plus mean squared error on x, y, w, h and the class loss
    (cross-entropy for "loc", binary cross-entropy for "det") over those with a digit.

    Where there is no digit the last five numbers of a label are not read, whatever they are. Nothing here waits for
    the device: pictures without a digit are weighted by 0 instead of being left out. Without any digit the last two
    terms are 0.
    """
    outputs, labels = as_pictures(outputs, labels, task)
    digit = labels[:, 0]
    count = digit.sum().clamp(min=1)
    target = torch.where(digit[:, None] > 0, labels, 0.0)  # NaN times 0 would be NaN
    pc = F.binary_cross_entropy_with_logits(outputs[:, 0], digit)
    squares = (outputs[:, 1:5] - target[:, 1:5]).square().mean(1)
    if task == "loc":
        category = F.cross_entropy(outputs[:, 5:], target[:, 5].long(), reduction="none")
    else:
        category = F.binary_cross_entropy_with_logits(outputs[:, 5], target[:, 5], reduction="none")
    box, category = ((term * digit).sum() / count for term in (squares, category))
    return Loss(pc + box + category, pc, box, category)


# ---------------------------------------------------------------------------------------------- measure


class Matches(NamedTuple):
    """What a network says, row by row as in `as_pictures`, beside what is true."""

    digit: Tensor  # (M,) bool, there is a digit
    found: Tensor  # (M,) bool, the network finds one: sigmoid(pc) > 0.5
    category: Tensor  # (M,) int64, the class it names
    true_category: Tensor  # (M,) int64, -1 where there is no digit
    iou: Tensor  # (M,) float32, of its box with the true one, 0 where there is no digit

    @property
    def right(self) -> Tensor:
        """(M,) bool: a digit found and its class named, or none where there is none."""
        return torch.where(self.digit, self.found & (self.category == self.true_category), ~self.found)


def match(outputs: Tensor, labels: Tensor, task: str) -> Matches:
    """Compare outputs with labels, picture by picture (cell by cell)."""
    outputs, labels = as_pictures(outputs, labels, task)
    digit = labels[:, 0] > 0
    category = outputs[:, 5:].argmax(1) if task == "loc" else (outputs[:, 5] > 0).long()
    true_category = torch.where(digit, labels[:, 5], -1).long()
    true_boxes = torch.where(digit[:, None], labels[:, 1:5], 1.0)
    return Matches(digit, outputs[:, 0] > 0, category, true_category, box_ious(outputs[:, 1:5], true_boxes) * digit)


def box_ious(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of each box with its partner: (M, 4) and (M, 4), both `cxcywh` in one unit -> (M,) in [0, 1].

    A negative width or height, which a network may well put out, counts as 0.
    """
    corners = []
    for values in (boxes, others):
        values = torch.cat((values[:, :2], values[:, 2:].clamp(min=0)), 1)
        corners.append(box_convert(values, "cxcywh", "xyxy")[:, None])  # (M, 1, 4): a batch of M single boxes
    return box_iou(*corners)[:, 0, 0]  # (M, 1, 1): the diagonal alone, never the M x M matrix


def score(outputs: Tensor, labels: Tensor, task: str) -> dict[str, float]:
    """Loss and measure over a whole set, exact: not means of batch means.

    - loss, loss_pc, loss_box, loss_class: `combined_loss` and its terms.
    - accuracy: share of pictures (cells) that are right; a missed digit is wrong.
    - iou: mean IoU over those where there is a digit and it is found; 0 if none is.
    - mean: the mean of accuracy and iou, by which epochs and networks are chosen.
    - digit_accuracy: accuracy over those that hold a digit only.
    - iou_all: mean IoU over all digits, a missed one counting as 0.
    """
    matches = match(outputs, labels, task)
    hit = matches.digit & matches.found
    digits, hits = matches.digit.sum(), hit.sum()
    overlap = (matches.iou.double() * hit).sum()
    values = torch.stack(
        [
            *(term.double() for term in combined_loss(outputs.double(), labels.double(), task)),
            matches.right.double().mean(),
            overlap / hits.clamp(min=1),
            (matches.right & matches.digit).sum() / digits.clamp(min=1).double(),
            overlap / digits.clamp(min=1),
        ]
    ).tolist()  # the one point at which the device is waited for
    names = ("loss", "loss_pc", "loss_box", "loss_class", "accuracy", "iou", "digit_accuracy", "iou_all")
    scores = dict(zip(names, values, strict=True))
    return {**scores, "mean": (scores["accuracy"] + scores["iou"]) / 2}


@torch.inference_mode()
def predict(network: nn.Module, pictures: Tensor, normal: Normalizer, batch_size: int = 512) -> Tensor:
    """The network's outputs for all pictures, on the network's device; it is left in evaluation mode."""
    device = next(network.parameters()).device
    network.eval()
    return torch.cat(
        [
            network(normal(part.to(device)).contiguous(memory_format=torch.channels_last))
            for part in pictures.split(batch_size)
        ]
    )


def evaluate(network: nn.Module, split: Any, normal: Normalizer, task: str) -> dict[str, float]:
    """`score` of a network on a split (anything with `pictures` and `labels`)."""
    outputs = predict(network, split.pictures, normal)
    return score(outputs, split.labels.to(outputs.device), task)


def select_best(runs: Sequence[Any]) -> Any:
    """The run with the highest validation mean accuracy in its best epoch; the first of equals."""
    if not runs:
        raise ValueError("runs: expected at least one, found none")
    return max(runs, key=lambda run: run.val["mean"])


# ---------------------------------------------------------------------------------------------- decoding and mAP


def decode(outputs: Tensor, task: str, threshold: float = 0.5) -> list[dict[str, Tensor]]:
    """Outputs -> for each picture its boxes in pixels, with class and score, best first.

    Returns per picture {"boxes": (k, 4) `xyxy` in pixels cut to the picture, "labels": (k,) int64,
    "scores": (k,) in [0, 1]}; the score is the probability that there is a digit times that of its class, and those
    with sigmoid(pc) below the threshold are left out. Raises ValueError unless threshold is in [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a number in [0, 1], found {threshold}")
    check_task(task)
    if task == "det":
        cells = outputs.movedim(1, -1)  # (N, 6, 2, 3) -> (N, 2, 3, 6)
        values = cells_to_picture(cells).flatten(1, 2)  # (N, 6, 6)
        named = F.logsigmoid(values[..., 5].abs()).exp()
        category = (values[..., 5] > 0).long()
    else:
        values = outputs[:, None]  # (N, 1, 15)
        named, category = values[..., 5:].softmax(-1).max(-1)
    presence = values[..., 0].sigmoid()
    scores = presence * named
    size = values.new_tensor((WIDTH, HEIGHT, WIDTH, HEIGHT))
    boxes = torch.cat((values[..., 1:3], values[..., 3:5].clamp(min=0)), -1)
    boxes = torch.minimum(box_convert(boxes, "cxcywh", "xyxy").clamp(min=0) * size, size)
    order = scores.argsort(dim=1, descending=True, stable=True)
    kept = (presence >= threshold).gather(1, order)
    counts = kept.sum(1).tolist()
    parts = {
        "boxes": boxes.gather(1, order[..., None].expand_as(boxes)),
        "labels": category.gather(1, order),
        "scores": scores.gather(1, order),
    }
    columns = {name: values[kept].split(counts) for name, values in parts.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def true_boxes(labels: Tensor, task: str) -> list[dict[str, Tensor]]:
    """Labels -> for each picture its digits as `decode` gives them, without scores."""
    check_task(task)
    lists = grid_to_lists(labels) if task == "det" else [label[label[:, 0] == 1] for label in labels[:, None]]
    size = labels.new_tensor((WIDTH, HEIGHT, WIDTH, HEIGHT))
    return [
        {"boxes": box_convert(boxes[:, 1:5], "cxcywh", "xyxy") * size, "labels": boxes[:, 5].long()} for boxes in lists
    ]


def mean_average_precision(outputs: Tensor, labels: Tensor, task: str, threshold: float = 0.01) -> dict[str, float]:
    """COCO's mean average precision over boxes in pixels, by torchmetrics: mAP@[.50:.95], mAP@.50, mAP@.75.

    All boxes down to the low pc threshold count, so that the figure does not hang on where a network draws its line.
    """
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(box_format="xyxy", iou_type="bbox")
    metric.warn_on_many_detections = False
    metric.update(decode(outputs.cpu(), task, threshold), true_boxes(labels.cpu(), task))
    found = metric.compute()
    return {name: max(0.0, found[key].item()) for name, key in (("map", "map"), ("map50", "map_50"), ("map75", "map_75"))}

"""The reference submission as it was measured: its own measure, and the curves that it published."""

import json
from pathlib import Path

import torch
from torch import Tensor

import utils

CURVES = Path(__file__).resolve().parent.parent / "data" / "reference_curves.json"
BATCH = 64  # pictures, the means of which it averaged


def reference_mean(outputs: Tensor, labels: Tensor) -> float:
    """Mean accuracy by the reference's own measure, for comparison with its published figures only.

    A picture (cell) in which nothing is found counts as right, digit or not; in detection the class that is read is
    always 0, an argmax over one logit; and IoU is the mean of batches' means over found digits, but for batches
    without any.
    """
    rows, truth = utils.as_pictures(outputs, labels)
    digit, found = truth[:, 0] > 0, rows[:, 0] > 0
    right = ~found | (digit & (rows[:, 5:].argmax(1) == truth[:, 5]))
    hit = digit & found
    overlap = utils.match(outputs, labels).iou.double() * hit
    per_batch = BATCH * len(rows) // len(outputs)
    sums, hits = (torch.stack([part.sum() for part in each.split(per_batch)]) for each in (overlap, hit))
    iou = (sums / hits.clamp(min=1)).sum() / (hits > 0).sum().clamp(min=1)
    return ((right.double().mean() + iou) / 2).item()


def published_curves(network: str) -> dict[str, list[float]]:
    """What the reference published of one of its networks: "train_mean", "val_mean", "train_loss" and "val_loss" of 60
    epochs, the means by its own measure."""
    return json.loads(CURVES.read_text(encoding="utf-8"))[network]
